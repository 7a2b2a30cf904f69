"""The items that are no runs but costs: GOFT's table 10, PSOFT's tables 19 to 22 and figure 4 (b), from the record of a benchmark."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft.errors import one_line
from qgoft.report.bench import published_table, shape_table
from qgoft.report.layout import Table

# Item -> where its printed figures are, and what of the benchmark stands beside them.
PRINTED = {
    "table10": ("goft-icml2024", "table10"),
    "psoft-table19": ("psoft-iclr2026", "table19"),
    "psoft-table20": ("psoft-iclr2026", "table20"),
    "psoft-table21": ("psoft-iclr2026", "table21"),
    "psoft-table22": ("psoft-iclr2026", "table22"),
    "psoft-figure4": ("psoft-iclr2026", "figure4b"),
}
# What the C library does with freed memory: the usual, by which it returns some and faults it in again, or nothing of it.
SYSTEM, KEPT = "system default", "keeps freed memory"


@dataclass(frozen=True)
class Measured:
    """One shape of a benchmark, and the record it is from."""

    line: dict[str, Any]
    record: dict[str, Any]


def read_bench(folders: Sequence[Path], name: str, shape: str) -> list[Measured]:
    """What the first folder that has any holds of an item: shapes of a part of the benchmark (layer, block), or of a model by a word of its name,
    that are not another item's. Those measured with freed memory kept stand first: the others are noisier."""
    for folder in folders:
        found = []
        for path in sorted(folder.glob("*.json")):
            try:
                record = json.loads(path.read_text())
                is_usual = record["allocator"] != KEPT
                found += [(is_usual, Measured(line, record)) for line in record["shapes"] if _is_of(line, name, shape)]
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(
                    f"qgoft: left out: {path} is no whole record of a benchmark ({one_line(error)}); remove it, or make it again",
                    file=sys.stderr,
                )
        if found:
            return [one for _, one in sorted(found, key=lambda pair: pair[0])]
    return []


def _is_of(line: dict[str, Any], name: str, shape: str) -> bool:
    is_kind = shape == line["part"] or (line["part"] == "model" and str(line["shape"]).lower().startswith(shape))
    return is_kind and line["item"] in (None, "/".join(PRINTED[name]))


def cost_tables(name: str, measured: Sequence[Measured]) -> list[Table]:
    """What was measured of an item, and what is printed."""
    paper, table = PRINTED[name]
    tables = []
    for number, found in enumerate(measured):
        ours = shape_table(number, found.line, found.record)
        ours.name, hardware = f"{name}-measured{number or ''}", found.record["hardware"]
        ours.notes.append(
            f"measured on {hardware['device']} ({hardware['processor']}), {hardware['threads']} threads, {found.record['dtype']}, "
            f"{found.record['repeats']} repeats, allocator: {found.record['allocator']}, commit {str(found.record['commit'])[:7]}; make bench measures it here"
        )
        tables.append(ours)
    if not measured:
        tables.append(
            Table(f"{name}-measured", f"{name}: not measured yet", ["shape"], notes=["make bench measures it (BENCH=paper on a GPU)"])
        )
    tables.append(published_table(f"{name}-published", paper, table))
    return tables
