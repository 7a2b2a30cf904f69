"""Atomic writing of records, and reading."""

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft.config.settings import settings_from_record
from qgoft.errors import QgoftError
from qgoft.records.key import canonical_json
from qgoft.records.schema import RecordError, validate

NAME = "record.json"
# Files of a run that tables and figures read; the record holds their checksums.
READ_LATER = ("history.jsonl", "predictions.jsonl.gz")


def write_record(directory: Path, record: dict[str, Any]) -> Path:
    """Validate and write `directory/record.json` atomically, with a checksum of itself.

    Raises:
        RecordError: the record is invalid.
        OSError: it cannot be written, for example because the disk is full; no partial file remains.
    """
    text = json.dumps({**validate(record), "checksum": _checksum(record)}, indent=1, allow_nan=False) + "\n"
    directory.mkdir(parents=True, exist_ok=True)
    return write_atomically(directory / NAME, text)


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
        content = json.loads(path.read_text("utf-8"))
        # Records of the first versions have none.
        stated = content.pop("checksum", None) if isinstance(content, dict) else None
        record: dict[str, Any] = validate(content)
        if stated is None and "files" in record:
            raise RecordError("its checksum is missing, so the line was deleted")
        if stated is not None and stated != _checksum(record):
            raise RecordError("its checksum does not match: it was modified")
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {error}") from error
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


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()


def _record_paths(root: Path) -> list[Path]:
    """Return the published records below a directory, sorted. Directories may appear and vanish meanwhile."""
    found = []
    for directory, directories, names in os.walk(root):
        directories[:] = [name for name in directories if not name.startswith("attempt-")]
        found += [Path(directory) / NAME] if NAME in names else []
    return sorted(found)


@dataclass(frozen=True)
class RecordSet:
    """Records below a directory, their directories, and problems."""

    records: list[dict[str, Any]]
    directories: dict[str, Path]  # key -> directory with unmodified files
    problems: list[str]


def find_records(root: Path) -> RecordSet:
    """Return all records below a directory, sorted by path; of equal keys the one that finished last.

    A corrupt, modified or incompatible record is left out and named in `problems`. If the curve or the answers of a run were modified, its
    record counts, but its directory is not used.
    """
    newest: dict[str, tuple[dict[str, Any], Path]] = {}
    problems = []
    for path in _record_paths(root):
        try:
            record = read_record(path)
        except (RecordError, OSError) as error:
            problems.append(str(error))
            continue
        try:
            settings_from_record(record)
        except QgoftError as error:
            problems.append(f"{path}: not used: its settings are not valid in this version: {error}")
            continue
        name = path.parent.name
        if re.fullmatch("[0-9a-f]{64}", name) and name != record["key"]:
            problems.append(f"{path}: it is the record of run {record['key'][:16]} (a copy?); it is not counted")
            continue
        if record["finished"] < record["started"]:
            problems.append(f"{path}: it finished before it started: the clock was set back, so its times are invalid")
        known = newest.get(record["key"])
        if known is None or known[0]["finished"] <= record["finished"]:
            newest[record["key"]] = record, path.parent
    directories = {}
    for key, (record, directory) in newest.items():
        changed = _changed_files(record, directory)
        problems += [
            f"{directory / name}: it differs from its checksum in the record; the run's curve and answers are not used" for name in changed
        ]
        if not changed:
            directories[key] = directory
    return RecordSet([record for record, _ in newest.values()], directories, problems)


def _changed_files(record: dict[str, Any], directory: Path) -> list[str]:
    """Return the existing files that differ from their checksums; some users keep only part of them."""
    stated = record.get("files", {})
    return [name for name, checksum in file_checksums(directory).items() if stated.get(name, checksum) != checksum] if stated else []


def read_records(root: Path) -> list[dict[str, Any]]:
    """Return all records below a directory that must all be valid: committed ones, or ones written just before.

    Raises:
        RecordError: one is invalid.
    """
    found = find_records(root)
    if found.problems:
        raise RecordError(found.problems[0])
    return found.records
