"""Commands: one module each, with a `main` that takes the words of the command line and returns the exit code."""
