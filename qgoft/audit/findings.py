"""Findings of the checks, and their table."""

from collections.abc import Sequence
from dataclasses import dataclass

from qgoft.report.table import Table


@dataclass(frozen=True)
class Finding:
    """One place where a printed value differs from the value that follows.

    Args:
        check: averages, counts, granularity, wins, sizes or operator; `ARGS=--only=<check>` repeats it.
        where: paper, table and row.
        printed: the printed value.
        follows: the value that follows from the other printed values, or from the method's definition.
        sure: certain (arithmetic), or the strength of the evidence.
        is_explained: rounding, or another statement of the paper or its source, explains the difference.
    """

    check: str
    where: str
    printed: str
    follows: str
    sure: str
    is_explained: bool = False


def build_findings(findings: Sequence[Finding], checked: dict[str, int]) -> list[Table]:
    """Return the table of inconsistencies and the table of explained differences.

    Args:
        checked: check -> number of checked figures.
    """
    columns = ["where", "printed", "follows", "how sure", "repeat with"]
    tables = []
    for name, title, is_explained in (
        ("audit", "printed values that do not follow", False),
        ("audit-explained", "differences that have an explanation", True),
    ):
        table = Table(name, title, columns)
        for finding in (f for f in findings if f.is_explained == is_explained):
            if tables_break(table, finding):
                table.rules_before.append(len(table.rows))
            table.rows.append([finding.where, finding.printed, finding.follows, finding.sure, f"make audit ARGS=--only={finding.check}"])
        tables.append(table)
    tables[0].notes = ["checked: " + ", ".join(f"{number} {name}" for name, number in checked.items())]
    return tables


def tables_break(table: Table, finding: Finding) -> bool:
    """Put a rule between checks."""
    return bool(table.rows) and not table.rows[-1][-1].endswith(f"={finding.check}")
