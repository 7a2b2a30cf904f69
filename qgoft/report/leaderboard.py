"""Leaderboard: the rows of an item with their time, memory, orthogonality and retention, and the Pareto front marked."""

import statistics
from collections.abc import Mapping, Sequence

from qgoft.records import RunFiles
from qgoft.records.retention import retention_of
from qgoft.report.bench import find_reference, ratios, step_seconds
from qgoft.report.charts import pareto_front, pareto_points
from qgoft.report.cost import BenchColumn
from qgoft.report.items import Item
from qgoft.report.names import display_label
from qgoft.report.row import Row, averages_of
from qgoft.report.table import MISSING, Table

FRONT = "*"


def build_leaderboard(item: Item, rows: Sequence[Row], measured: Sequence[BenchColumn], files: Mapping[str, RunFiles]) -> Table:
    """Return the rows by their average.

    Args:
        files: key of a run -> its files, with the retention if it is measured.
        measured: shapes of the benchmark on which the methods were timed. The first timing of a method counts.
    """
    costs: dict[str, tuple[dict, dict]] = {}
    for one in measured:
        for timing, reference in _pairs(one):
            costs.setdefault(display_label(timing["name"]), (timing, reference))
    front = {point.label for point in pareto_front(pareto_points(item, rows))}
    columns = ["method", "Avg", "#Param", "step x LoRA", "peak x LoRA", "orthogonality", "retention %", "front"]
    table = Table("leaderboard-cost", "Leaderboard: score, cost and retention, by the average", columns, has_methods=True)

    def average(row: Row) -> float:
        found = averages_of(row, item)[-1:]
        return float("-inf") if not found or found[0] is None else found[0]

    for row in sorted((row for row in rows if row.records and not row.is_context), key=average, reverse=True):
        errors = [error for record in row.all() if (error := record["orthogonality"]["max_error"]) is not None]
        ratio = peak = MISSING
        if (cost := costs.get(table.label(row.label))) is not None:
            timing, reference = cost
            ratio = f"{ratios(step_seconds(timing), step_seconds(reference))[0]:.2f}"
            peak = f"{timing['peak_bytes'] / reference['peak_bytes']:.2f}"
        table.sources[len(table.rows), 1] = [record["key"] for record in row.all()]
        table.rows.append(
            [
                row.label + row.flags(),
                MISSING if average(row) == float("-inf") else f"{average(row):.1f}",
                f"{row.all()[0]['params']['trainable']:,}",
                ratio,
                peak,
                f"{max(errors):.1e}" if errors else MISSING,
                _retention(row, files),
                FRONT if table.label(row.label) in front else "",
            ]
        )
    table.notes = [
        f"{FRONT}: no other row has a higher average with as few parameters",
        "orthogonality: largest max |R^T R - I| over the runs; a dash for methods without a rotation",
        "retention: of the backbone's other abilities, mean over the runs (make retention); a dash if it is not measured for all of them",
    ]
    for shape in dict.fromkeys(f"{one.shape}, {one.record['hardware']['processor']}" for one in measured):
        table.notes.append(f"time of a training step and peak memory: {shape} (scripts/bench.py --parts pocket --contenders METHOD)")
    return table


def _retention(row: Row, files: Mapping[str, RunFiles]) -> str:
    measured = [files[record["key"]].retention() if record["key"] in files else None for record in row.all()]
    found = [None if one is None else retention_of(one) for one in measured]
    known = [percent for percent in found if percent is not None]
    return f"{statistics.fmean(known):.1f}" if known and len(known) == len(found) else MISSING


def _pairs(one: BenchColumn) -> list[tuple[dict, dict]]:
    """Return each timing of a shape with that of the reference in its group."""
    name = one.record["reference"]
    return [(timing, find_reference(group, name)) for group in one.line["groups"] for timing in group]
