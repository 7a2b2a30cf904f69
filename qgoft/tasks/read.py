"""Reading of data files: parquet, or JSON as a list or one object per line. Paths are opened literally, never as patterns."""

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset
from pyarrow import types as kinds

from qgoft.errors import DISK_ERRORS, QgoftError
from qgoft.tasks.cache import cached_rows
from qgoft.tasks.sources import file_sha256

# Largest unpacked file: MetaMathQA has 0.4 GB.
MOST_BYTES = 2 * 10**9
# Columns that do not hold text.
NOT_TEXT = ("question_id", "turns", "answers", "choices", "answer")
# Increment if the format of a copy changes.
PARQUET_VERSION = 1
# Rows per batch: images of VTAB have up to a few hundred kilobytes.
BATCH = 1000
DAMAGED = "it is damaged or only partly downloaded: fetch it again"


def read_rows(path: Path, where: str, columns: Sequence[str]) -> Dataset:
    """Return the rows of a parquet or JSON file with at least these columns, which have no nulls and, except for NOT_TEXT, hold text.

    Raises:
        QgoftError: the file cannot be read, or a column is missing, has nulls or another type.
    """
    rows = read_parquet([path], where) if path.suffix == ".parquet" else _from_json(path, where)
    check_columns(rows, where, path.name, columns, text=[name for name in columns if name not in NOT_TEXT])
    return rows


def check_columns(rows: Dataset, where: str, name: str, columns: Sequence[str], *, text: Sequence[str]) -> None:
    """Check that columns exist without nulls, and that some of them hold text.

    Raises:
        QgoftError: names the column, its type and the expected type.
    """
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        present = ", ".join(rows.column_names) or "none"
        raise QgoftError(f"{where}: {name} has no column {missing[0]}; present are {present}; expected {', '.join(columns)}")
    if len(rows) == 0:
        raise QgoftError(f"{where}: {name} has no rows; complete the data")
    for column in columns:
        held = rows.data.column(column)
        if held.null_count:
            raise QgoftError(f"{where}: column {column} of {name} has {held.null_count} rows without a value; correct the data")
        if column in text and not (kinds.is_string(held.type) or kinds.is_large_string(held.type)):
            raise QgoftError(f"{where}: column {column} of {name} has type {held.type}; expected text; correct the data")


def read_parquet(paths: Sequence[Path], where: str) -> Dataset:
    """Return the rows of the parquet files of a split, memory-mapped from a copy in the cache (`cache.cached_rows`).

    Raises:
        QgoftError: a file is not parquet, is damaged, repeats a column or holds invalid UTF-8, or the files have different columns.
    """
    for path in paths:
        if path.is_dir():
            raise QgoftError(f"{where}: {path.name} is a directory; expected a parquet file")
    depends_on = {"parquet": [file_sha256(path) for path in paths], "version": PARQUET_VERSION}
    return cached_rows(depends_on, lambda copy: _copy_parquet(paths, where, copy))


def _copy_parquet(paths: Sequence[Path], where: str, copy: Path) -> None:
    """Copy the rows of parquet files to an Arrow stream, batch by batch."""
    writer, schema = None, None
    with open(copy, "wb") as target:
        for path in paths:
            try:
                with open(path, "rb") as file:
                    opened = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
                    own = _plain(opened.schema_arrow)
                    twice = [name for name, count in Counter(own.names).items() if count > 1]
                    if twice:
                        raise QgoftError(f"{where}: {path.name} has the column {twice[0]} twice; correct the data")
                    if schema is None:
                        schema = own
                        writer = pa.ipc.new_stream(target, schema)
                    elif own.names != schema.names:
                        raise QgoftError(f"{where}: {path.name} and the other parts have different columns; two data sets are mixed")
                    elif own.types != schema.types:
                        raise QgoftError(
                            f"{where}: {path.name} and the other parts have columns of different types; two data sets are mixed"
                        )
                    for batch in opened.iter_batches(BATCH):
                        _write_batch(batch, schema, writer, f"{where}: {path.name}")
            except (pa.ArrowException, OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                raise QgoftError(f"{where}: {path.name} cannot be read ({error}); {DAMAGED}") from error
        if writer is not None:
            writer.close()


def _write_batch(batch: pa.RecordBatch, schema: pa.Schema, writer: Any, where: str) -> None:
    try:
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise QgoftError(f"{where} has values that do not match their type ({error}), such as text that is not UTF-8") from error
    writer.write_table(pa.Table.from_batches([batch]).cast(schema))


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return a schema without string views and dictionaries, which are only other encodings of text."""
    fields = []
    for field in schema:
        kind = field.type.value_type if kinds.is_dictionary(field.type) else field.type
        fields.append(field.with_type({pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)))
    return pa.schema(fields, schema.metadata)


def _from_json(path: Path, where: str) -> Dataset:
    rows = [row for _, row in read_json(path, where)]
    try:
        return Dataset.from_list(rows)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise QgoftError(f"{where}: the rows of {path.name} have inconsistent columns ({error}); correct the data") from error


def read_json(path: Path, where: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a JSON file, a list or one per line, each with its line number (or its position in the list, from 1).

    Raises:
        QgoftError: names the file and the line.
    """
    try:
        content = _unpacked(path).removeprefix(codecs.BOM_UTF8)
        text = content.decode("utf-8")
    except (OSError, EOFError, zlib.error) as error:
        raise QgoftError(f"{where}: {path.name} cannot be read ({error}); {DAMAGED}") from error
    except UnicodeDecodeError as error:
        raise QgoftError(f"{where}: {path.name} is not text in UTF-8 ({error}); save it in UTF-8") from error
    is_list = text.lstrip().startswith("[")
    parts: Iterable[tuple[int, bytes | str]] = [(1, text)] if is_list else enumerate(content.splitlines(), 1)
    found = []
    for number, line in parts:
        if not line.strip():
            continue
        try:
            read = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise QgoftError(
                f"{where}: {path.name}, line {getattr(error, 'lineno', number) if is_list else number}: {reason}; {DAMAGED}"
            ) from error
        for place, row in enumerate(read, 1) if is_list else [(number, read)]:
            if not isinstance(row, dict):
                raise QgoftError(f"{where}: {path.name}, line {place}: got a {type(row).__name__}, expected an object; correct the data")
            found.append((place, row))
    return found


def _unpacked(path: Path) -> bytes:
    """Return the content of a file, decompressed if necessary.

    Raises:
        OSError: it cannot be read, or is larger than any supported data set.
    """
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # noqa: SIM115 - closed below
    with opened as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(f"it unpacks to more than {MOST_BYTES / 1e9:.0f} GB")
    return content
