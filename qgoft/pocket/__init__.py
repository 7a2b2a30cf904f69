"""The embedded benchmark: generated tasks and really pretrained tiny backbones, so that the whole suite runs offline in minutes."""
