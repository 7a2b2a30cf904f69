"""What is made from rows once and read many times, such as token ids: on disk, named after everything it depends on.

It lies in the user's cache (QGOFT_CACHE) and may be deleted at any time. A copy that is not what was written is made again.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from pyarrow import ArrowException

from qgoft.pocket.data import cache_folder
from qgoft.records import canonical_json
from qgoft.tasks.sources import file_sha256

CHECKSUM = "checksum.txt"


def cached_rows(depends_on: dict[str, Any], make: Callable[[], Dataset]) -> Dataset:
    """The rows that `make` returns, from disk where the same ones were made before.

    Args:
        depends_on: everything that decides what `make` returns, as plain data: checksums of its input, settings, versions of the libraries.
    """
    name = hashlib.sha256(canonical_json(depends_on).encode()).hexdigest()[:32]
    folder = cache_folder() / "rows" / name
    rows = _read(folder)
    if rows is None:
        rows = make()
        _write(rows, folder)
    return rows


def _read(folder: Path) -> Dataset | None:
    try:
        if (folder / CHECKSUM).read_text() == _checksum(folder):
            return Dataset.load_from_disk(folder)
    except (OSError, ValueError, KeyError, ArrowException):
        pass
    return None


def _write(rows: Dataset, folder: Path) -> None:
    """All or nothing. Without space for it the run goes on: the rows are in memory."""
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=folder.name + "."))
        rows.save_to_disk(part)
        (part / CHECKSUM).write_text(_checksum(part))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except (OSError, ArrowException):  # also where another process was first, with the same rows
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _checksum(folder: Path) -> str:
    return "".join(f"{file_sha256(path)} {path.name}\n" for path in sorted(folder.iterdir()) if path.name != CHECKSUM)
