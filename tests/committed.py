"""Committed records as directories of runs, for tests that need finished ones."""

import functools
import gzip
import json
from pathlib import Path

from qgoft.records import file_checksums, find_records, write_record

ARCHIVE = Path(__file__).resolve().parents[1] / "results" / "measured"


@functools.cache
def committed(protocol="pocket"):
    return find_records(ARCHIVE / protocol)


def select(*tasks, **fields):
    """Return the committed records of protocol pocket with some tasks and field values."""
    return [r for r in committed().records if r["task"] in tasks and all(r[name] == value for name, value in fields.items())]


def write_run(record, directory):
    """Write the directory of a committed run, whose curve and answers get the checksums of the files written here."""
    run = committed().files[record["key"]]
    directory.mkdir(parents=True)
    steps = [{name: value for name, value in line.items() if name != "key" and value is not None} for line in run.steps.to_pylist()]
    (directory / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    answers = run.answers()
    rows = zip(answers.sets, answers.items, answers.predictions, answers.labels, strict=True)
    lines = [json.dumps(dict(zip(("set", "idx", "prediction", "label"), row, strict=True))) + "\n" for row in rows]
    (directory / "predictions.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    write_record(directory, {**record, "files": {**record.get("files", {}), **file_checksums(directory)}})
    return directory
