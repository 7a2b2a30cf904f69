"""Printed numbers of trainable parameters, recomputed from the architectures, under what the text states and under what else it may have been."""

from collections.abc import Sequence
from dataclasses import dataclass

from qgoft.audit.findings import Finding
from qgoft.report.counts import EXPLAINED, REASONS, agrees


@dataclass(frozen=True)
class Reading:
    """One way to count a printed row: in words, and what it gives."""

    words: str
    count: int


@dataclass(frozen=True)
class PrintedCount:
    """A printed count, the reading that the paper's text states, and the others that were tried.

    Args:
        total: parameters of the model, where the count is printed as a share of them.
    """

    paper: str
    table: str
    row: str
    printed: str
    total: int
    stated: Reading
    others: Sequence[Reading] = ()


def check_counts(counts: Sequence[PrintedCount]) -> list[Finding]:
    """Every count that is not what its paper states; with the other reading that gives it, where there is one."""
    findings = []
    for count in counts:
        if agrees(count.stated.count, count.printed, count.total):
            continue
        other = next((reading for reading in count.others if agrees(reading.count, count.printed, count.total)), None)
        place = (count.paper, count.table, count.row)
        follows = f"{count.stated.count:,} ({count.stated.words})"
        if other is not None:
            follows += f"; what is printed is {other.count:,} ({other.words})"
        elif reason := REASONS.get(place):
            follows += f"; {reason}"
        sure = "certain" if other is not None else "certain that it differs"
        findings.append(Finding("counts", f"{count.paper} {count.table}, {count.row}", count.printed, follows, sure, place in EXPLAINED))
    return findings
