"""Locations of the repository: configuration files, committed results and transcribed figures."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# QGOFT_CONFIGS names another tree of configuration files.
CONFIGS = Path(os.environ.get("QGOFT_CONFIGS") or REPOSITORY / "configs")
RESULTS = REPOSITORY / "results"
MEASURED = RESULTS / "measured"
PUBLISHED = RESULTS / "published"


def cache_directory() -> Path:
    """Return QGOFT_CACHE, or the user's cache directory."""
    named = os.environ.get("QGOFT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qgoft"
