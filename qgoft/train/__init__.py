"""Training: `run` makes one record out of settings; `fit` is the loop."""
