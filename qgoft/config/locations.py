"""Locations of configuration files, results and transcribed figures: in a checkout, or in an installed package."""

import os
from pathlib import Path

from qgoft.errors import QgoftError

PACKAGE = Path(__file__).resolve().parents[1]
# The checkout that holds this package; None if it was installed as a wheel, which carries configs and published figures (setup.py).
REPOSITORY = PACKAGE.parent if (PACKAGE.parent / "configs" / "train.yaml").is_file() else None
# What messages tell the user to run: `make fetch`, or `qgoft fetch` with an installed package.
COMMAND = "make" if REPOSITORY else "qgoft"
# QGOFT_CONFIGS names another tree of configuration files.
CONFIGS = Path(os.environ.get("QGOFT_CONFIGS") or (REPOSITORY / "configs" if REPOSITORY else PACKAGE / "_configs")).resolve()
# Without a checkout, results are in the current directory, without committed records.
RESULTS = REPOSITORY / "results" if REPOSITORY else Path("results")
MEASURED = RESULTS / "measured"
# Composed settings of all items (qgoft/sweep/settings_cache.py).
SETTINGS = MEASURED / "settings.json.gz" if REPOSITORY else PACKAGE / "_settings.json.gz"
PUBLISHED = REPOSITORY / "results" / "published" if REPOSITORY else PACKAGE / "_published"


def check_configs() -> None:
    """Check that the tree of configuration files is there.

    Raises:
        QgoftError: QGOFT_CONFIGS names another directory.
    """
    if not (CONFIGS / "train.yaml").is_file():
        raise QgoftError(f"QGOFT_CONFIGS={CONFIGS}: no train.yaml there; name a copy of configs/, or unset QGOFT_CONFIGS")


def cache_directory() -> Path:
    """Return QGOFT_CACHE, or the user's cache directory."""
    named = os.environ.get("QGOFT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qgoft"
