"""Checks of the papers' printed figures, from the transcribed tables only, so that anyone can repeat each finding."""

from qgoft.audit.averages import check_averages
from qgoft.audit.counts import check_counts
from qgoft.audit.findings import Finding, build_findings
from qgoft.audit.granularity import check_granularity
from qgoft.audit.sizes import check_sizes
from qgoft.audit.wins import check_wins

__all__ = [
    "Finding",
    "build_findings",
    "check_averages",
    "check_counts",
    "check_granularity",
    "check_sizes",
    "check_wins",
]
