"""Measurement of the retention of a finished run."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from qgoft.config.compose import model_files
from qgoft.config.locations import cache_directory
from qgoft.config.retention import RetentionSettings
from qgoft.errors import QgoftError
from qgoft.lease import Lease
from qgoft.records import Record, RecordError, canonical_json, write_atomically
from qgoft.records.rerun import rerun_command
from qgoft.records.retention import (
    LEASE_DIRECTORY,
    RETENTION_SCHEMA,
    RETENTION_VERSION,
    Retention,
    read_retention,
    retention_key,
    write_retention,
)
from qgoft.retention.geometry import measure_geometry
from qgoft.retention.language import MMLU, Knowledge, Language, LmEval
from qgoft.retention.path import BackbonePath, build_path
from qgoft.retention.probes import Probe, ProbeContext, ProbeValue
from qgoft.retention.similarity import Similarity
from qgoft.retention.transfer import Transfer
from qgoft.tasks.evaluate import LOWER_IS_BETTER
from qgoft.train.record import RunContext, now, run_provenance
from qgoft.train.rescore import OpenedRun, load_run, tolerance
from qgoft.train.run import predict_test_sets

KNOWN: dict[str, Callable[[ProbeContext], Probe]] = {
    "transfer": Transfer,
    "similarity": Similarity,
    "language": Language,
    "knowledge": Knowledge,
}


def measure_retention(run: OpenedRun, asked: RetentionSettings) -> Retention:
    """Return the retention of a finished run from its saved adapter, and write it next to the record. A finished measurement is returned,
    a corrupt one repeated.

    Raises:
        QgoftError: the adapter is missing, a probe lacks data, the method cannot be rewound, a judge would be asked, or the score at t = 1 is
            not that of the record.
        LeaseHeld: another process measures this run.
    """
    directory, record = run.directory, run.record
    key = retention_key(record["key"], dataclasses.asdict(asked))
    # The lease needs a directory of its own: sweeps remove the attempts of a finished run.
    with Lease(directory / LEASE_DIRECTORY) as lease:
        try:
            found = read_retention(directory, record["key"])
        except RecordError:
            found = None
        if found is None or found["key"] != key:
            found = _measure(run, asked, key)
            lease.assert_held()
            write_retention(directory, found)
    with suppress(OSError):
        (directory / LEASE_DIRECTORY).rmdir()
    return found


def _measure(run: OpenedRun, asked: RetentionSettings, key: str) -> Retention:
    started = now()
    _check_run(run, asked)
    with load_run(run) as context:
        context.adapted.model.to(context.accelerator.device)
        set_seed(run.settings.seed)  # a random backbone is drawn again
        pretrained = context.suite.build_model(run.settings, run.run_id.model.directory).to(context.accelerator.device)
        path = build_path(pretrained, context.adapted)
        probes = build_probes(ProbeContext(run.settings, context.run_id, asked, context.accelerator))
        with context.accelerator.autocast():
            with path.at(0.0) as model:
                untouched = _pretrained_values(probes, model, run)
            steps = [_step(path, t, context, probes, untouched) for t in asked.steps]
            _check_target(steps, run.record)
            batches = itertools.chain.from_iterable(probe.batches() for probe in probes)
            geometry = measure_geometry(path, batches, positions=asked.positions, weight_rows=asked.weight_rows)
        return {
            "schema": RETENTION_SCHEMA,
            "key": key,
            "run": run.record["key"],
            "settings": dataclasses.asdict(asked),
            "path": path.kind,
            "pretrained": untouched,
            "steps": steps,
            "geometry": geometry,
            "started": started,
            "finished": now(),
            "provenance": {
                **run_provenance(context.adapted.model),
                "probes": {name: content for probe in probes for name, content in probe.depends_on.items()},
            },
        }


def _check_run(run: OpenedRun, asked: RetentionSettings) -> None:
    """Check that a run can be measured.

    Raises:
        QgoftError: its adapter is missing, or a judge would be asked at every t.
    """
    if not (run.directory / "adapter").is_dir():
        again = rerun_command(run.record, model_files())
        raise QgoftError(f"{run.directory} has no adapter, so that its retention cannot be measured; delete it and run: {again}")
    judge = run.settings.judge
    if judge.kind == "openai" and not asked.ask_judge:
        raise QgoftError(
            f"run {run.record['key'][:16]} is rated by {judge.model}, which would be asked at every t; set retention.ask_judge=true to confirm"
        )


def build_probes(context: ProbeContext) -> list[Probe]:
    """Return the requested probes. Knowledge is left out if it is the target of the run.

    Raises:
        QgoftError: a probe lacks data, or none is left.
    """
    names = [name for name in context.asked.probes if name != "knowledge" or context.settings.task.full_name != MMLU]
    if not names:
        raise QgoftError("probe knowledge is MMLU, which this run reports itself; name others with retention.probes=[language]")
    return [KNOWN[name](context) if name in KNOWN else LmEval(context, name) for name in names]


def _step(path: BackbonePath, t: float, context: RunContext, probes: Sequence[Probe], untouched: dict[str, Any]) -> dict[str, Any]:
    """Return target score and probes at t. At t = 0 the probes are those of the untouched backbone."""
    with path.at(t) as model:
        context.suite.weights = f"t={t}"  # answers of other weights are not reused
        predictions = predict_test_sets(dataclasses.replace(context, adapted=dataclasses.replace(context.adapted, model=model)))
        primary = context.settings.task.primary
        metric = context.suite.compute_metrics(predictions)[primary]
        target = ProbeValue(metric.value, metric.n, metric.standard_error, metric.majority_baseline, primary not in LOWER_IS_BETTER)
        values = untouched if t == 0 else {n: v.plain() for probe in probes for n, v in probe.measure(model, probe.depends_on).items()}
    return {"t": t, "target": target.plain(), "probes": values}


def _check_target(steps: list[dict[str, Any]], record: Record) -> None:
    """Check that the score at t = 1 is that of the record.

    Raises:
        QgoftError: it differs by more than rounding.
    """
    name, primary = record["primary"], record["metrics"][record["primary"]]
    here = next(step["target"]["value"] for step in steps if step["t"] == 1)
    two_items = 200 / primary["n"]
    if here is None or abs(here - primary["value"]) > tolerance(name, least=max(0.2, two_items)):
        raise QgoftError(
            f"run {record['key'][:16]} has {name} {primary['value']:.3f}, and its saved adapter scores {here} here: package versions or hardware "
            "differ too much to measure its retention; run it again"
        )


def _pretrained_values(probes: Sequence[Probe], model: nn.Module, run: OpenedRun) -> dict[str, Any]:
    """Return the values of the untouched backbone, each measured once per backbone and kept in the user's cache."""
    base, settings = run.run_id.model, run.settings
    backbone = {
        "weights": [base.sha256, base.files],
        "dtype": [settings.model.dtype, settings.train.mixed_precision],
        "seed": settings.seed if settings.model.init == "random" else None,
        "version": RETENTION_VERSION,
    }
    values: dict[str, Any] = {}
    for probe in probes:
        places = {name: _cache_file({**backbone, "value": name, "depends_on": content}) for name, content in probe.depends_on.items()}
        known = {name: value for name, path in places.items() if (value := _read_value(path)) is not None}
        missing = [name for name in places if name not in known]
        measured = probe.measure(model, missing) if missing else {}
        for name, value in measured.items():
            with suppress(OSError):
                places[name].parent.mkdir(parents=True, exist_ok=True)
                write_atomically(places[name], json.dumps(value.plain()))
        values |= {name: (known.get(name) or measured[name]).plain() for name in places}
    return values


def _cache_file(content: dict[str, Any]) -> Path:
    return cache_directory() / "retention" / f"{hashlib.sha256(canonical_json(content).encode()).hexdigest()[:32]}.json"


def _read_value(path: Path) -> ProbeValue | None:
    try:
        return ProbeValue(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
