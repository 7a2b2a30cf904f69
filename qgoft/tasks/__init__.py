"""Tasks: where their rows come from, how they become batches, and how they are scored."""
