"""The embedded benchmark: generated tasks and small pretrained backbones, so that the whole suite runs offline in minutes."""
