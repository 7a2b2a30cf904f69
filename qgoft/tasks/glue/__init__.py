"""GLUE: data, model head and scores."""
