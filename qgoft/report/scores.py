"""Tables of scores, measured beside published: table 1 of GOFT and PSOFT's table 2 (GLUE), table 4 of GOFT (SQuAD), table 3 of both (VTAB-1K),
table 2 of GOFT (instruction tuning), PSOFT's tables 4 (mathematics) and 5 (commonsense).

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


@dataclass(frozen=True)
class Column:
    """A column of a printed table: its name there, its title here, and what of which record stands in it (no metric: the primary one)."""

    printed: str
    title: str
    task: str
    metric: str | None = None

    def value(self, record: Record, what: str = "value") -> Any:
        return record["metrics"][self.metric or record["primary"]][what]


@dataclass(frozen=True)
class Item:
    """A printed table."""

    paper: str
    table: str
    title: str
    columns: tuple[Column, ...]
    has_average: bool = False
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()  # title and columns; the average is then that of the group means
    beside: tuple[Column, ...] = ()  # what the paper has not, after the average

    @property
    def all_columns(self) -> tuple[Column, ...]:
        return (*self.columns, *self.beside)

    @property
    def titles(self) -> list[str]:
        averages = [*(title for title, _ in self.groups), "Avg"] if self.has_average else []
        return [*(column.title for column in self.columns), *averages, *(column.title for column in self.beside)]

    def averages(self, values: list[float | None]) -> list[float | None]:
        """Group means, if there are groups, and the average, from the values of the columns; None where one is missing."""
        if not self.has_average:
            return []
        by_name = dict(zip((column.printed for column in self.columns), values, strict=True))
        means = [_mean([by_name[name] for name in names]) for _, names in self.groups]
        return [*means, _mean(means)] if means else [_mean(values)]

    @property
    def name(self) -> str:
        return self.table if self.paper.startswith("goft") else f"psoft-{self.table}"


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


GLUE = {"mnli": "MNLI", "sst2": "SST-2", "cola": "CoLA", "qqp": "QQP", "qnli": "QNLI", "rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B"}


def _glue(*tasks: str) -> tuple[Column, ...]:
    return tuple(Column(task, GLUE[task], task) for task in tasks)


TABLE1 = Item("goft-icml2024", "table1", "Table 1", _glue("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb"), has_average=True)
PSOFT_TABLE2 = Item("psoft-iclr2026", "table2", "PSOFT table 2", _glue("cola", "stsb", "rte", "mrpc", "sst2", "qnli"), has_average=True)
TABLE4 = Item("goft-icml2024", "table4", "Table 4", (Column("em", "EM", "v1", "exact_match"), Column("f1", "F1", "v1", "f1")))
VTAB_GROUPS = (
    (
        "Nat",
        {
            "cifar": "CIFAR",
            "caltech101": "Calt",
            "dtd": "DTD",
            "oxford_flowers102": "Flow",
            "oxford_iiit_pet": "Pets",
            "svhn": "SVHN",
            "sun397": "Sun",
        },
    ),
    ("Spec", {"patch_camelyon": "Cam", "eurosat": "Euro", "resisc45": "Res", "diabetic_retinopathy": "Ret"}),
    (
        "Str",
        {
            "clevr_count": "Count",
            "clevr_dist": "Dist",
            "dmlab": "DML",
            "kitti": "KIT",
            "dsprites_loc": "dLoc",
            "dsprites_ori": "dOri",
            "smallnorb_azi": "Azi",
            "smallnorb_ele": "Ele",
        },
    ),
)


def _vtab(paper: str, title: str, *, with_digits: bool = False) -> Item:
    columns = tuple(Column(task, short, task) for _, tasks in VTAB_GROUPS for task, short in tasks.items())
    beside = (Column("digits", "Digits", "digits"),) if with_digits else ()
    return Item(paper, "table3", title, columns, True, tuple((name, tuple(tasks)) for name, tasks in VTAB_GROUPS), beside)


TABLE3, PSOFT_TABLE3 = _vtab("goft-icml2024", "Table 3"), _vtab("psoft-iclr2026", "PSOFT table 3")
MMLU_GROUPS = {
    "stem": ("STEM", "stem"),
    "social": ("Soc", "social"),
    "humanities": ("Hum", "hum"),
    "other": ("Oth", "other"),
    "avg": ("Avg", "avg"),
}
TABLE2 = Item(
    "goft-icml2024",
    "table2",
    "Table 2",
    (
        *(
            Column(f"mmlu{shots}_{printed}", f"{title} {shots}", "mmlu", f"mmlu{shots}_{group}")
            for shots in (5, 0)
            for group, (title, printed) in MMLU_GROUPS.items()
        ),
        Column("vicuna_score", "Vicuna", "vicuna", "score"),
    ),
)
COMMONSENSE = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "siqa": "SIQA",
    "hellaswag": "HellaS",
    "winogrande": "WinoG",
    "arc_e": "ARC-e",
    "arc_c": "ARC-c",
    "obqa": "OBQA",
}
PSOFT_TABLE4 = Item("psoft-iclr2026", "table4", "PSOFT table 4", (Column("gsm8k", "GSM8K", "gsm8k"), Column("math", "MATH", "math")))
PSOFT_TABLE5 = Item(
    "psoft-iclr2026", "table5", "PSOFT table 5", tuple(Column(task, title, task) for task, title in COMMONSENSE.items()), has_average=True
)
# (suite, protocol) -> the table whose rows stand beside, and whether differences may be taken.
BESIDE = {
    ("glue", "pocket"): (TABLE1, False),
    ("glue", "small"): (TABLE1, False),
    ("glue", "goft_icml24"): (TABLE1, True),
    ("glue", "psoft_iclr26"): (PSOFT_TABLE2, True),
    ("squad", "pocket"): (TABLE4, False),
    ("squad", "small"): (TABLE4, False),
    ("squad", "goft_icml24"): (TABLE4, True),
    ("vtab", "pocket"): (_vtab("goft-icml2024", "Table 3", with_digits=True), False),
    ("vtab", "goft_icml24"): (TABLE3, True),
    ("vtab", "psoft_iclr26"): (PSOFT_TABLE3, True),
    ("instruct", "pocket"): (TABLE2, False),
    ("instruct", "goft_icml24"): (TABLE2, True),
    ("math", "pocket"): (PSOFT_TABLE4, False),
    ("math", "psoft_iclr26"): (PSOFT_TABLE4, True),
    ("commonsense", "pocket"): (PSOFT_TABLE5, False),
    ("commonsense", "psoft_iclr26"): (PSOFT_TABLE5, True),
}
SUITES = {
    "glue": "GLUE",
    "squad": "SQuAD v1.1",
    "vtab": "VTAB-1K",
    "instruct": "instruction tuning",
    "math": "mathematics",
    "commonsense": "commonsense",
}
MODEL_NAMES = {
    "glue": "DeBERTaV3-base",
    "squad": "DeBERTaV3-base",
    "vtab": "ViT-B/16",
    "instruct": "LLaMA-2-7B",
    "math": "LLaMA-3.2-3B",
    "commonsense": "LLaMA-3.1-8B",
}
PAPER_MODELS = {
    "glue": "deberta-v3-base",
    "squad": "deberta-v3-base",
    "vtab": "vit-base",
    "instruct": "llama-2-7b",
    "math": "llama-3.2-3b",
    "commonsense": "llama-3.1-8b",
}
# Why our count stands beside another printed one.
COUNT_NOTES = {
    "oft": "#Param of oft: peft trains the skew-symmetric entries; oft_paper has the full b x b blocks that the paper counts",
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


def build_table(suite: str, protocol: str, rows: list[Row]) -> Table:
    """The table of a suite under a protocol, from rows of done records."""
    item, is_comparable = BESIDE[suite, protocol]
    title = f"{item.title} ({protocol})"
    # The name of the item alone goes to the embedded protocol, or to PSOFT's where that shows another item.
    is_plain = protocol == "pocket" or (protocol == "psoft_iclr26" and item is not BESIDE[suite, "pocket"][0])
    table = Table(
        item.name if is_plain else f"{item.name}-{protocol}",
        f"{SUITES[suite]}, protocol {protocol}",
        [title, "#Param", *item.titles],
    )
    for row in rows:
        table.rows.append(_cells(row, item))
        if is_comparable:
            published = _published(item, row)
            if published:
                table.rows += _beside(row, published, item, is_comparable=_is_comparable(row))
    majority = _majority(rows, item)
    if majority:
        table.rows.append(majority)
    table.notes = _notes(rows, load_rows(item.paper, item.table), item, is_comparable)
    return table


def _values(row: Row, column: Column) -> list[float]:
    return [column.value(record) for record in row.records.get(column.task, [])]


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ±{statistics.stdev(values):.1f}"


def _averages(row: Row, item: Item) -> list[float | None]:
    return item.averages([statistics.fmean(values) if (values := _values(row, column)) else None for column in item.columns])


def _cells(row: Row, item: Item) -> list[str]:
    counts = {record["params"]["trainable"] for record in row.all()}
    params = f"{counts.pop():,}" if len(counts) == 1 else "differs" if counts else "-"
    averages = ["-" if average is None else f"{average:.1f}" for average in _averages(row, item)]
    cells = [[_cell(_values(row, column)) for column in columns] for columns in (item.columns, item.beside)]
    return [row.label + row.mark(), params, *cells[0], *averages, *cells[1]]


def _published(item: Item, row: Row) -> PublishedRow | None:
    if not row.all():
        return None
    record = row.all()[0]
    # The published counts of oft are those of full blocks; the row of the same block size stands beside ours with that reason.
    methods = (record["method"], record["method"] + "_paper")
    found = [p for p in load_rows(item.paper, item.table) if p.method in methods and p.variant == record["variant"]]
    return found[0] if found and record["settings"]["model"]["init"] == "pretrained" else None


def _is_comparable(row: Row) -> bool:
    """Only the paper's model, rows and rules may be subtracted from the paper's figures."""
    return not row.mark() and all(record["model"] == PAPER_MODELS[record["suite"]] for record in row.all())


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float | int) else "-" if value is None else str(value).upper()


def _beside(row: Row, published: PublishedRow, item: Item, *, is_comparable: bool) -> list[list[str]]:
    printed_row = ["  published", published.params, *_printed(published, item)]
    if not is_comparable:
        return [printed_row]
    differences = []
    for column in item.columns:
        values, printed = _values(row, column), published.values[column.printed]
        is_number = values and isinstance(printed, float | int)
        differences.append(f"{statistics.fmean(values) - printed:+.1f}" if is_number else "-")
    for ours, printed in zip(_averages(row, item), _printed_averages(published, item), strict=True):
        differences.append("-" if ours is None or printed is None else f"{ours - printed:+.1f}")
    return [printed_row, ["  difference", "", *differences, *("" for _ in item.beside)]]


def _printed_averages(published: PublishedRow, item: Item) -> list[float | None]:
    """The printed average; group means, which are not printed, from the printed cells."""
    if not item.has_average:
        return []
    cells = [published.values[column.printed] for column in item.columns]
    return [*item.averages([v if isinstance(v, float | int) else None for v in cells])[:-1], published.average]


def _printed(published: PublishedRow, item: Item) -> list[str]:
    cells = [_number(published.values[column.printed]) for column in item.columns]
    return [*cells, *(_number(average) for average in _printed_averages(published, item)), *("" for _ in item.beside)]


def _majority(rows: list[Row], item: Item) -> list[str] | None:
    values: list[float | None] = []
    for column in item.all_columns:
        records = [record for row in rows for record in row.records.get(column.task, [])]
        values.append(column.value(records[0], "majority") if records else None)
    if all(value is None for value in values):
        return None
    cells = ["-" if value is None else f"{value:.1f}" for value in values]
    middle, end = ["-" for _ in item.averages([None] * len(item.columns))], len(item.columns)
    return ["majority class", "0", *cells[:end], *middle, *cells[end:]]


def _notes(rows: list[Row], published: list[PublishedRow], item: Item, is_comparable: bool) -> list[str]:
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
                values = "  ".join(_number(row.values[column.printed]) for column in item.columns)
                average = f" | {_number(row.average)}" if item.has_average else ""
                notes.append(f"published {method} ({MODEL_NAMES[own[0]['suite']]}, other data; context only): {values}{average}")
    subsets = [r for r in own if r["provenance"]["data"]["subset"]]
    if subsets:
        shown = "; ".join(f"{r['task']} {r['provenance']['data']['rows']}" for r in _one_per_task(subsets))
        notes.append(f"subset: rows differ from the official splits, not comparable with published figures: {shown}")
    repairs = {(r["task"], what, count) for r in own for what, count in r["provenance"]["data"].get("repairs", {}).items()}
    notes += [f"data of {task}: {count} {what}" for task, what, count in sorted(repairs)]
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
