"""Health of the pocket benchmark: for each task, whether pretraining helps, whether tuning helps, and how much seeds differ."""

import statistics
from collections.abc import Mapping, Sequence

from qgoft.config.suites import suite_info, task_title
from qgoft.report.items import Column, Item, item_of
from qgoft.report.row import Row, majority_baseline, mean_score, scores_of
from qgoft.report.rows import control_rows
from qgoft.report.table import MISSING, Table

FULL, ADAPTER, RANDOM = "full", "lora@r8", "random + lora@r8"
# Differences that a task should reach, and the standard deviation over seeds that it should not exceed, in points.
LEAST_DIFFERENCE, LARGEST_DEVIATION = 10.0, 4.0
NARROW = "†"
# Image tasks whose classes differ in what pretraining predicted (pocket/vision/scenes.py), so that a trained head finds them untuned.
PRETRAINED = {
    "cifar": "shapes and patterns",
    "caltech101": "shapes",
    "dtd": "patterns",
    "eurosat": "patterns",
    "resisc45": "shapes and patterns",
    "clevr_dist": "sizes",
    "dmlab": "positions",
    "dsprites_ori": "angles",
}


def is_main_table(suite: str, name: str) -> bool:
    """Return True if an item is the table of a suite under protocol pocket."""
    return item_of(suite, "pocket").name == name


def build_health(rows_of: Mapping[str, Sequence[Row]], jobs: int) -> Table | None:
    """Return a row for each task of protocol pocket, or None without records.

    Args:
        rows_of: suite -> rows of its table under protocol pocket, without the controls.
        jobs: processes that compose the settings of the controls.
    """
    columns = ["task", "Full FT", "LoRA", "random + LoRA", "untuned", "majority", "LoRA - random", "full - untuned", "SD over seeds"]
    table = Table("benchmark-health", "Benchmark health: what each task of protocol pocket separates", columns)
    for suite, rows in rows_of.items():
        item = item_of(suite, "pocket")
        shown = [*rows, *control_rows("pocket", suite, "", {row.label for row in rows}, [], jobs)]
        by_label = {row.label: row for row in shown if row.records}
        for column in _columns(item):
            _add_task(table, suite, column, by_label)
    narrow = {title for title, *values in table.rows if values[-2].endswith(NARROW)}
    reasons = [f"{title} {what}" for task, what in PRETRAINED.items() if (title := task_title("vtab", task)) in narrow]
    table.notes = [
        "mean test score over the seeds; random: the same architecture with random weights; untuned: a trained head on the frozen backbone "
        "(decoders: the pretrained model as it is)",
        f"{NARROW}: a difference below {LEAST_DIFFERENCE:g} points, or a standard deviation above {LARGEST_DEVIATION:g}",
        "SD over seeds: median over the methods with at least three seeds",
        *(["full - untuned is small where pretraining predicted what the classes differ in: " + ", ".join(reasons)] if reasons else []),
    ]
    return table if table.rows else None


def _columns(item: Item) -> list[Column]:
    """Return the first column of each task in percent, or its average if it has one."""
    columns = {column.task: column for column in item.all_columns if column.printed.endswith("_avg")}
    for column in item.all_columns:
        if column.task is not None and column.metric != "score":  # ratings are from 0 to 10
            columns.setdefault(column.task, column)
    return list(columns.values())


def _add_task(table: Table, suite: str, column: Column, rows: Mapping[str, Row]) -> None:
    untuned = "base" if suite_info(suite).is_decoder else "linear"
    labels = (FULL, ADAPTER, RANDOM, untuned)
    means = [mean_score(rows[label], column) if label in rows else None for label in labels]
    if all(value is None for value in means):
        return
    full, adapter, random, start = means
    deviations = [statistics.stdev(scores) for row in rows.values() if len(scores := scores_of(row, column)) >= 3]
    for number, label in enumerate(labels, start=1):
        if label in rows:
            table.sources[len(table.rows), number] = [record["key"] for record in rows[label].records.get(column.task or "", [])]
    values = [MISSING if value is None else f"{value:.1f}" for value in (*means, majority_baseline(rows.values(), column))]
    deviation = statistics.median(deviations) if deviations else None
    spread = MISSING if deviation is None else f"{deviation:.1f}{NARROW if deviation > LARGEST_DEVIATION else ''}"
    table.rows.append([task_title(suite, column.task or ""), *values, _difference(adapter, random), _difference(full, start), spread])


def _difference(one: float | None, other: float | None) -> str:
    if one is None or other is None:
        return MISSING
    return f"{one - other:+.1f}{NARROW if one - other < LEAST_DIFFERENCE else ''}"
