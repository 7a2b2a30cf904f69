"""The GLUE table: table 1 of GOFT, and PSOFT's table 2, measured beside published.

A cell is the mean over the seeds that are done, with the standard deviation over seeds where there are two or more. A missing cell is
a dash. The average is over tasks and stands only where every task is there.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qgoft.report.layout import Table
from qgoft.report.published import PublishedRow, load_rows
from qgoft.settings import method_label

Record = dict[str, Any]
NAMES = {"mnli": "MNLI", "sst2": "SST-2", "cola": "CoLA", "qqp": "QQP", "qnli": "QNLI", "rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B"}
# protocol -> (paper, table) whose rows stand beside; is_comparable says whether differences may be taken.
BESIDE = {
    "pocket": ("goft-icml2024", "table1", False),
    "small": ("goft-icml2024", "table1", False),
    "goft_icml24": ("goft-icml2024", "table1", True),
    "psoft_iclr26": ("psoft-iclr2026", "table2", True),
}
ORDER = {
    "goft-icml2024": ["mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb"],
    "psoft-iclr2026": ["cola", "stsb", "rte", "mrpc", "sst2", "qnli"],
}
PAPER_MODEL = "deberta-v3-base"
# Why our count stands beside another printed one.
COUNT_NOTES = {
    "oft": "#Param of oft: peft trains the skew-symmetric entries; the paper prints full b x b blocks",
    "adalora": "#Param of adalora: what is trained, at the starting rank; the paper prints the final budget",
}
PART = {"test": "test split", "halves": "second half of validation", "validation": "validation"}
RULE = {
    "last": "last step, no selection",
    "best_validation": "selected on validation",
    "best_reported": "best score on the reported part (not comparable)",
}


@dataclass
class Row:
    """One method@variant on one backbone: task -> records of its seeds."""

    label: str
    records: dict[str, list[Record]]
    is_context: bool = False  # from results/measured, beside the user's own rows
    is_altered: bool = False  # settings are not the protocol's own

    def mark(self) -> str:
        """What a reader must know before comparing the row with anything."""
        marks = ["*"] if self.is_context else []
        records = self.all()
        if self.is_altered:
            marks.append("(altered)")
        if any(record["provenance"]["data"]["subset"] for record in records):
            marks.append("(subset)")
        if any(record["selection"] == "best_reported" for record in records):
            marks.append("(best reported)")
        return "".join(f" {mark}" for mark in marks)

    def all(self) -> list[Record]:
        return [record for records in self.records.values() for record in records]


def row_label(record: Record) -> str:
    """lora@r8; a random backbone is said first."""
    name = method_label(record["method"], record["variant"])
    return f"random + {name}" if record["settings"]["model"]["init"] == "random" else name


def build_table(protocol: str, rows: list[Row]) -> Table:
    """Table 1 (or PSOFT's 2) under a protocol, from rows of done records."""
    paper, item, is_comparable = BESIDE[protocol]
    tasks = ORDER[paper]
    title = f"{'Table 1' if item == 'table1' else 'PSOFT table 2'} ({protocol})"
    name = item if paper.startswith("goft") else f"psoft-{item}"
    table = Table(
        name if protocol in ("pocket", "psoft_iclr26") else f"{name}-{protocol}",
        title,
        [title, "#Param", *(NAMES[task] for task in tasks), "Avg"],
    )
    for row in rows:
        table.rows.append(_cells(row, tasks))
        if is_comparable:
            published = _published(paper, item, row)
            if published:
                table.rows += _beside(row, published, tasks, is_comparable=_is_comparable(row))
    majority = _majority(rows, tasks)
    if majority:
        table.rows.append(majority)
    table.notes = _notes(protocol, rows, load_rows(paper, item), tasks, is_comparable)
    table.title = f"GLUE, protocol {protocol}"
    return table


def _values(row: Row, task: str) -> list[float]:
    return [record["metrics"][record["primary"]]["value"] for record in row.records.get(task, [])]


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ±{statistics.stdev(values):.1f}"


def _average(row: Row, tasks: list[str]) -> float | None:
    means = [statistics.fmean(values) for task in tasks if (values := _values(row, task))]
    return statistics.fmean(means) if len(means) == len(tasks) else None


def _cells(row: Row, tasks: list[str]) -> list[str]:
    counts = {record["params"]["trainable"] for record in row.all()}
    params = f"{counts.pop():,}" if len(counts) == 1 else "differs" if counts else "-"
    average = _average(row, tasks)
    return [row.label + row.mark(), params, *(_cell(_values(row, task)) for task in tasks), "-" if average is None else f"{average:.1f}"]


def _published(paper: str, item: str, row: Row) -> PublishedRow | None:
    if not row.all():
        return None
    record = row.all()[0]
    # The published counts of oft are those of full blocks; the row of the same block size stands beside ours with that reason.
    methods = (record["method"], record["method"] + "_paper")
    found = [p for p in load_rows(paper, item) if p.method in methods and p.variant == record["variant"]]
    return found[0] if found and record["settings"]["model"]["init"] == "pretrained" else None


def _is_comparable(row: Row) -> bool:
    """Only the paper's model, rows and rules may be subtracted from the paper's figures."""
    return not row.mark() and all(record["model"] == PAPER_MODEL for record in row.all())


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float | int) else "-" if value is None else str(value).upper()


def _beside(row: Row, published: PublishedRow, tasks: list[str], *, is_comparable: bool) -> list[list[str]]:
    printed_row = ["  published", published.params, *(_number(published.values[task]) for task in tasks), _number(published.average)]
    if not is_comparable:
        return [printed_row]
    differences = []
    for task in tasks:
        values, printed = _values(row, task), published.values[task]
        is_number = values and isinstance(printed, float | int)
        differences.append(f"{statistics.fmean(values) - printed:+.1f}" if is_number else "-")
    average = _average(row, tasks)
    both = average is not None and published.average is not None
    return [
        printed_row,
        ["  difference", "", *differences, f"{average - published.average:+.1f}" if both else "-"],  # type: ignore[operator]
    ]


def _majority(rows: list[Row], tasks: list[str]) -> list[str] | None:
    values: list[float | None] = []
    for task in tasks:
        records = [record for row in rows for record in row.records.get(task, [])]
        values.append(records[0]["metrics"][records[0]["primary"]]["majority"] if records else None)
    if all(value is None for value in values):
        return None
    return ["majority class", "0", *("-" if value is None else f"{value:.1f}" for value in values), "-"]


def _notes(protocol: str, rows: list[Row], published: list[PublishedRow], tasks: list[str], is_comparable: bool) -> list[str]:
    records = [record for row in rows for record in row.all()]
    if not records:
        return ["no run is done yet"]
    own = [record for row in rows if not row.is_context for record in row.all()] or records
    seeds = sorted({record["seed"] for record in own})
    parts = ", ".join(sorted({PART[r["settings"]["splits"]] for r in own}))
    rules = ", ".join(sorted({RULE[r["selection"]] for r in own}))
    spread = ", ± standard deviation over seeds" if len(seeds) > 1 else ""
    notes = [f"n = {len(seeds)} seed{'s' if len(seeds) > 1 else ''}{spread}; {parts}; {rules}; #Param without the head"]
    if any(row.is_context for row in rows):
        context = sorted({record["seed"] for row in rows if row.is_context for record in row.all()})
        notes.append(f"* from results/measured (committed records, n = {len(context)}), for comparison")
    if any(row.is_altered for row in rows):
        notes.append("(altered): settings were changed on the command line; the row is not the protocol's")
    if is_comparable:
        notes += [note for method, note in COUNT_NOTES.items() if any(record["method"] == method for record in own)]
    if not is_comparable:
        for method in dict.fromkeys(record["method"] for record in own):
            for row in (p for p in published if p.method == method):
                values = "  ".join(_number(row.values[task]) for task in tasks)
                notes.append(f"published {method} (DeBERTaV3-base, other data; context only): {values} | {_number(row.average)}")
    subsets = [r for r in own if r["provenance"]["data"]["subset"]]
    if subsets:
        shown = "; ".join(f"{r['task']} {r['provenance']['data']['rows']}" for r in _one_per_task(subsets))
        notes.append(f"subset: rows differ from the official splits, not comparable with published figures: {shown}")
    sources = sorted({r["settings"]["method"]["source"] for r in own})
    notes.append(f"learning rates: {'; '.join(sources)}")
    commits = {r["provenance"]["commit"] for r in own}
    if len(commits) > 1:
        notes.append(f"warning: these numbers come from {len(commits)} commits of the code")
    if any(r["provenance"]["dirty"] for r in own):
        notes.append("warning: some numbers come from uncommitted code (dirty)")
    return notes


def _one_per_task(records: Iterable[Record]) -> list[Record]:
    return list({record["task"]: record for record in records}.values())
