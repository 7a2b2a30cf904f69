"""The transcribed figures of the papers (results/published/*.yaml)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "results" / "published"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a printed table. A value is a number, `oom`, or None where the cell is empty."""

    paper: str
    table: str
    method: str
    variant: str | None
    params: str
    values: dict[str, Any]
    average: float | None


def load_rows(paper: str, table: str) -> list[PublishedRow]:
    """All rows of one table, in the order of print."""
    data = yaml.safe_load((FOLDER / f"{paper}.yaml").read_text())
    printed = data[table]
    return [
        PublishedRow(
            paper,
            table,
            row["method"],
            row["variant"],
            row["params"],
            dict(zip(printed["columns"], row["values"], strict=True)),
            row["avg"],
        )
        for row in printed["rows"].values()
    ]


def load_figures(paper: str, table: str) -> dict[str, Any]:
    """One printed table as it stands: title, columns, and rows by name."""
    printed: dict[str, Any] = yaml.safe_load((FOLDER / f"{paper}.yaml").read_text())[table]
    return printed
