"""Columns of every table: the printed items of the papers, and the tables of suites.

A measured cell is found in records by task and metric, or in the cost of a run. Items without published values say why.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qgoft.config.suites import SuiteInfo, suite_info, task_title, tasks_of
from qgoft.records import Record
from qgoft.sweep.items import PlannedItem


def group_by_training(records: Iterable[Record]) -> list[tuple[str, Record]]:
    """Return each record with the key of its training. The run that trained precedes those that only scored the shared training."""
    made = [(record["provenance"].get("training", record), record) for record in records]
    return [(training["key"], record) for training, record in sorted(made, key=lambda pair: pair[0].get("shared", False))]


@dataclass(frozen=True)
class Column:
    """A column of a printed table.

    Attributes:
        printed: its name in results/published.
        task: None for a cost of the trainings of all tasks.
        metric: None for the primary metric of the task.
        cost: reads the cost from a record.
        spelling: format of a cost.
        group: heading over this column and its neighbours of the same group.
        short: title under that heading.
    """

    printed: str
    title: str
    task: str | None
    metric: str | None = None
    cost: Callable[[Record], float | None] | None = None
    spelling: str = ".3g"
    group: str = ""
    short: str = ""

    def value(self, record: Record, what: str = "value") -> Any:
        """Return a field of the metric in a record, or the cost."""
        if self.cost is not None:
            return self.cost(record) if what == "value" else None
        return record["metrics"][self.metric or record["primary"]][what]


@dataclass(frozen=True)
class Item:
    """A printed table or figure, or one that the papers lack.

    Attributes:
        table: its name in results/published.
        groups: title and columns of each group; the average is then the mean of the group means.
        extra_columns: columns after the average: costs, and tasks that the published table lacks.
        no_published_values: why there are no published values.
        protocols: protocols whose scores may be compared with the published ones.
        model: model of the printed values, if it is not that of the suite.
        own_name: make target, if it is not the table's name.
    """

    paper: str
    table: str
    title: str
    columns: tuple[Column, ...]
    suite: str
    has_average: bool = False
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    extra_columns: tuple[Column, ...] = ()
    no_published_values: str = ""
    protocols: tuple[str, ...] = ()
    model: str = ""
    own_name: str = ""

    @property
    def printed_model(self) -> str:
        return self.model or suite_info(self.suite).printed_model

    @property
    def all_columns(self) -> tuple[Column, ...]:
        return (*self.columns, *self.extra_columns)

    @property
    def titles(self) -> list[str]:
        averages = [*(title for title, _ in self.groups), "Avg"] if self.has_average else []
        return [*(column.title for column in self.columns), *averages, *(column.title for column in self.extra_columns)]

    @property
    def column_groups(self) -> list[tuple[str, int, tuple[str, ...]]]:
        """Headings over neighbouring columns: title, number of the first column, titles of the columns."""
        if self.groups:
            titles = [column.title for column in self.columns]
            by_name = {column.printed: column.title for column in self.columns}
            spans = [(title, tuple(by_name[name] for name in names)) for title, names in self.groups]
            means = ("Mean of the group", (*(title for title, _ in self.groups), "Avg"))
            firsts = [titles.index(names[0]) for _, names in spans]
            return [
                *((title, first, names) for first, (title, names) in zip(firsts, spans, strict=True)),
                (means[0], len(titles), means[1]),
            ]
        found: list[tuple[str, int, tuple[str, ...]]] = []
        for number, column in enumerate(self.columns):
            if column.group and found and found[-1][0] == column.group:
                title, first, titles_of = found.pop()
                found.append((title, first, (*titles_of, column.short)))
            elif column.group:
                found.append((column.group, number, (column.short,)))
        return found

    def averages(self, values: list[float | None]) -> list[float | None]:
        """Return the group means, if there are groups, and the average of the values of the columns; None if a value is missing."""
        if not self.has_average:
            return []
        by_name = dict(zip((column.printed for column in self.columns), values, strict=True))
        means = [_mean([by_name[name] for name in names]) for _, names in self.groups]
        return [*means, _mean(means)] if means else [_mean(values)]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each column in the average."""
        groups = self.groups or (("", tuple(column.printed for column in self.columns)),)
        return {name: 1 / (len(groups) * len(names)) for _, names in groups for name in names}

    @property
    def name(self) -> str:
        return self.own_name or (self.table if self.paper != "psoft-iclr2026" else f"psoft-{self.table}")

    def only(self, tasks: Sequence[str]) -> "Item":
        """Return the item with the columns of some tasks and without average, or unchanged if none of its tasks is named."""
        columns = tuple(column for column in self.columns if column.task in tasks)
        return replace(self, columns=columns, groups=(), has_average=False) if columns and len(columns) < len(self.columns) else self

    def is_comparable(self, protocol: str) -> bool:
        return protocol in self.protocols


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _columns(suite: str, *tasks: str) -> tuple[Column, ...]:
    return tuple(Column(task, task_title(suite, task), task) for task in tasks)


def _groups(suite: SuiteInfo) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((title, tuple(tasks)) for title, tasks in suite.groups.items())


CHART, OWN = "a chart, no values", "none; the papers lack this item"
GOFT, PSOFT = ("goft-icml2024", ("goft_icml24",)), ("psoft-iclr2026", ("psoft_iclr26",))


def _item(paper: tuple[str, tuple[str, ...]], table: str, title: str, suite: str, columns: tuple[Column, ...], **more: Any) -> Item:
    return Item(paper[0], table, title, columns, suite, protocols=paper[1], **more)


def _gigabytes(record: Record) -> float | None:
    """Return the peak memory of a GPU. On a CPU it is that of the whole process, which says nothing about the method."""
    found = record["cost"]["peak_memory_bytes"]
    return None if found is None or record["provenance"]["hardware"]["device"] == "cpu" else found / 1e9


def _gigabytes_at_64(record: Record) -> float | None:
    """Return the peak memory on CoLA, whose rows have at most 64 tokens."""
    return _gigabytes(record) if record["task"] == "cola" else None


def _minutes(record: Record) -> float | None:
    found = record["cost"]["seconds"]
    return None if found is None else found / 60


def _setup(record: Record) -> float | None:
    value: float | None = record["cost"].get("setup_seconds")
    return value


def _held_out_loss(record: Record) -> float | None:
    """Return the loss that selected the checkpoint of a decoder: its score with the sign reversed."""
    score = record.get("best_checkpoint", {}).get("score")
    return None if score is None else -score


MEMORY = Column("memory_gb", "peak GB", None, cost=_gigabytes)
MEMORY_AT_64 = Column("memory_gb", "CoLA peak GB", None, cost=_gigabytes_at_64)
MINUTES = Column("minutes", "minutes", None, cost=_minutes)
SETUP = Column("seconds", "start s", None, cost=_setup)
LOSS = Column("loss", "held-out loss", None, cost=_held_out_loss, spelling=".4f")
MMLU_GROUPS = (
    ("STEM", "stem", "stem"),
    ("Soc", "social", "social"),
    ("Hum", "humanities", "hum"),
    ("Oth", "other", "other"),
    ("Avg", "avg", "avg"),
)
_MMLU = tuple(
    Column(f"mmlu{shots}_{printed}", f"{title} {shots}", "mmlu", f"mmlu{shots}_{group}", group=f"MMLU, {shots} examples", short=title)
    for shots in (5, 0)
    for title, group, printed in MMLU_GROUPS
)
_VTAB = _columns("vtab", *(task for _, tasks in _groups(suite_info("vtab")) for task in tasks))
_MATH = _columns("math", "gsm8k", "math")
_COMMONSENSE = _columns("commonsense", "boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_e", "arc_c", "obqa")
_GROUPED = {"has_average": True, "groups": _groups(suite_info("vtab"))}
_AVERAGE = {"has_average": True}

# The printed items that are tables of runs, by make target.
ITEMS = {
    item.name: item
    for item in (
        _item(
            GOFT, "table1", "Table 1", "glue", _columns("glue", "mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb"), **_AVERAGE
        ),
        _item(GOFT, "table2", "Table 2", "instruct", (*_MMLU, Column("vicuna_score", "Vicuna", "vicuna", "score"))),
        _item(GOFT, "table3", "Table 3", "vtab", _VTAB, **_GROUPED),
        _item(GOFT, "table4", "Table 4", "squad", (Column("em", "EM", "v1", "exact_match"), Column("f1", "F1", "v1", "f1"))),
        _item(
            PSOFT,
            "table2",
            "PSOFT table 2",
            "glue",
            _columns("glue", "cola", "stsb", "rte", "mrpc", "sst2", "qnli"),
            extra_columns=(MEMORY_AT_64,),
            **_AVERAGE,
        ),
        _item(PSOFT, "table3", "PSOFT table 3", "vtab", _VTAB, extra_columns=(MEMORY,), **_GROUPED),
        _item(PSOFT, "table4", "PSOFT table 4", "math", _MATH, extra_columns=(MEMORY,)),
        _item(PSOFT, "table5", "PSOFT table 5", "commonsense", _COMMONSENSE, extra_columns=(MEMORY,), **_AVERAGE),
        _item(PSOFT, "table6", "PSOFT table 6", "math", _MATH),
        _item(PSOFT, "table7", "PSOFT table 7", "glue", _columns("glue", "rte", "cola")),
        _item(PSOFT, "table13", "PSOFT table 13", "math", _MATH, extra_columns=(MEMORY,)),
        _item(PSOFT, "table15", "PSOFT table 15", "commonsense", _COMMONSENSE, extra_columns=(MEMORY,), **_AVERAGE),
        _item(PSOFT, "table16", "PSOFT table 16", "commonsense", (), extra_columns=(SETUP, LOSS), model="LLaMA-3.2-3B"),
        _item(PSOFT, "table17", "PSOFT table 17", "glue", (Column("matthews", "CoLA", "cola", "matthews"),), extra_columns=(MEMORY,)),
        _item(
            PSOFT,
            "table18",
            "PSOFT table 18",
            "commonsense",
            _COMMONSENSE,
            extra_columns=(MEMORY, MINUTES),
            model="LLaMA-3.2-3B",
            **_AVERAGE,
        ),
        _item(PSOFT, "figure3", "PSOFT figure 3", "math", _columns("math", "gsm8k")),
        _item(
            GOFT,
            "figure4a",
            "Figure 4 (a)",
            "glue",
            _columns("glue", "qnli", "rte"),
            no_published_values=CHART,
            own_name="flexibility",
            **_AVERAGE,
        ),
        _item(
            GOFT,
            "figure4b",
            "Figure 4 (b)",
            "glue",
            _columns("glue", "qnli", "rte"),
            no_published_values=CHART,
            own_name="lambda",
            **_AVERAGE,
        ),
    )
}


def item_of(suite: str, protocol: str) -> Item:
    """Return the table of a suite under a protocol.

    A protocol without one gets that of protocol pocket, and a suite without any a table of all its tasks.
    """
    info = suite_info(suite)
    protocol = protocol if protocol in info.tables else "pocket"
    if protocol not in info.tables:
        return Item("", suite, info.title, _columns(suite, *tasks_of(suite)), suite, True, _groups(info), no_published_values=OWN)
    item, extra = ITEMS[info.tables[protocol]], _columns(suite, *info.extra_columns.get(protocol, []))
    return replace(item, extra_columns=(*item.extra_columns, *extra)) if extra else item


def item_named(planned: PlannedItem) -> Item:
    """Return the columns of an item of configs/experiment. One that the papers lack has a column per task.

    Figure 3 of GOFT compares the answers of table 2.
    """
    known = ITEMS.get("table2" if planned.name == "figure3" else planned.name)
    if known is not None:
        return known
    tasks = list(dict.fromkeys(task for grid in planned.grids for task in grid.tasks))
    suite = tasks[0].partition("/")[0]
    columns = _columns(suite, *(task.partition("/")[2] for task in tasks))
    return Item("", planned.name, planned.title, columns, suite, len(columns) > 1, no_published_values=OWN)
