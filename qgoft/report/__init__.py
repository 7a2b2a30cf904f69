"""Records -> tables. Never torch, so that tables rebuild on any laptop."""
