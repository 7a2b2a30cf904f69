"""Comparison of this project with the authors' code, from checkouts that the user names."""
