"""Synthetic images, 32 x 32, drawn from labels."""
