"""Files of tasks whose parts lie in several places: where one is, and one checksum of all. Without the libraries that read them."""

import hashlib
from pathlib import Path

FORMATS = (".parquet", ".jsonl.gz", ".jsonl", ".json.gz", ".json")


def find_in_folder(folder: Path, stem: str) -> Path | None:
    """The file of a part in one of the formats that can be read."""
    return next((path for ending in FORMATS if (path := folder / f"{stem}{ending}").is_file()), None)


def checksum(parts: dict[str, str], names: list[str] | None = None) -> str:
    """One checksum of those of several parts."""
    chosen = sorted(names if names is not None else parts)
    return hashlib.sha256("".join(f"{name} {parts[name]}\n" for name in chosen).encode()).hexdigest()
