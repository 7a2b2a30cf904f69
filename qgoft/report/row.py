"""Rows of score tables: the records of a method on several tasks, and their means."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from qgoft.config.settings import method_label
from qgoft.records import Record
from qgoft.report.items import Column, Item, group_by_training


@dataclass
class Row:
    """One method@variant on one backbone.

    Attributes:
        records: task -> records of its finished seeds.
        is_context: read from results/measured and shown next to the user's own rows.
        is_altered: the settings are not those of the protocol.
        planned: task -> number of requested seeds.
        failed: task -> records of its other seeds.
        targets: target set, if an item mixes several.
        penalty: penalty weight, if an item mixes several.
        left_out: number of runs on other data or weights than the newest run.
        others: number of runs with equal settings on other data, weights or number of processes, which are not shown.
        sources: sources of the learning rates, as stated by the current recipes.
    """

    label: str
    records: dict[str, list[Record]]
    is_context: bool = False
    is_altered: bool = False
    planned: dict[str, int] = field(default_factory=dict)
    failed: dict[str, list[Record]] = field(default_factory=dict)
    targets: str | None = None
    penalty: float | None = None
    left_out: int = 0
    others: int = 0
    sources: set[str] = field(default_factory=set)

    @property
    def is_compared(self) -> bool:
        """Return True if the row may be compared with other rows."""
        is_plain = not self.is_context and not self.is_altered and not self.label.startswith("random") and bool(self.records)
        return is_plain and not any(record["selection"] == "best_reported" for record in self.all())

    @property
    def is_ranked(self) -> bool:
        """Return True if the row may be the best of its column: never on a subset of the data."""
        return self.is_compared and not any(record["provenance"]["data"]["subset"] for record in self.all())

    def seeds_missing(self) -> str:
        """Return `1 of 3 seeds` if that holds for every requested task, else an empty string."""
        counts = {(len(self.records.get(task, [])), planned) for task, planned in self.planned.items()}
        if len(counts) != 1 or self.is_context:
            return ""
        done, planned = counts.pop()
        return f"{done} of {planned} seeds" if 0 < done < planned else ""

    def marks(self) -> list[str]:
        """Return what restricts a comparison with other rows: altered, 1 of 3 seeds, subset, best reported."""
        records = self.all()
        found = {
            "altered": self.is_altered,
            self.seeds_missing(): bool(self.seeds_missing()),
            "subset": any(record["provenance"]["data"]["subset"] for record in records),
            "best reported": any(record["selection"] == "best_reported" for record in records),
        }
        return [mark for mark, holds in found.items() if holds]

    def flags(self, *, is_paper: bool = False) -> str:
        """Return the end of the row's label: an asterisk for a committed row, and its marks unless the table has them as notes."""
        flags = ["*"] if self.is_context else []
        return "".join(f" {flag}" for flag in [*flags, *([] if is_paper else (f"({mark})" for mark in self.marks()))])

    def all(self) -> list[Record]:
        """Return the finished records of all tasks."""
        return [record for records in self.records.values() for record in records]

    def any(self) -> list[Record]:
        """Return the finished records, or the failed ones if there are none."""
        return self.all() or [record for records in self.failed.values() for record in records]


def row_label(record: Record) -> str:
    """Return the label of a record's row: lora@r8, random + lora@r8."""
    name = method_label(record["method"], record["variant"])
    return f"random + {name}" if record["settings"]["model"]["init"] == "random" else name


def scores_of(row: Row, column: Column) -> list[float]:
    """Return the scores of a row's seeds in a column, or the costs of its trainings."""
    if column.task is None:
        costs: dict[str, float] = {}
        # Of tasks that share a training, the run that trained has the cost.
        for training, record in group_by_training(row.all()):
            if (value := column.value(record)) is not None:
                costs.setdefault(training, value)
        return list(costs.values())
    return [column.value(record) for record in row.records.get(column.task, [])]


def mean_score(row: Row, column: Column) -> float | None:
    """Return the mean score of a row in a column, or None without a record."""
    values = scores_of(row, column)
    return statistics.fmean(values) if values else None


def majority_baseline(rows: Iterable[Row], column: Column) -> float | None:
    """Return the score of always predicting the majority class, or None without a record in the column."""
    records = [record for row in rows for record in row.records.get(column.task or "", [])]
    return column.value(records[0], "majority_baseline") if records else None


def averages_of(row: Row, item: Item) -> list[float | None]:
    """Return the group means and the average of a row; None if a task is missing."""
    return item.averages([mean_score(row, column) for column in item.columns])
