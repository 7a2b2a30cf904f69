"""What the papers print: the columns of every table, and which table stands beside which suite.

A measured cell is found in records by task and metric, or in what a run cost. Items without published values say why.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qgoft.records import Record


def group_by_training(records: Iterable[Record]) -> list[tuple[str, Record]]:
    """Each record with the key of its training, in their order, but the run that trained before those that were scored with what it made."""
    made = [(record["provenance"].get("training", record), record) for record in records]
    return [(training["key"], record) for training, record in sorted(made, key=lambda pair: pair[0].get("shared", False))]


@dataclass(frozen=True)
class Column:
    """A column of a printed table: its name there, its title here, and what of which record stands in it.

    Without a metric it is the task's primary one. Without a task it is a cost, read by `cost` from the records of every task.
    """

    printed: str
    title: str
    task: str | None
    metric: str | None = None
    cost: Callable[[Record], float | None] | None = None
    spelling: str = ".3g"  # of a cost

    def value(self, record: Record, what: str = "value") -> Any:
        if self.cost is not None:
            return self.cost(record) if what == "value" else None
        return record["metrics"][self.metric or record["primary"]][what]


@dataclass(frozen=True)
class Item:
    """A printed table or chart, or one of our own. `table` is its name in results/published; what has no printed values is not there."""

    paper: str
    table: str
    title: str
    columns: tuple[Column, ...]
    has_average: bool = False
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()  # title and columns; the average is then that of the group means
    extra_columns: tuple[Column, ...] = ()  # after the average: what the paper has not, or costs
    no_published_values: str = ""  # why there are no published values
    protocols: tuple[str, ...] = ()  # under which its figures may be subtracted from ours
    suite: str = ""
    model: str = ""  # that of the printed figures, where it is not the suite's usual one
    own_name: str = ""  # of make, where it is not that of the table

    @property
    def printed_model(self) -> str:
        return self.model or MODEL_NAMES[self.suite]

    @property
    def all_columns(self) -> tuple[Column, ...]:
        return (*self.columns, *self.extra_columns)

    @property
    def titles(self) -> list[str]:
        averages = [*(title for title, _ in self.groups), "Avg"] if self.has_average else []
        return [*(column.title for column in self.columns), *averages, *(column.title for column in self.extra_columns)]

    def averages(self, values: list[float | None]) -> list[float | None]:
        """Group means, if there are groups, and the average, from the values of the columns; None where one is missing."""
        if not self.has_average:
            return []
        by_name = dict(zip((column.printed for column in self.columns), values, strict=True))
        means = [_mean([by_name[name] for name in names]) for _, names in self.groups]
        return [*means, _mean(means)] if means else [_mean(values)]

    @property
    def weights(self) -> dict[str, float]:
        """What each column counts for in the average."""
        groups = self.groups or (("", tuple(column.printed for column in self.columns)),)
        return {name: 1 / (len(groups) * len(names)) for _, names in groups for name in names}

    @property
    def name(self) -> str:
        return self.own_name or (self.table if self.paper.startswith("goft") else f"psoft-{self.table}")

    def only(self, tasks: Sequence[str]) -> "Item":
        """Return the item with the columns of some tasks and no average; all of it if none are named, or none is left."""
        columns = tuple(column for column in self.columns if column.task in tasks)
        return replace(self, columns=columns, groups=(), has_average=False) if columns and len(columns) < len(self.columns) else self

    def is_comparable(self, protocol: str) -> bool:
        return protocol in self.protocols


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


GLUE = {"mnli": "MNLI", "sst2": "SST-2", "cola": "CoLA", "qqp": "QQP", "qnli": "QNLI", "rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B"}


def _glue(*tasks: str) -> tuple[Column, ...]:
    return tuple(Column(task, GLUE[task], task) for task in tasks)


CHART, OWN = "a chart, no values", "nothing; no item of the papers"
GOFT, PSOFT = ("goft-icml2024", ("goft_icml24",)), ("psoft-iclr2026", ("psoft_iclr26",))


def _item(paper: tuple[str, tuple[str, ...]], table: str, title: str, suite: str, columns: tuple[Column, ...], **more: Any) -> Item:
    return Item(paper[0], table, title, columns, protocols=paper[1], suite=suite, **more)


def _gigabytes(record: Record) -> float | None:
    """Of a GPU. On a CPU a record has the whole process's memory, libraries and earlier runs included, which compares no methods."""
    found = record["cost"]["peak_memory_bytes"]
    return None if found is None or record["provenance"]["hardware"]["device"] == "cpu" else found / 1e9


def _gigabytes_at_64(record: Record) -> float | None:
    """CoLA's rows have at most 64 tokens."""
    return _gigabytes(record) if record["task"] == "cola" else None


def _minutes(record: Record) -> float | None:
    found = record["cost"]["seconds"]
    return None if found is None else found / 60


def _setup(record: Record) -> float | None:
    value: float | None = record["cost"].get("setup_seconds")
    return value


def _held_out_loss(record: Record) -> float | None:
    """What chose the step of a decoder, with its sign turned."""
    score = record.get("best_checkpoint", {}).get("score")
    return None if score is None else -score


MEMORY = Column("memory_gb", "peak GB", None, cost=_gigabytes)
MEMORY_AT_64 = Column("memory_gb", "CoLA peak GB", None, cost=_gigabytes_at_64)
MINUTES = Column("minutes", "minutes", None, cost=_minutes)
SETUP = Column("seconds", "start s", None, cost=_setup)
LOSS = Column("loss", "held-out loss", None, cost=_held_out_loss, spelling=".4f")

TABLE1 = _item(GOFT, "table1", "Table 1", "glue", _glue("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb"), has_average=True)
PSOFT_TABLE2 = _item(
    PSOFT,
    "table2",
    "PSOFT table 2",
    "glue",
    _glue("cola", "stsb", "rte", "mrpc", "sst2", "qnli"),
    has_average=True,
    extra_columns=(MEMORY_AT_64,),
)
TABLE4 = _item(GOFT, "table4", "Table 4", "squad", (Column("em", "EM", "v1", "exact_match"), Column("f1", "F1", "v1", "f1")))
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


def _vtab(paper: tuple[str, tuple[str, ...]], title: str, *extra_columns: Column) -> Item:
    columns = tuple(Column(task, short, task) for _, tasks in VTAB_GROUPS for task, short in tasks.items())
    groups = tuple((name, tuple(tasks)) for name, tasks in VTAB_GROUPS)
    return _item(paper, "table3", title, "vtab", columns, has_average=True, groups=groups, extra_columns=extra_columns)


TABLE3, PSOFT_TABLE3 = _vtab(GOFT, "Table 3"), _vtab(PSOFT, "PSOFT table 3", MEMORY)
MMLU_GROUPS = {
    "stem": ("STEM", "stem"),
    "social": ("Soc", "social"),
    "humanities": ("Hum", "hum"),
    "other": ("Oth", "other"),
    "avg": ("Avg", "avg"),
}
TABLE2 = _item(
    GOFT,
    "table2",
    "Table 2",
    "instruct",
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
_MATH = (Column("gsm8k", "GSM8K", "gsm8k"), Column("math", "MATH", "math"))
_COMMONSENSE = tuple(Column(task, title, task) for task, title in COMMONSENSE.items())
PSOFT_TABLE4 = _item(PSOFT, "table4", "PSOFT table 4", "math", _MATH, extra_columns=(MEMORY,))
PSOFT_TABLE5 = _item(PSOFT, "table5", "PSOFT table 5", "commonsense", _COMMONSENSE, has_average=True, extra_columns=(MEMORY,))


_TWO = _glue("qnli", "rte")
# Every item that is a table of runs, by the name of its make target.
ITEMS = {
    item.name: item
    for item in (
        TABLE1,
        TABLE2,
        TABLE3,
        TABLE4,
        PSOFT_TABLE2,
        PSOFT_TABLE3,
        PSOFT_TABLE4,
        PSOFT_TABLE5,
        _item(PSOFT, "table6", "PSOFT table 6", "math", _MATH),
        _item(PSOFT, "table7", "PSOFT table 7", "glue", _glue("rte", "cola")),
        _item(PSOFT, "table13", "PSOFT table 13", "math", _MATH, extra_columns=(MEMORY,)),
        _item(PSOFT, "table15", "PSOFT table 15", "commonsense", _COMMONSENSE, has_average=True, extra_columns=(MEMORY,)),
        _item(PSOFT, "table16", "PSOFT table 16", "commonsense", (), extra_columns=(SETUP, LOSS), model="LLaMA-3.2-3B"),
        _item(PSOFT, "table17", "PSOFT table 17", "glue", (Column("matthews", "CoLA", "cola", "matthews"),), extra_columns=(MEMORY,)),
        _item(
            PSOFT,
            "table18",
            "PSOFT table 18",
            "commonsense",
            _COMMONSENSE,
            has_average=True,
            extra_columns=(MEMORY, MINUTES),
            model="LLaMA-3.2-3B",
        ),
        _item(PSOFT, "figure3", "PSOFT figure 3", "math", (Column("gsm8k", "GSM8K", "gsm8k"),)),
        _item(GOFT, "figure4a", "Figure 4 (a)", "glue", _TWO, has_average=True, no_published_values=CHART, own_name="flexibility"),
        _item(GOFT, "figure4b", "Figure 4 (b)", "glue", _TWO, has_average=True, no_published_values=CHART, own_name="lambda"),
        _item(GOFT, "pairing", "Pairings", "glue", _TWO, has_average=True, no_published_values=OWN),
        _item(
            GOFT,
            "exactness",
            "Exact and as released",
            "glue",
            _glue("cola", "qnli", "rte", "mrpc"),
            has_average=True,
            no_published_values=OWN,
        ),
        _item(GOFT, "real-glue", "Real GLUE", "glue", _glue("cola", "mrpc", "rte"), has_average=True, no_published_values=OWN),
        _item(GOFT, "pictures", "Real pictures", "vtab", (Column("caltech101", "Caltech-101", "caltech101"),), no_published_values=OWN),
    )
}
# (suite, protocol) -> the table that stands beside a suite's own runs.
BESIDE = {
    ("glue", "pocket"): TABLE1,
    ("glue", "small"): TABLE1,
    ("glue", "goft_icml24"): TABLE1,
    ("glue", "psoft_iclr26"): PSOFT_TABLE2,
    ("squad", "pocket"): TABLE4,
    ("squad", "small"): TABLE4,
    ("squad", "goft_icml24"): TABLE4,
    ("vtab", "pocket"): _vtab(GOFT, "Table 3", Column("digits", "Digits", "digits")),
    ("vtab", "goft_icml24"): TABLE3,
    ("vtab", "psoft_iclr26"): PSOFT_TABLE3,
    ("instruct", "pocket"): TABLE2,
    ("instruct", "goft_icml24"): TABLE2,
    ("math", "pocket"): PSOFT_TABLE4,
    ("math", "psoft_iclr26"): PSOFT_TABLE4,
    ("commonsense", "pocket"): PSOFT_TABLE5,
    ("commonsense", "psoft_iclr26"): PSOFT_TABLE5,
}


def item_of(suite: str, protocol: str) -> Item:
    """Return the table of a suite under a protocol; a protocol of one's own has that of the embedded one, without comparisons."""
    return BESIDE.get((suite, protocol), BESIDE[suite, "pocket"])


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
# The models whose figures the papers print, by suite.
PAPER_MODELS = {
    "glue": ("deberta-v3-base",),
    "squad": ("deberta-v3-base",),
    "vtab": ("vit-base",),
    "instruct": ("llama-2-7b",),
    "math": ("llama-3.2-3b",),
    "commonsense": ("llama-3.1-8b", "llama-3.2-3b"),
}
