"""Granularity: whether a row of percentages looks like fractions of a small number of items.

An accuracy on n items is k / n. Printed with one decimal, all values are possible for n >= 1000; for smaller n some are not. A row
whose values are possible far more often than by chance was probably measured on n items. Every n from 20 to 500 is tried, so the
probability is multiplied by the number of tries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache

from qgoft.audit.findings import Finding
from qgoft.report.published import load_figures

DENOMINATORS = range(20, 501)
LEVEL = 1e-3
# Tables of single percentages with one decimal.
TABLES = (("goft-icml2024", "table3"), ("psoft-iclr2026", "table3"))


@dataclass(frozen=True)
class Grain:
    """The number of items that explains a row best: how many values are fractions of it, and their probability by chance."""

    items: int
    fitting: int
    values: int
    probability: float

    @property
    def is_flagged(self) -> bool:
        return self.probability * len(DENOMINATORS) < LEVEL


@cache
def shares(items: int) -> frozenset[int]:
    """Return the tenths of a percent that k / items can be, rounded half up."""
    tenth = Decimal("0.1")
    return frozenset(int((Decimal(100 * k) / items).quantize(tenth, ROUND_HALF_UP) * 10) for k in range(items + 1))


def find_grain(percentages: Sequence[float]) -> Grain:
    """Return the best of all denominators."""
    tenths = [round(value * 10) for value in percentages]
    return min((_grain(tenths, items) for items in DENOMINATORS), key=lambda grain: grain.probability)


def _grain(tenths: Sequence[int], items: int) -> Grain:
    possible = shares(items)
    fitting, n = sum(value in possible for value in tenths), len(tenths)
    chance = len(possible) / 1001
    probability = sum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(fitting, n + 1))
    return Grain(items, fitting, n, probability)


def check_granularity() -> tuple[list[Finding], int]:
    """Return the findings, and the number of checked rows."""
    findings, checked = [], 0
    for paper, table in TABLES:
        for name, row in load_figures(paper, table)["rows"].items():
            values = row["values"]
            if not all(isinstance(value, float | int) for value in values):
                continue
            checked += 1
            grain = find_grain(values)
            if grain.is_flagged:
                findings.append(
                    Finding(
                        "granularity",
                        f"{paper} {table}, {name}",
                        f"{grain.fitting} of {grain.values} values are shares of {grain.items} items",
                        f"probably measured on {grain.items} items; a test set of VTAB-1K has 711 to 73,728",
                        f"p = {grain.probability:.0e} by chance, times {len(DENOMINATORS)} numbers of items that were tried",
                    )
                )
    return findings, checked
