"""Writing a record last and in one move, and reading records back."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft.records.schema import RecordError, validate

NAME = "record.json"


def write_record(folder: Path, record: dict[str, Any]) -> Path:
    """Validate and write `folder/record.json`; a reader sees the whole record or none.

    Raises:
        RecordError: the record is not whole.
        OSError: it cannot be written, for example because the disk is full; nothing half is left.
    """
    text = json.dumps(validate(record), indent=1, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    return write_atomically(folder / NAME, text)


def write_atomically(path: Path, text: str) -> Path:
    """Write a file in one move; a reader sees the whole of it or what was there before.

    Raises:
        OSError: it cannot be written; nothing half is left.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            # mkstemp gives a file that nobody else can read; a record is for the group, as the user's umask has it.
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o666 & ~mask)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read_record(path: Path) -> dict[str, Any]:
    """Read and validate one record.

    Raises:
        RecordError: it is not JSON or not whole; the message names the file.
    """
    try:
        record: dict[str, Any] = validate(json.loads(path.read_text()))
    except (RecordError, ValueError) as error:
        raise RecordError(f"{path}: {error}") from error
    return record


@dataclass(frozen=True)
class Found:
    """Records below a folder, where each lies, and what could not be read."""

    records: list[dict[str, Any]]
    folders: dict[str, Path]  # key -> folder
    problems: list[str]


def find_records(root: Path) -> Found:
    """All records below a folder, in the order of their paths; of one key, the one that finished last.

    A record that is torn, of another schema or holds what it must not is left out and named in `problems`, never passed over in silence.
    """
    newest: dict[str, tuple[dict[str, Any], Path]] = {}
    problems = []
    for path in sorted(root.rglob(NAME)):
        try:
            record = read_record(path)
        except (RecordError, OSError) as error:
            problems.append(str(error))
            continue
        if record["finished"] < record["started"]:
            problems.append(f"{path}: it finished before it started; the clock was set back, its times say nothing")
        known = newest.get(record["key"])
        if known is None or known[0]["finished"] <= record["finished"]:
            newest[record["key"]] = record, path.parent
    return Found([record for record, _ in newest.values()], {key: folder for key, (_, folder) in newest.items()}, problems)


def read_records(root: Path) -> list[dict[str, Any]]:
    """All records below a folder, where each of them must be whole: those that are committed, or were just written.

    Raises:
        RecordError: one of them is not.
    """
    found = find_records(root)
    if found.problems:
        raise RecordError(found.problems[0])
    return found.records
