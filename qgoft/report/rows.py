"""Table rows from planned runs and the records on disk."""

import dataclasses
import operator
from collections.abc import Sequence

from qgoft.config.compose import override_affects_results, override_name
from qgoft.config.keys import settings_in_key
from qgoft.config.locations import MEASURED
from qgoft.config.settings import RunSettings, method_label
from qgoft.config.suites import suite_info, tasks_of
from qgoft.records import Record, base_model
from qgoft.report.library import RecordLibrary
from qgoft.report.row import Row
from qgoft.sweep.planned_run import PlannedRun, compose_cached, compose_runs, protocol_seeds
from qgoft.sweep.record_index import RecordIndex

# Controls: baselines that give context to the other rows.
CONTROLS = {"encoder": [("linear", "pretrained"), ("lora", "random")], "decoder": [("base", "pretrained"), ("lora", "random")]}
# Settings that change memory use but not the effective batch.
BATCHING = {"train.batch_size", "train.gradient_accumulation_steps", "train.gradient_checkpointing"}


def collect_rows(
    planned_runs: Sequence[PlannedRun],
    index: RecordIndex,
    *,
    is_context: bool = False,
    own: frozenset[str] | None = None,
    swept: frozenset[str] = frozenset(),
) -> list[Row]:
    """Return the rows of a table in the order of the plan. A run that is planned twice counts once.

    Args:
        own: overrides of the item, which do not make a row altered; None: those of the protocol.
        swept: settings that differ between the rows of an item, which are added to the label.
    """
    rows: dict[str, Row] = {}
    seen = set()
    for planned in planned_runs:
        settings = planned.settings
        name = method_label(settings.method.name, settings.method.variant)
        label = (f"random + {name}" if settings.model.init == "random" else name) + _suffix(settings, swept)
        row = rows.setdefault(label, Row(label, {}, is_context))
        row.targets, row.penalty = settings.method.targets, settings.method.penalty
        task = settings.task.name
        if (label, task, settings.seed) in seen:
            continue
        seen.add((label, task, settings.seed))
        record = index.find(planned, only_done=False)
        row.others += 0 if record is None else index.others(record)
        row.planned[task] = row.planned.get(task, 0) + 1
        if own is None:
            row.is_altered = row.is_altered or is_altered(planned)
        else:
            row.is_altered = row.is_altered or _is_altered_by(set(planned.overrides) - own, planned)
        if record and record["status"] == "done":
            row.records.setdefault(task, []).append(record)
            row.sources.add(settings.method.lr_source)
        elif record:
            row.failed.setdefault(task, []).append(record)
    for row in rows.values():
        drop_mixed_data(row)
    return [row for row in rows.values() if row.records or not is_context]


def _suffix(settings: RunSettings, swept: frozenset[str]) -> str:
    """Return the values of the swept settings: `, λ=0.1`, `, qkv`, `, train.epochs=3`."""
    special = {"method.penalty": f"λ={settings.method.penalty:g}", "method.targets": settings.method.targets}
    return "".join(f", {special.get(name) or f'{name}={operator.attrgetter(name)(settings)}'}" for name in sorted(swept) if "." in name)


def is_altered(planned: PlannedRun) -> bool:
    """Return True if the settings are not those of the protocol for this task and method."""
    own = [o for o in planned.overrides if o.startswith(("protocol=", "task=", "method=", "method.variant="))]
    if planned.settings.model.init == "random":
        own.append(f"model={suite_info(planned.settings.task.suite).random_model}")
    if {*own, f"seed={planned.settings.seed}"} == set(planned.overrides):
        return False
    if any(override.startswith("recipe=") for override in planned.overrides):
        return True  # the recipe of another method; this one may have none
    unaltered = dataclasses.replace(compose_cached(tuple(own)), seed=planned.settings.seed)
    return not _is_equivalent_training(unaltered, planned.settings)


def _is_altered_by(overrides: set[str], planned: PlannedRun) -> bool:
    """Return True if some overrides change more than the batching of the same training."""
    changing = {override for override in overrides if override_affects_results(override)}
    if not changing or not set(map(override_name, changing)) <= BATCHING:
        return bool(changing)
    own = compose_cached(tuple(override for override in planned.overrides if override not in changing))
    return not _is_equivalent_training(own, planned.settings)


def _is_equivalent_training(one: RunSettings, other: RunSettings) -> bool:
    """Return True if two runs differ at most in how a batch is split."""
    return settings_in_key(_without_accumulation(one)) == settings_in_key(_without_accumulation(other))


def _without_accumulation(settings: RunSettings) -> RunSettings:
    train = settings.train
    batch_size = train.batch_size * train.gradient_accumulation_steps
    train = dataclasses.replace(train, batch_size=batch_size, gradient_accumulation_steps=1, gradient_checkpointing=False)
    return dataclasses.replace(settings, train=train)


def drop_mixed_data(row: Row) -> None:
    """Remove runs on other pretrained weights, or on other rows of a task, than the newest run of the row, since averaging them would be meaningless."""
    if not row.records:
        return
    weights = base_model(_newest(row.all()))
    for task, records in list(row.records.items()):
        same = [record for record in records if base_model(record) == weights]
        data = _newest(same)["provenance"]["data"]["fingerprint"] if same else ""
        row.records[task] = [record for record in same if record["provenance"]["data"]["fingerprint"] == data]
        row.left_out += len(records) - len(row.records[task])
        if not row.records[task]:
            del row.records[task]


def _newest(records: Sequence[Record]) -> Record:
    return max(records, key=lambda record: str(record["finished"]))


def control_rows(protocol: str, suite: str, model: str, shown: set[str], methods: Sequence[str], jobs: int) -> list[Row]:
    """Return the controls of protocol pocket from results/measured: the head only, and the methods on a random backbone."""
    info = suite_info(suite)
    if protocol != "pocket" or model or info.random_model is None:
        return []
    index = RecordLibrary.read(MEASURED).index
    controls = CONTROLS["decoder" if info.is_decoder else "encoder"]
    wanted = [*controls, *((name, "random") for name in dict.fromkeys(method.partition("@")[0] for method in methods) if name != "lora")]
    # Only runs with a record are composed.
    known = {(r["suite"], r["method"], r["settings"]["model"]["init"], r["task"]) for r in index.records}
    asked = [
        ("protocol=pocket", f"task={suite}/{task}", f"method={method}", *([f"model={info.random_model}"] if init == "random" else []))
        for method, init in wanted
        for task in tasks_of(suite)
        if (suite, method, init, task) in known
    ]
    planned_runs = compose_runs(asked, protocol_seeds("pocket"), jobs)
    return [row for row in collect_rows(planned_runs, index, is_context=True) if row.label not in shown]
