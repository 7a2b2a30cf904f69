"""VTAB-1K: data, model head and scores."""
