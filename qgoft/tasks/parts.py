"""Rows of a part: a parquet file, or JSON in one of its shapes."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from pyarrow import ArrowException

from qgoft.errors import QgoftError
from qgoft.pocket.data import cache_folder
from qgoft.tasks.sources import file_sha256


def read_rows(path: Path, where: str, columns: list[str]) -> Dataset:
    """Rows of a parquet or JSON file, with at least these columns, which hold no null.

    Raises:
        QgoftError: the file cannot be read, or a column is missing or has holes.
    """
    try:
        rows = read_parquet([path]) if path.suffix == ".parquet" else Dataset.from_list(_read_json(path))
    except (ArrowException, OSError, EOFError, zlib.error, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise QgoftError(
            f"{where}: {path.name} cannot be read ({error.__cause__ or error}); it is damaged or only partly downloaded: fetch it again"
        ) from error
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise QgoftError(f"{where}: {path.name} has no column {missing[0]}; present are {', '.join(rows.column_names) or 'none'}")
    for name in columns:
        if rows.data.column(name).null_count:
            raise QgoftError(
                f"{where}: column {name} of {path.name} has {rows.data.column(name).null_count} rows without a value; correct the data"
            )
    if len(rows) == 0:
        raise QgoftError(f"{where}: {path.name} has no rows; it is damaged: fetch it again")
    return rows


def read_parquet(paths: Sequence[Path]) -> Dataset:
    """Rows of parquet files as they are now. The library keeps a copy by path and time of change, and would give it for a file that was replaced
    with its time kept; here its copies lie by content."""
    from datasets.exceptions import DatasetGenerationError

    content = hashlib.sha256(" ".join(file_sha256(path) for path in paths).encode()).hexdigest()[:32]
    try:
        return Dataset.from_parquet([str(path) for path in paths], cache_dir=str(cache_folder() / "parquet" / content))
    except DatasetGenerationError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def _read_json(path: Path) -> list[dict[str, Any]]:
    """A list of objects, or one object a line."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = content.decode("utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in content.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("not every row is an object")
    return rows
