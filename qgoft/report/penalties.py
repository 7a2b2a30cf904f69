"""Retention of qGOFT by the weight of its penalty, next to GOFT."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from qgoft.records import Record
from qgoft.records.retention import Retention
from qgoft.report.retention_rows import (
    AT_EQUAL,
    Place,
    RetentionRow,
    format_estimate,
    format_mean,
    retention_gap,
    retention_gap_at_equal_target,
    suite_table,
)
from qgoft.report.table import Table

SETTING, METHOD, EXACT = "method.penalty", "qgoft", "goft"


def build_penalties(rows: Sequence[RetentionRow], protocol: str, suite: str) -> Table | None:
    """Return one row per weight, on the tasks and seeds of the smallest one, and GOFT; None with fewer than two weights."""
    by_weight: dict[float, dict[Place, tuple[Record, Retention]]] = defaultdict(dict)
    for row in rows:
        if row.method == METHOD and set(row.own_settings) <= {SETTING}:
            for place, run in row.runs.items():
                by_weight[run[0]["settings"]["method"]["penalty"]][place] = run
    places = set(by_weight[min(by_weight)]) if by_weight else set()
    shown = [RetentionRow(f"{METHOD}, λ={weight:g}", by_weight[weight]) for weight in sorted(by_weight)]
    shown += [row for row in rows if row.method == EXACT and not row.own_settings]
    shown = [dataclasses.replace(row, runs={place: run for place, run in row.runs.items() if place in places}) for row in shown]
    shown = [row for row in shown if row.runs]
    if sum(row.label != EXACT for row in shown) < 2:
        return None
    first = shown[0]
    less = f"minus {first.label.partition(', ')[2]}"
    columns = ["method", "target", "retention %", less, f"{less}, {AT_EQUAL}", "runs"]
    table = suite_table("retention-lambda", "Retention by penalty weight", protocol, suite, columns)
    for row in shown:
        gaps = [None if row is first else gap(row, first) for gap in (retention_gap, retention_gap_at_equal_target)]
        cells = [format_mean(row.targets()), format_mean(row.retentions()), *map(format_estimate, gaps)]
        table.add_row([row.label, *cells, str(len(row.runs))], row.keys())
    tasks = ", ".join(sorted({task for task, _ in places}))
    table.notes = [f"tasks: {tasks}; columns as in table retention-{suite}"]
    return table
