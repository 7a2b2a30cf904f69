"""Printed numbers of trainable parameters, recomputed from the architectures as the text states and in other plausible ways."""

from collections.abc import Sequence
from dataclasses import dataclass

from qgoft.audit.findings import Finding
from qgoft.report.counts import EXPLAINED, REASONS, agrees


@dataclass(frozen=True)
class Reading:
    """One way to count a printed row, and its result."""

    words: str
    count: int


@dataclass(frozen=True)
class PrintedCount:
    """A printed count, the count as the paper's text states it, and the other counts that were tried.

    Args:
        total: parameters of the model, if the count is printed as a percentage.
    """

    paper: str
    table: str
    row: str
    printed: str
    total: int
    stated: Reading
    others: Sequence[Reading] = ()


def check_counts(counts: Sequence[PrintedCount]) -> list[Finding]:
    """Return every count that differs from the paper's statement, with the reading that reproduces it, if any."""
    findings = []
    for count in counts:
        if agrees(count.stated.count, count.printed, count.total):
            continue
        other = next((reading for reading in count.others if agrees(reading.count, count.printed, count.total)), None)
        place = (count.paper, count.table, count.row)
        follows = f"{count.stated.count:,} ({count.stated.words})"
        if other is not None:
            follows += f"; printed is {other.count:,} ({other.words})"
        elif reason := REASONS.get(place):
            follows += f"; {reason}"
        sure = "certain" if other is not None else "certain that it differs"
        findings.append(Finding("counts", f"{count.paper} {count.table}, {count.row}", count.printed, follows, sure, place in EXPLAINED))
    return findings
