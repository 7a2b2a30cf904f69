"""Items that are costs instead of runs: GOFT's table 10, PSOFT's tables 19 to 22 and figure 4 (b), from a benchmark record."""

import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft.errors import format_exception
from qgoft.records import place_name
from qgoft.report.bench import published_table, shape_table
from qgoft.report.table import Table

# Item -> place of its printed figures, and the corresponding column of the benchmark.
PRINTED = {
    "table10": ("goft-icml2024", "table10"),
    "psoft-table19": ("psoft-iclr2026", "table19"),
    "psoft-table20": ("psoft-iclr2026", "table20"),
    "psoft-table21": ("psoft-iclr2026", "table21"),
    "psoft-table22": ("psoft-iclr2026", "table22"),
    "psoft-figure4": ("psoft-iclr2026", "figure4b"),
}
# Treatment of freed memory by the C library: the default, which returns some of it and faults it in again, or keeping all of it.
SYSTEM, KEPT = "system default", "keeps freed memory"


@dataclass(frozen=True)
class BenchColumn:
    """One shape of a benchmark, and its record."""

    line: dict[str, Any]
    record: dict[str, Any]
    part: str
    shape: str
    item: str | None  # item, if the shape belongs to one only
    is_kept: bool  # freed memory
    path: Path  # of the record


def read_bench(directories: Sequence[Path], name: str, shape: str) -> list[BenchColumn]:
    """Return the shapes of an item from the first directory that has any: those of a part of the benchmark (layer, block), or of a model by
    a word of its name. Shapes measured with freed memory kept come first, since the others are noisier.
    """
    return _first(directories, lambda one: _is_of(one, name, shape))


def part_benches(directories: Sequence[Path], part: str) -> list[BenchColumn]:
    """Return the shapes of a part of the benchmark from the first directory that has any, without those of one item."""
    return _first(directories, lambda one: one.part == part and one.item is None)


def _first(directories: Sequence[Path], is_wanted: Callable[[BenchColumn], bool]) -> list[BenchColumn]:
    for directory in directories:
        found = [one for one in _read_directory(directory) if is_wanted(one)]
        if found:
            return sorted(found, key=lambda one: not one.is_kept)
    return []


@functools.cache
def _read_directory(directory: Path) -> list[BenchColumn]:
    """Return every shape of every record, read once for all items. An invalid file is named once."""
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            is_kept = record["allocator"] == KEPT
            found += [BenchColumn(line, record, line["part"], str(line["shape"]), line["item"], is_kept, path) for line in record["shapes"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(
                f"qgoft: left out: {path} is not a complete benchmark record ({format_exception(error)}); remove it, or run the benchmark again",
                file=sys.stderr,
            )
    return found


def _is_of(one: BenchColumn, name: str, shape: str) -> bool:
    is_kind = shape == one.part or (one.part == "model" and one.shape.lower().startswith(shape))
    return is_kind and one.item in (None, "/".join(PRINTED[name]))


def cost_tables(name: str, measured: Sequence[BenchColumn]) -> list[Table]:
    """Return the measured and the printed costs of an item."""
    paper, table = PRINTED[name]
    tables = []
    for number, found in enumerate(measured):
        ours = shape_table(number, found.line, found.record)
        ours.name, hardware = f"{name}-measured{number or ''}", found.record["hardware"]
        ours.notes.append(
            f"measured on {hardware['device']} ({hardware['processor']}), {hardware['threads']} threads, {found.record['dtype']}, "
            f"{found.record['repeats']} repeats, allocator: {found.record['allocator']}, commit {str(found.record['commit'])[:7]}; make bench measures it here"
        )
        ours.notes.append(f"record: {place_name(found.path)}")
        tables.append(ours)
    if not measured:
        tables.append(
            Table(f"{name}-measured", f"{name}: not measured yet", ["shape"], notes=["make bench measures it (BENCH=paper on a GPU)"])
        )
    tables.append(published_table(f"{name}-published", paper, table))
    return tables
