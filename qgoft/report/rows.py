"""From a plan and the records on disk to printed tables: rows, controls, the wins of one method over others."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qgoft.config.compose import REPOSITORY, choices, name_of, override_affects_results
from qgoft.config.settings import DECODER_SUITES, RunSettings, method_label, settings_in_key
from qgoft.errors import DISK_ERRORS
from qgoft.records import RecordSet, base_model, find_records
from qgoft.report.items import Item, Record
from qgoft.report.score_table import Row, build_paired, build_table
from qgoft.report.significance import Bootstrap
from qgoft.report.table import Table
from qgoft.report.win_rates import Rated, read_ratings
from qgoft.sweep.plan import RANDOM_MODELS, PlannedRun, RecordIndex, compose_cached, compose_runs, protocol_seeds

MEASURED = REPOSITORY / "results" / "measured"
# protocol, task, method, seed: a cell with more words may differ from the protocol's own settings.
OWN_WORDS = 4
# Rows that say what the others are worth, from the committed records.
CONTROLS = {"encoder": [("linear", "pretrained"), ("lora", "random")], "decoder": [("base", "pretrained"), ("lora", "random")]}


@dataclass
class RecordLibrary:
    """The records that tables are made from, and where each lies."""

    index: RecordIndex
    folders: dict[str, Path]
    problems: list[str] = field(default_factory=list)
    root: Path = Path("results")
    is_committed: bool = False

    @classmethod
    def read(cls, *roots: Path) -> "RecordLibrary":
        found = [_found(root) for root in roots if root.is_dir()]
        records = [record for one in found for record in one.records]
        folders = {key: folder for one in found for key, folder in one.folders.items()}
        return cls(RecordIndex(records), folders, [problem for one in found for problem in one.problems])

    @functools.cached_property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.folders)


def _found(root: Path) -> RecordSet:
    """Committed records do not change while a command runs."""
    return _measured() if root.resolve() == MEASURED.resolve() else find_records(root)


@functools.cache
def _measured() -> RecordSet:
    return find_records(MEASURED)


def read_library(root: Path, records: str, protocol: str) -> RecordLibrary:
    """A user's own records, or those that are committed; for the embedded protocol with the answers of the controls, which are committed."""
    is_committed = records == MEASURED.name
    library = RecordLibrary.read(MEASURED if is_committed else root / records)
    library.root, library.is_committed = root, is_committed
    if protocol == "pocket":
        library.folders = {**_measured().folders, **library.folders}
    return library


def is_altered(planned: PlannedRun) -> bool:
    """Whether the settings are others than the protocol's own for this task and method."""
    own = [w for w in planned.overrides if w.startswith(("protocol=", "task=", "method=", "method.variant="))]
    if planned.settings.model.init == "random":
        own.append(f"model={RANDOM_MODELS[planned.settings.task.suite]}")
    if {*own, f"seed={planned.settings.seed}"} == set(planned.overrides):
        return False
    if any(word.startswith("recipe=") for word in planned.overrides):
        return True  # borrowed from another method; there may be none of its own to compare with
    unaltered = dataclasses.replace(compose_cached(tuple(own)), seed=planned.settings.seed)
    return not _are_same_training(unaltered, planned.settings)


# What fits a training into less memory and leaves it the same one.
DIVIDING = {"train.batch_size", "train.gradient_accumulation_steps", "train.gradient_checkpointing"}


def _are_same_training(one: RunSettings, other: RunSettings) -> bool:
    """Whether two runs differ in nothing that moves a number, but in how a batch is fitted into memory."""
    return settings_in_key(_in_one_pass(one)) == settings_in_key(_in_one_pass(other))


def _in_one_pass(settings: RunSettings) -> RunSettings:
    train = settings.train
    whole = dataclasses.replace(
        train, batch_size=train.batch_size * train.gradient_accumulation_steps, gradient_accumulation_steps=1, gradient_checkpointing=False
    )
    return dataclasses.replace(settings, train=whole)


def _is_altered_by(words: set[str], planned: PlannedRun) -> bool:
    """Whether some words of a cell, which its item does not set, change more than how the same training is computed."""
    moving = {word for word in words if override_affects_results(word)}
    if not moving or not set(map(name_of, moving)) <= DIVIDING:
        return bool(moving)
    own = compose_cached(tuple(word for word in planned.overrides if word not in moving))
    return not _are_same_training(own, planned.settings)


def collect_rows(
    planned_runs: Sequence[PlannedRun],
    index: RecordIndex,
    *,
    is_context: bool = False,
    own: frozenset[str] | None = None,
    swept: frozenset[str] = frozenset(),
) -> list[Row]:
    """Rows of the table, in the order of the plan. A cell that comes twice counts once; of runs on different data or weights, those like the
    newest.

    Args:
        own: words that the item itself sets, for which no row is called altered; None: the protocol's own settings decide.
        swept: names of settings by which the rows of an item differ, said in the label.
    """
    rows: dict[str, Row] = {}
    seen = set()
    for planned in planned_runs:
        settings = planned.settings
        name = method_label(settings.method.name, settings.method.variant)
        label = f"random + {name}" if settings.model.init == "random" else name
        suffix = _suffix(settings.method.penalty, settings.method.targets, swept)
        row = rows.setdefault(label + suffix, Row(label + suffix, {}, is_context))
        row.targets, row.penalty = settings.method.targets, settings.method.penalty
        task = settings.task.name
        if (row.label, task, settings.seed) in seen:
            continue
        seen.add((row.label, task, settings.seed))
        record = index.find(planned, only_done=False)
        row.others += 0 if record is None else index.others(record)
        row.planned[task] = row.planned.get(task, 0) + 1
        if own is None:
            row.is_altered = row.is_altered or (len(planned.overrides) > OWN_WORDS and is_altered(planned))
        else:
            row.is_altered = row.is_altered or _is_altered_by(set(planned.overrides) - own, planned)
        if record and record["status"] == "done":
            row.records.setdefault(task, []).append(record)
            row.sources.add(settings.method.lr_source)
        elif record:
            row.failed.setdefault(task, []).append(record)
    for row in rows.values():
        keep_one_origin(row)
    return [row for row in rows.values() if row.records or not is_context]


def keep_one_origin(row: Row) -> None:
    """Leave out the runs whose base model, or rows of a task, are not those of the row's newest run: their mean would be of nothing."""
    if not row.records:
        return
    begun_with = base_model(_newest(row.all()))
    for task, records in list(row.records.items()):
        same = [record for record in records if base_model(record) == begun_with]
        rows = _newest(same)["provenance"]["data"]["fingerprint"] if same else ""
        row.records[task] = [record for record in same if record["provenance"]["data"]["fingerprint"] == rows]
        row.left_out += len(records) - len(row.records[task])
        if not row.records[task]:
            del row.records[task]


def _newest(records: Sequence[Record]) -> Record:
    return max(records, key=lambda record: str(record["finished"]))


def _suffix(penalty: float, targets: str, swept: frozenset[str]) -> str:
    words = [f"λ={penalty:g}"] if "method.penalty" in swept else []
    words += [targets] if "method.targets" in swept else []
    return "".join(f", {word}" for word in words)


def control_rows(protocol: str, suite: str, model: str, shown: set[str], methods: Sequence[str], jobs: int) -> list[Row]:
    """Controls of the embedded protocol from results/measured: the head alone, and the same methods on a random backbone."""
    if protocol != "pocket" or model:
        return []
    index = RecordLibrary.read(MEASURED).index
    kind = "decoder" if suite in DECODER_SUITES else "encoder"
    wanted = [*CONTROLS[kind], *((method.partition("@")[0], "random") for method in methods if method.partition("@")[0] != "lora")]
    # Only what has a record is composed.
    known = {(r["suite"], r["method"], r["settings"]["model"]["init"], r["task"]) for r in index.records}
    asked = []
    for method, init in wanted:
        words = [f"model={RANDOM_MODELS[suite]}"] if init == "random" else []
        for task in (name for name in choices("task") if name.startswith(f"{suite}/")):
            if (suite, method, init, task.partition("/")[2]) not in known:
                continue
            asked.append(("protocol=pocket", f"task={task}", f"method={method}", *words))
    planned_runs = compose_runs(asked, protocol_seeds("pocket"), jobs)
    return [row for row in collect_rows(planned_runs, index, is_context=True) if row.label not in shown]


def score_tables(suite: str, protocol: str, rows: list[Row], library: RecordLibrary, item: Item, notes: Sequence[str] = ()) -> list[Table]:
    """The table of an item, and the intervals of its differences where rows can be compared."""
    table = build_table(suite, protocol, rows, item=item, bootstrap=library.bootstrap, extra=[*notes, *map(_skipped, library.problems)])
    paired = build_paired(table.name, rows, item, library.bootstrap)
    return [table, *([paired] if paired is not None else [])]


def _skipped(problem: str) -> str:
    return f"warning, skipped: {problem}" if "clock was set back" not in problem else f"warning: {problem}"


def rating_tables(
    protocol: str, rows: Sequence[Row], library: RecordLibrary, builders: Sequence[Callable[[Rated, str], Table | None]]
) -> list[Table]:
    """What an average of ratings hides: categories, and the first method against each other."""
    records: list[Record] = [record for row in rows for record in row.records.get("vicuna", [])]
    rated = read_ratings(library.folders, records)
    return [table for build in builders if (table := build(rated, protocol)) is not None] if rated else []


def write_tables(tables: Sequence[Table], root: Path) -> str:
    """Write every table below results/tables; what to tell of the first. Where nothing can be written they are still printed."""
    try:
        paths, *_ = [table.write(root / "tables") for table in tables]
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return f"not written: {error.filename or root / 'tables'}: {error.strerror}"
    return f"{paths[0].parent}/{paths[0].stem}.{{{','.join(path.suffix[1:] for path in paths)}}}"
