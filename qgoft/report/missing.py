"""Runs without a record, by item, with their estimated cost."""

import collections
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qgoft.config.locations import PUBLISHED
from qgoft.records import Record
from qgoft.report.page import Section
from qgoft.report.row import Row
from qgoft.report.table import Table
from qgoft.sweep.forecast import MeanSeconds, sum_seconds
from qgoft.sweep.items import ItemPlan
from qgoft.sweep.planned_run import as_dict


@dataclass
class MissingRuns:
    """Runs of an item without a record.

    Attributes:
        planned: number of runs of the item.
        runs: (task, method) -> number of runs without a record.
        seconds: estimate for one process, from records of the protocol; None if unknown.
    """

    item: str
    protocol: str
    planned: int
    runs: collections.Counter[tuple[str, str]]
    seconds: float | None

    def row(self, hours: dict[str, Any]) -> list[str]:
        """Return the row of the table.

        Args:
            hours: the estimates of `python -m qgoft estimate --write`.
        """
        per_run = hours["hours_a_run"].get(self.protocol, {}).get(self.item, {})
        if all(task in per_run for task, _ in self.runs):  # a task that was added to the item has no estimate
            work = sum(per_run[task] * number for (task, _), number in self.runs.items())
            cost = f"{work:.0f} {'CPU core hours' if self.protocol == 'small' else 'GPU hours'}"
        elif self.seconds is not None:
            cost = f"{self.seconds / 3600:.1f} CPU core hours"
        else:
            cost = "unknown"
        command = f"make {self.item} PROTOCOL={self.protocol}"
        return [self.item, self.protocol, str(self.planned), str(self.runs.total()), cost, command]


def missing_runs(plan: ItemPlan, protocol: str, rows: Iterable[Row], known: MeanSeconds) -> MissingRuns:
    """Return the runs of an item without a record. Diverged runs count as recorded, since they would diverge again.

    Args:
        known: durations of finished runs.
    """
    runs: collections.Counter[tuple[str, str]] = collections.Counter()
    for overrides, seeds in plan.overrides:
        asked = as_dict(overrides)
        runs[asked["task"], asked["method"]] += len(seeds)
    planned = runs.total()
    recorded = {record["key"]: record for row in rows for record in _recorded(row)}
    runs -= collections.Counter((f"{record['suite']}/{record['task']}", record["method"]) for record in recorded.values())
    seconds = sum_seconds(known, protocol, ((task.partition("/")[0], method, number) for (task, method), number in runs.items()))
    return MissingRuns(plan.item.name, protocol, planned, runs, seconds)


def _recorded(row: Row) -> list[Record]:
    diverged = (record for records in row.failed.values() for record in records if record["status"] == "diverged")
    return [*row.all(), *diverged]


def missing_section(missing: Sequence[MissingRuns], benches: Sequence[str]) -> Section | None:
    """Return the table of items with missing runs, or None.

    Args:
        benches: items of the benchmark that were not measured on a GPU.
    """
    hours = json.loads((PUBLISHED / "hours.json").read_text())
    rows = [one.row(hours) for one in missing if one.runs]
    rows += [[name, "a CUDA device", "-", "-", "unknown", "make bench BENCH=paper"] for name in benches]
    if not rows:
        return None
    notes = [
        "runs that two items share count in both",
        f"estimates, for a CPU core of {hours['core_speed']:g} TFLOP/s (pocket: from records of the same suite and method), and a GPU of "
        f"{hours['speed'][0]:g} in float32 and {hours['speed'][1]:g} in bfloat16 (python -m qgoft estimate --help lists what is not included)",
    ]
    table = Table("missing", "runs without a record", ["item", "protocol", "runs planned", "runs left", "cost", "command"], rows, notes)
    return Section("missing", table.title, [table], paper="Records")
