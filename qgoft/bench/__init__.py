"""Time and memory of a training step, every rival in one run."""
