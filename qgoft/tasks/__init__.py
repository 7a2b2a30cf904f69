"""Tasks: data sources, splits, batches and metrics."""
