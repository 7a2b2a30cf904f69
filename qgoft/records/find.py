"""All records below a directory: of runs in directories of their own, and of archives."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qgoft.config.settings import settings_from_record
from qgoft.errors import QgoftError
from qgoft.records.retention import read_retention
from qgoft.records.run_files import RunDirectory, RunFiles
from qgoft.records.schema import Record, RecordError
from qgoft.records.store import ARCHIVE, NAME, file_checksums, read_record


@dataclass(frozen=True)
class RecordSet:
    """Records below a directory.

    Attributes:
        records: one per key.
        files: key -> curve and answers, if they are unmodified.
        problems: excluded files and runs, with the reason.
    """

    records: list[Record]
    files: dict[str, RunFiles]
    problems: list[str]


def find_records(*roots: Path) -> RecordSet:
    """Return all records below some directories, or of archives, sorted by path; of equal keys the one that finished last.

    A corrupt, modified or incompatible record is left out and named in `problems`. If the curve or the answers of a run were modified, its
    record counts, but they are not used.
    """
    newest: dict[str, tuple[Record, RunFiles | None, Path]] = {}
    problems: list[str] = []
    for place in (place for root in roots for place in _places(root)):
        for record, some in _read(place, problems):
            known = newest.get(record["key"])
            if known is not None and known[0]["metrics"] != record["metrics"]:
                problems.append(
                    f"{place}: another result of run {record['key'][:16]} than in {known[2]}; the one that finished last is used"
                )
            if known is None or known[0]["finished"] <= record["finished"]:
                newest[record["key"]] = record, some, place
    files = {key: some for key, (_, some, _) in newest.items() if some is not None}
    return RecordSet([record for record, *_ in newest.values()], files, problems)


def read_records(root: Path) -> list[Record]:
    """Return all records below a directory that must all be valid: committed ones, or ones written just before.

    Raises:
        RecordError: one is invalid.
    """
    found = find_records(root)
    if found.problems:
        raise RecordError(found.problems[0])
    return found.records


def _places(root: Path) -> list[Path]:
    """Return the record and archive files, sorted. Directories may appear and vanish meanwhile."""
    if root.name == ARCHIVE:
        return [root]
    found = []
    for directory, directories, names in os.walk(root):
        directories[:] = [name for name in directories if not name.startswith("attempt-")]
        found += [Path(directory) / name for name in (NAME, ARCHIVE) if name in names]
    return sorted(found)


def _read(place: Path, problems: list[str]) -> Iterator[tuple[Record, RunFiles | None]]:
    """Yield the valid records of a file with their curves and answers. Add excluded files and runs to `problems`."""
    try:
        if place.name == ARCHIVE:
            from qgoft.records.archive import read_archive  # imports pyarrow, which most commands do not need

            archive = read_archive(place.parent)
            problems += archive.problems
            found: list[tuple[Record, RunFiles | None]] = [(record, archive.files.get(record["key"])) for record in archive.records]
        else:
            record = read_record(place)
            found = [(record, RunDirectory(place.parent, record["key"]))]
    except (RecordError, OSError) as error:
        problems.append(str(error))
        return
    for record, files in found:
        name = f"{place}: run {record['key'][:16]}" if place.name == ARCHIVE else str(place)
        try:
            settings_from_record(record)
        except QgoftError as error:
            problems.append(f"{name}: not used: its settings are not valid in this version: {error}")
            continue
        if isinstance(files, RunDirectory):
            if re.fullmatch("[0-9a-f]{64}", place.parent.name) and place.parent.name != record["key"]:
                problems.append(f"{name}: it is the record of run {record['key'][:16]} (a copy?); it is not counted")
                continue
            if changed := _changed_files(record, files.path):
                problems += [
                    f"{files.path / one}: it differs from its checksum in the record; the run's curve and answers are not used"
                    for one in changed
                ]
                files = None
            problems += _corrupt_retention(files)
        if record["finished"] < record["started"]:
            problems.append(f"{name}: it finished before it started: the clock was set back, so its times are invalid")
        yield record, files


def _corrupt_retention(files: RunFiles | None) -> list[str]:
    """Return the problem of a retention file, in a list."""
    try:
        if isinstance(files, RunDirectory):
            read_retention(files.path, files.key)
    except RecordError as error:
        return [f"{error}; the retention of this run is not used"]
    return []


def _changed_files(record: Record, directory: Path) -> list[str]:
    """Return the existing files that differ from their checksums; some users keep only part of them."""
    stated = record.get("files", {})
    return [name for name, checksum in file_checksums(directory).items() if stated.get(name, checksum) != checksum] if stated else []
