"""Data files of tasks whose splits come from several places: lookup and a common checksum. Free of the libraries that read them."""

import hashlib
from pathlib import Path

FORMATS = (".parquet", ".jsonl.gz", ".jsonl", ".json.gz", ".json")


def find_in_directory(directory: Path, stem: str) -> Path | None:
    """Return the file of a split in one of the readable formats."""
    return next((path for ending in FORMATS if (path := directory / f"{stem}{ending}").is_file()), None)


def checksum(parts: dict[str, str], names: list[str] | None = None) -> str:
    """Return one checksum of several files."""
    chosen = sorted(names if names is not None else parts)
    return hashlib.sha256("".join(f"{name} {parts[name]}\n" for name in chosen).encode()).hexdigest()
