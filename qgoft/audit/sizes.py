"""Printed sizes of data sets, compared with the official ones."""

import re
from collections.abc import Mapping
from decimal import Decimal

from qgoft.audit.findings import Finding
from qgoft.report.published import load_figures


def check_sizes(official: Mapping[str, tuple[int, int]]) -> tuple[list[Finding], int]:
    """Return the findings, and the number of checked sizes.

    Args:
        official: GLUE task -> rows of training and of validation.
    """
    printed = load_figures("goft-icml2024", "table6")
    findings, checked = [], 0
    for task, row in printed["rows"].items():
        for part, shown, rows in zip(("train", "dev"), row["values"], official[task], strict=False):
            checked += 1
            if not could_be(str(shown), rows):
                findings.append(Finding("sizes", f"goft-icml2024 table6, {task} {part}", str(shown), f"{rows:,} rows", "certain"))
    return findings, checked


def could_be(shown: str, rows: int) -> bool:
    """Return True if a number of rows may be printed so: 872 exactly, 8.5k or 8.6k for 8,551 (truncated or rounded)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", shown)
    if match is None:
        raise ValueError(f"{shown!r} is not a size; expected a form such as 872 or 8.5k")
    if not match[2]:
        return int(match[1]) == rows
    number = Decimal(match[1])
    unit = Decimal(1).scaleb(int(number.as_tuple().exponent))
    return abs(Decimal(rows) / 1000 - number) < unit
