"""Training: `run` turns settings into a record; `fit` is the training loop."""
