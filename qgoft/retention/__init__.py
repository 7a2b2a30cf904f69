"""Retention: what a tuned backbone keeps of the abilities of the pretrained one, along the path between the two, and why (geometry)."""
