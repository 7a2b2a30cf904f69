"""Retention: abilities of the pretrained backbone after tuning, the path between the two, and the geometry of the change."""
