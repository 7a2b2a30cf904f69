"""Time and memory of a training step, for all contenders in one run."""
