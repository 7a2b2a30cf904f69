"""Printed averages, recomputed by each table's own rule."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from qgoft.audit.findings import Finding
from qgoft.config.suites import suite_info
from qgoft.report.published import load_figures

Rule = Callable[[Sequence[float]], float]
# Questions of MMLU in Hendrycks's groups, anatomy under other: STEM, social sciences, humanities, other.
MMLU_QUESTIONS = (3018, 3077, 4705, 3242)


def plain_mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def mean_of_groups(values: Sequence[float]) -> float:
    """VTAB-1K: the mean of the means of natural, specialised and structured tasks."""
    rest = iter(values)
    return statistics.fmean(statistics.fmean(itertools.islice(rest, len(tasks))) for tasks in suite_info("vtab").groups.values())


def mean_of_questions(values: Sequence[float]) -> float:
    """MMLU: the mean over questions."""
    return sum(value * count for value, count in zip(values, MMLU_QUESTIONS, strict=True)) / sum(MMLU_QUESTIONS)


# Tables with a column `avg`, and the rule that most of their rows follow.
TABLES: dict[tuple[str, str], tuple[str, Rule]] = {
    ("goft-icml2024", "table1"): ("the mean of the tasks", plain_mean),
    ("goft-icml2024", "table3"): ("the mean of the group means", mean_of_groups),
    ("psoft-iclr2026", "table2"): ("the mean of the tasks", plain_mean),
    ("psoft-iclr2026", "table3"): ("the mean of the group means", mean_of_groups),
    ("psoft-iclr2026", "table5"): ("the mean of the tasks", plain_mean),
    ("psoft-iclr2026", "table15"): ("the mean of the tasks", plain_mean),
}
# Other rules by which a row may have been averaged.
OTHERS: dict[str, Rule] = {"the plain mean": plain_mean}


@dataclass(frozen=True)
class Average:
    """A printed average, its printed values, and its place in the paper."""

    where: str
    values: list[float]
    printed: float
    said: str
    rule: Rule


def check_averages() -> tuple[list[Finding], int]:
    """Return the findings, and the number of checked averages."""
    averages = [*_of_tables(), *_of_mmlu()]
    findings = []
    for average in averages:
        follows = average.rule(average.values)
        unit = _unit([*average.values, average.printed])
        if abs(follows - average.printed) <= unit / 2 + 1e-9:
            continue
        # Each value may be off by half a unit; the average is rounded, or truncated by up to a whole unit.
        is_rounding = -unit - 1e-9 <= follows - average.printed < 1.5 * unit
        other = next((name for name, rule in OTHERS.items() if _could_be(rule, average, unit)), None)
        text = f"{follows:.{_decimals(unit)}f}, {average.said}"
        if not is_rounding and other:
            text += f"; printed is {other}"
        if is_rounding:
            text += "; the values are rounded, and the average is rounded or cut off"
        findings.append(Finding("averages", average.where, f"{average.printed:g}", text, "certain", is_explained=is_rounding))
    return findings, len(averages)


def _could_be(rule: Rule, average: Average, unit: float) -> bool:
    return rule is not average.rule and abs(rule(average.values) - average.printed) <= unit / 2 + 1e-9


def _of_tables() -> list[Average]:
    found = []
    for (paper, table), (said, rule) in TABLES.items():
        for name, row in load_figures(paper, table)["rows"].items():
            if isinstance(row["avg"], float | int) and all(isinstance(value, float | int) for value in row["values"]):
                found.append(Average(f"{paper} {table}, {name}, average", row["values"], row["avg"], said, rule))
    return found


def _of_mmlu() -> list[Average]:
    """Return the averages of table 2 of GOFT, which are among its values."""
    printed: dict[str, Any] = load_figures("goft-icml2024", "table2")
    found = []
    for name, row in printed["rows"].items():
        values = dict(zip(printed["columns"], row["values"], strict=True))
        for shots in (5, 0):
            groups = [values[f"mmlu{shots}_{group}"] for group in ("stem", "social", "hum", "other")]
            where = f"goft-icml2024 table2, {name}, MMLU average with {shots} examples"
            found.append(Average(where, groups, values[f"mmlu{shots}_avg"], "the mean over questions", mean_of_questions))
    return found


def _unit(values: Sequence[float]) -> float:
    """Return the unit of the last printed digit."""
    return float(10.0 ** min(int(Decimal(str(value)).as_tuple().exponent) for value in values))


def _decimals(unit: float) -> int:
    return max(0, -int(Decimal(str(unit)).as_tuple().exponent)) if unit < 1 else 0
