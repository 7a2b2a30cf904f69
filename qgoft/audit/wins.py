"""Win, tie and loss counts, which must sum to the number of questions."""

from qgoft.audit.findings import Finding
from qgoft.report.published import load_figures

QUESTIONS = 80


def check_wins() -> tuple[list[Finding], int]:
    """Return the findings, and the number of checked rows."""
    rows = load_figures("goft-icml2024", "figure3")["rows"]
    findings = [
        Finding(
            "wins",
            f"goft-icml2024 figure3, {name}",
            "/".join(map(str, row["values"])),
            f"they sum to {sum(row['values'])}, not {QUESTIONS}",
            "certain",
        )
        for name, row in rows.items()
        if sum(row["values"]) != QUESTIONS
    ]
    return findings, len(rows)
