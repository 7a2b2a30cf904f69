"""Settings of a run, and their composition from the configuration files."""
