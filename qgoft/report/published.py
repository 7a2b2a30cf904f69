"""Transcribed figures of the papers (results/published/*.yaml)."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "results" / "published"


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
    data: dict[str, Any] = yaml.safe_load((FOLDER / f"{paper}.yaml").read_text())
    return data
