"""On-disk cache of prepared rows, such as token ids or decoded images, keyed by everything they depend on.

The cache (QGOFT_CACHE) may be deleted at any time. A corrupt entry is rebuilt.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import Dataset
from pyarrow import ArrowException

from qgoft.config.locations import cache_directory
from qgoft.errors import QgoftError
from qgoft.pocket.data import atomic_directory
from qgoft.records import canonical_json, write_atomically
from qgoft.tasks.sources import file_sha256

ROWS, CHECKSUM = "rows.arrow", "checksum.txt"
TRIES = 3


def cached_rows(depends_on: dict[str, Any], write: Callable[[Path], None]) -> Dataset:
    """Return rows from the cache, and write them first if they are missing.

    Args:
        depends_on: everything that determines the rows, as plain data: checksums of inputs, settings, library versions.
        write: writes an Arrow file to a path.

    Raises:
        QgoftError: the cache cannot be written.
    """
    name = hashlib.sha256(canonical_json(depends_on).encode()).hexdigest()[:32]
    directory = cache_directory() / "rows" / name
    # Another process may write the same rows at the same time, and remove a corrupt entry just after this one was written.
    for _ in range(TRIES):
        rows = _read(directory)
        if rows is not None:
            return rows
        try:
            shutil.rmtree(directory, ignore_errors=True)
            _make(directory, write)
        except OSError as error:
            raise QgoftError(
                f"cannot write prepared rows to {directory.parent}: {error.strerror or error}; set QGOFT_CACHE to a directory with free space"
            ) from error
    raise QgoftError(
        f"the prepared rows in {directory} differ from what was written; set QGOFT_CACHE to a directory on a reliable file system"
    )


def cached_counts(depends_on: dict[str, Any], count: Callable[[], dict[str, int]]) -> dict[str, int]:
    """Return cached counts, and compute them first if they are missing. If the cache cannot be written, they are not stored.

    Args:
        depends_on: everything that determines the counts, as plain data.
    """
    path = cache_directory() / "counts" / f"{hashlib.sha256(canonical_json(depends_on).encode()).hexdigest()[:32]}.json"
    try:
        kept = json.loads(path.read_text("utf-8"))
        if isinstance(kept, dict) and all(isinstance(value, int) for value in kept.values()):
            return kept
    except (OSError, ValueError, RecursionError):
        pass
    counts = count()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(counts))
    return counts


def _read(directory: Path) -> Dataset | None:
    try:
        if (directory / CHECKSUM).read_text() == file_sha256(directory / ROWS):
            return Dataset.from_file(str(directory / ROWS))
    except (OSError, ValueError, ArrowException):
        pass
    return None


def _make(directory: Path, write: Callable[[Path], None]) -> None:
    with atomic_directory(directory) as part:
        write(part / ROWS)
        (part / CHECKSUM).write_text(file_sha256(part / ROWS))
