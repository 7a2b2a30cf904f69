"""Writing a record last and in one move, and reading records back."""

import json
import os
import tempfile
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


def read_records(root: Path) -> list[dict[str, Any]]:
    """All records below a folder, in the order of their paths; of one key, the one that finished last.

    Raises:
        RecordError: one of them is not whole. A broken record is never passed over in silence.
    """
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(root.rglob(NAME)):
        record = read_record(path)
        known = newest.get(record["key"])
        if known is None or known["finished"] <= record["finished"]:
            newest[record["key"]] = record
    return list(newest.values())
