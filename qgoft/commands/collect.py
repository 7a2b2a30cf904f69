"""Copy finished runs into a directory of committed records, such as results/measured/pocket. Existing runs are never overwritten.

    python scripts/collect.py results/runs results/measured/pocket
    python scripts/collect.py /data/runs results/measured/small --protocol small

Runs to which this version of the code gives another key are skipped, as are runs that the directory contains.
"""

import argparse
import shutil
import sys
from pathlib import Path

from qgoft.cli import Parser
from qgoft.errors import QgoftError
from qgoft.records import file_checksums, find_records
from qgoft.sweep.record_index import is_current


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--protocol", default="pocket")
    arguments = parser.parse_args(argv)
    if not arguments.source.is_dir():
        raise QgoftError(f"{arguments.source}: not a directory; expected one with runs, such as results/runs")
    arguments.target.mkdir(parents=True, exist_ok=True)
    there = {record["key"] for record in find_records(arguments.target).records}
    found = find_records(arguments.source)
    for problem in found.problems:
        print(f"qgoft: left: {problem}", file=sys.stderr)
    copied = 0
    for record in found.records:
        is_asked = record["status"] == "done" and record["protocol"] == arguments.protocol
        directory = found.directories.get(record["key"])
        if not is_asked or directory is None or record["key"] in there or not is_current(record):
            continue
        target = arguments.target / "-".join([*(record[name] for name in ("task", "method", "variant", "model")), f"seed{record['seed']}"])
        if target.exists():  # a run with other settings or data
            target = target.with_name(f"{target.name}-{record['key'][:8]}")
        # Atomically: a run without its answers would look complete.
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name in (*file_checksums(directory), "record.json"):
            shutil.copyfile(directory / name, part / name)
        part.rename(target)
        there.add(record["key"])
        copied += 1
        print(target.name)
    print(f"{copied} copied to {arguments.target}")
    return 0
