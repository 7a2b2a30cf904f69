"""Add finished runs to an archive of committed records, such as results/measured/pocket. Runs of the archive are never replaced.

    python scripts/collect.py results/runs results/measured/pocket
    python scripts/collect.py /data/runs results/measured/small --protocol small

A run's retention (scripts/retention.py) is added with the run, or later. Left out, and named: corrupt, incomplete or modified runs, runs to
which this version of the code gives another key, and a second result of a run that the archive contains.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qgoft.cli import Parser
from qgoft.errors import QgoftError
from qgoft.records import Record, RecordError, RunDirectory, find_records
from qgoft.records.archive import PackedRun, pack_run, read_archive, write_archive
from qgoft.records.jsonl import read_history
from qgoft.records.retention import Retention
from qgoft.records.store import ARCHIVE, READ_LATER
from qgoft.sweep.record_index import is_current


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--protocol", default="pocket")
    arguments = parser.parse_args(argv)
    if not arguments.source.is_dir():
        raise QgoftError(f"{arguments.source}: not a directory; expected one with runs, such as results/runs")
    with _locked(arguments.target):
        return collect(arguments.source, arguments.target, arguments.protocol)


def collect(source: Path, target: Path, protocol: str) -> int:
    """Add the finished runs of a protocol below a directory to an archive. Return the exit code.

    Raises:
        RecordError: the archive is invalid.
    """
    kept, found = read_kept(target), find_records(source)
    for problem in found.problems:
        _leave(problem)
    added: list[PackedRun] = []
    measured = 0
    for record in found.records:
        if record["status"] != "done" or record["protocol"] != protocol:
            continue
        name = f"run {record['key'][:16]} ({record['task']}, {record['method']}, seed {record['seed']})"
        files = found.files.get(record["key"])
        if record["key"] in kept:
            if kept[record["key"]].record != record:
                _leave(f"{name}: the archive has another result of this run: {_result(kept[record['key']].record)}, here {_result(record)}")
            elif files is not None:
                measured += _add_retention(kept, record["key"], files.retention(), name)
        elif not is_current(record):
            _leave(f"{name}: this version of the code gives it another key")
        elif isinstance(files, RunDirectory | PackedRun):  # otherwise it was modified, and is named above
            if missing := _missing(record, files):
                _leave(f"{name}: {missing} is missing in {files.place}")
                continue
            added.append(
                files if isinstance(files, PackedRun) else pack_run(record, read_history(files.path), files.answers(), files.retention())
            )
            print(f"{name}: {_result(record)}")
    if added or measured:
        write_archive(target, [*kept.values(), *added])
    also = f", and the retention of {measured} others" if measured else ""
    print(f"{len(added)} added to {target}, which contains {len(kept) + len(added)}{also}")
    return 0


def _add_retention(kept: dict[str, PackedRun], key: str, retention: Retention | None, name: str) -> bool:
    """Add the retention of a run that the archive has, unless it has that already."""
    run = kept[key]
    if retention is None or retention == run.kept:
        return False
    if run.kept is not None:
        _leave(f"{name}: the archive has another retention of this run, measured {run.kept['finished']}, here {retention['finished']}")
        return False
    kept[key] = dataclasses.replace(run, kept=retention)
    return True


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time add to an archive, since its files are replaced one after the other."""
    import fcntl  # POSIX only

    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
        with suppress(OSError):
            directory.rmdir()  # nothing was added


def read_kept(directory: Path) -> dict[str, PackedRun]:
    """Return the runs of an archive, which must all be valid: an invalid one would be lost when the archive is written again.

    Raises:
        RecordError: one is invalid.
    """
    if not (directory / ARCHIVE).exists():
        return {}
    archive = read_archive(directory)
    if archive.problems:
        raise RecordError(f"{archive.problems[0]}; nothing was added")
    return archive.files


def _missing(record: Record, files: RunDirectory | PackedRun) -> str | None:
    """Return the name of a file that the record states and its directory lacks."""
    if isinstance(files, PackedRun):
        return None
    return next((name for name in READ_LATER if name in record.get("files", {}) and not (files.path / name).is_file()), None)


def _result(record: Record) -> str:
    value = record["metrics"][record["primary"]]["value"]
    return f"{record['primary']} {'undefined' if value is None else f'{value:.2f}'}, finished {record['finished']}"


def _leave(reason: str) -> None:
    print(f"qgoft: left: {reason}", file=sys.stderr)
