"""Atomic writing of records, and reading."""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qgoft.records.key import canonical_json
from qgoft.records.schema import RecordError, validate

NAME = "record.json"
ARCHIVE = "records.parquet"  # qgoft/records/archive.py
# Files of a run that tables and figures read; the record holds their checksums.
READ_LATER = ("history.jsonl", "predictions.jsonl.gz")


def write_record(directory: Path, record: dict[str, Any]) -> Path:
    """Validate and write `directory/record.json` atomically, with a checksum of itself.

    Raises:
        RecordError: the record is invalid.
        OSError: it cannot be written, for example because the disk is full; no partial file remains.
    """
    text = record_text(record)
    directory.mkdir(parents=True, exist_ok=True)
    return write_atomically(directory / NAME, text)


def record_text(record: dict[str, Any]) -> str:
    """Return a valid record as JSON, with a checksum of itself.

    Raises:
        RecordError: the record is invalid.
    """
    return checksummed_text(validate(record))


def checksummed_text(content: dict[str, Any]) -> str:
    """Return plain data as JSON, with a checksum of itself."""
    return json.dumps({**content, "checksum": content_checksum(content)}, indent=1, allow_nan=False) + "\n"


def write_atomically(path: Path, text: str) -> Path:
    """Write a file atomically: readers see the old content or the new.

    Raises:
        OSError: it cannot be written; no partial file remains.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` atomically at the end of the block. No partial file remains if the block fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp creates a private file; a record gets the permissions of the user's umask.
        mask = os.umask(0)
        os.umask(mask)
        with open(temporary, "rb") as file:
            os.fchmod(file.fileno(), 0o666 & ~mask)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_record(path: Path) -> dict[str, Any]:
    """Read and validate one record.

    Raises:
        RecordError: it is not JSON, invalid or modified; the message names the file.
    """
    try:
        return parse_record(path.read_text("utf-8"))
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from error


def parse_record(text: str) -> dict[str, Any]:
    """Return the record of a text of `record_text`.

    Raises:
        RecordError: it is not JSON, invalid or modified.
    """
    try:
        content = json.loads(text)
        # Records of the first versions have none.
        stated = content.pop("checksum", None) if isinstance(content, dict) else None
        record: dict[str, Any] = validate(content)
        if stated is None and "files" in record:
            raise RecordError("its checksum is missing, so the line was deleted")
        if stated is not None and stated != content_checksum(record):
            raise RecordError("its checksum does not match: it was modified")
    except (ValueError, RecursionError) as error:
        raise RecordError(str(error)) from error
    return record


def file_checksums(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that tables and figures read."""
    return {name: file_sha256(directory / name) for name in READ_LATER if (directory / name).is_file()}


def adapter_checksums(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of the adapter: `adapter/adapter_model.safetensors` and so on."""
    return {
        path.relative_to(directory).as_posix(): file_sha256(path) for path in sorted((directory / "adapter").glob("*")) if path.is_file()
    }


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex, cached while path, inode, size and both times are unchanged."""
    status = path.stat()
    return _file_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.cache
def _file_sha256(path: Path, *state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of plain data in hex."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
