"""Plans of runs, and their execution on this machine or on a cluster."""
