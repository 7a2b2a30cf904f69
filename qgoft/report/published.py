"""Transcribed figures of the papers (results/published/*.yaml)."""

import functools
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from qgoft.config.locations import PUBLISHED
from qgoft.report.items import Item

# Largest difference between a printed average and the mean of the printed cells that rounding explains; some papers round to tenths.
ROUNDING = 0.11


@dataclass(frozen=True)
class PublishedRow:
    """One row of a printed table. A value is a number, `oom`, or None if the cell is empty."""

    paper: str
    table: str
    name: str  # of the row
    method: str
    variant: str | None
    params: str | None
    values: dict[str, Any]
    average: float | None
    targets: str | None = None  # target set, if the table mixes several
    penalty: float | None = None
    memory_gb: Any = None  # if it is not among the values

    def printed(self, column: str) -> Any:
        """Return the value of a column, or None."""
        return self.memory_gb if column == "memory_gb" and column not in self.values else self.values.get(column)


def load_rows(paper: str, table: str) -> list[PublishedRow]:
    """Return all rows of one table in print order."""
    printed, rows = load_figures(paper, table), []
    for label, row in printed["rows"].items():
        values = dict(zip(printed["columns"], row["values"], strict=True))
        params = f"{values['params']:,}" if "params" in values else row.get("params")
        more = (row.get(name) for name in ("avg", "targets", "penalty", "memory_gb"))
        rows.append(PublishedRow(paper, table, label, row["method"], row["variant"], params, values, *more))
    return rows


def load_figures(paper: str, table: str) -> dict[str, Any]:
    """Return one printed table: title, columns, and rows by name."""
    printed: dict[str, Any] = load_paper(paper)[table]
    return printed


@functools.cache
def load_paper(paper: str) -> dict[str, Any]:
    """Return all transcribed figures of a paper."""
    data: dict[str, Any] = yaml.safe_load((PUBLISHED / f"{paper}.yaml").read_text())
    return data


def printed_averages(row: PublishedRow, item: Item) -> list[float | None]:
    """Return the group means, computed from the printed cells, and the printed average."""
    if not item.has_average:
        return []
    printed = row.printed("average") if row.average is None else row.average
    return [*(None if mean is None else round(mean, 2) for mean in _recomputed_averages(row, item)[:-1]), printed]


def _recomputed_averages(row: PublishedRow, item: Item) -> list[float | None]:
    cells = (row.printed(column.printed) for column in item.columns)
    return item.averages([value if isinstance(value, float | int) else None for value in cells])


def is_average_consistent(row: PublishedRow, item: Item) -> bool:
    """Return True if the printed average is that of the printed cells by the table's rule, up to rounding."""
    averages = (*printed_averages(row, item)[-1:], *_recomputed_averages(row, item)[-1:])
    known = [value for value in averages if isinstance(value, float | int)]
    return len(known) < 2 or abs(known[0] - known[1]) <= ROUNDING


def printed_cells(row: PublishedRow, item: Item) -> list[str]:
    """Return the printed row in the columns of an item."""
    cells, extra = ([format_value(row.printed(c.printed)) for c in columns] for columns in (item.columns, item.extra_columns))
    return [*cells, *(format_value(average) for average in printed_averages(row, item)), *extra]


def format_value(value: Any) -> str:
    """Return a value as printed, with at least two decimals, so that the values of a column align."""
    if isinstance(value, float | int):
        places = -Decimal(repr(round(float(value), 6))).as_tuple().exponent  # type: ignore[operator]
        return f"{value:.{max(2, places)}f}"
    return "-" if value is None else str(value).upper()
