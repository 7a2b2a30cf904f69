"""Measurement of the retention of a finished run."""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
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
from qgoft.records import Record, canonical_json, write_atomically
from qgoft.records.rerun import rerun_command
from qgoft.records.retention import RETENTION_SCHEMA, RETENTION_VERSION, Retention, read_retention, retention_key, write_retention
from qgoft.retention.geometry import measure_geometry
from qgoft.retention.language import Knowledge, Language, LmEval
from qgoft.retention.path import BackbonePath, build_path
from qgoft.retention.probes import Probe, ProbeContext, ProbeValue
from qgoft.retention.similarity import Similarity
from qgoft.retention.transfer import Transfer
from qgoft.tasks.evaluate import LOWER_IS_BETTER, Metric
from qgoft.train.adapter_files import check_adapter, load_adapter
from qgoft.train.prepare import prepare
from qgoft.train.record import RunContext, now, run_provenance
from qgoft.train.rescore import OpenedRun
from qgoft.train.run import predict_test_sets

PROBES: dict[str, Callable[[ProbeContext], Probe]] = {
    "transfer": Transfer,
    "similarity": Similarity,
    "language": Language,
    "knowledge": Knowledge,
}
# Largest difference, in points, between the score at t = 1 and that of the record: rounding may flip a few items.
TOLERANCE = 0.2


def measure_retention(run: OpenedRun, asked: RetentionSettings) -> Retention:
    """Return the retention of a finished run from its saved adapter, and write it next to the record. A finished measurement is returned.

    Raises:
        QgoftError: the adapter is missing, a probe is unknown or lacks data, the method cannot be rewound, or the score at t = 1 is not that of the
            record.
        LeaseHeld: another process measures this run.
        RecordError: the measurement that is there is corrupt.
    """
    directory, record = run.directory, run.record
    key = retention_key(record["key"], dataclasses.asdict(asked))
    # The lease needs a directory of its own: sweeps remove the attempts of a finished run.
    with Lease(directory / "retention") as lease:
        found = read_retention(directory, record["key"])
        if found is None or found["key"] != key:
            found = _measure(run, asked, key)
            lease.assert_held()
            write_retention(directory, found)
    with suppress(OSError):
        (directory / "retention").rmdir()
    return found


def _measure(run: OpenedRun, asked: RetentionSettings, key: str) -> Retention:
    started = now()
    if not (run.directory / "adapter").is_dir():
        again = rerun_command(run.record, model_files())
        raise QgoftError(f"{run.directory} has no adapter, so that its retention cannot be measured; delete it and run: {again}")
    with tempfile.TemporaryDirectory() as scratch:
        # Decoders write answers to the directory of their run.
        context = prepare(run.settings, dataclasses.replace(run.run_id, directory=Path(scratch)))
        check_adapter(run.record, run.directory)
        load_adapter(context.adapted, run.directory / "adapter")
        set_seed(run.settings.seed)  # a random backbone is drawn again
        pretrained = context.suite.build_model(run.settings, run.run_id.model.directory).to(context.accelerator.device)
        path = build_path(pretrained, context.adapted)
        probes = build_probes(ProbeContext(run.settings, context.run_id, asked, context.accelerator))
        with path.at(0.0) as model:
            untouched = _pretrained_values(probes, model, run)
        steps = [_step(path, t, context, probes, untouched) for t in asked.steps]
        _check_target(steps, run.record, path)
        batches = next((batches for probe in probes.values() if (batches := list(probe.batches()))), [])
        return {
            "schema": RETENTION_SCHEMA,
            "key": key,
            "run": run.record["key"],
            "settings": dataclasses.asdict(asked),
            "path": path.kind,
            "pretrained": untouched,
            "steps": steps,
            "geometry": measure_geometry(path, batches, positions=asked.positions, weight_rows=asked.weight_rows),
            "started": started,
            "finished": now(),
            "provenance": {**run_provenance(context.adapted.model), "probes": {name: probe.depends_on for name, probe in probes.items()}},
        }


def build_probes(context: ProbeContext) -> dict[str, Probe]:
    """Return the requested probes by name.

    Raises:
        QgoftError: an unknown probe, or one without data.
    """
    return {name: PROBES[name](context) if name in PROBES else LmEval(context, name) for name in context.asked.probes}


def _step(path: BackbonePath, t: float, context: RunContext, probes: Mapping[str, Probe], untouched: dict[str, Any]) -> dict[str, Any]:
    """Return target score and probes at t. At t = 0 the probes are those of the untouched backbone."""
    with path.at(t) as model:
        context.suite.weights = f"t={t}"  # answers of other weights are not reused
        predictions = predict_test_sets(dataclasses.replace(context, adapted=dataclasses.replace(context.adapted, model=model)))
        target = context.suite.compute_metrics(predictions)[context.settings.task.primary]
        values = untouched if t == 0 else _values(probes, model)
    return {"t": t, "target": target_value(target, context.settings.task.primary), "probes": values}


def target_value(metric: Metric, name: str) -> dict[str, Any]:
    """Return the run's own metric in the form of a probe."""
    value = ProbeValue(metric.value, metric.n, metric.standard_error, metric.majority_baseline, name not in LOWER_IS_BETTER)
    return value.plain()


def _check_target(steps: list[dict[str, Any]], record: Record, path: BackbonePath) -> None:
    """Check that the score at t = 1 is that of the record.

    Raises:
        QgoftError: it differs by more than rounding.
    """
    then = record["metrics"][record["primary"]]["value"]
    tolerance = TOLERANCE if record["settings"]["model"].get("dtype", "float32") == "float32" else 10 * TOLERANCE
    for step in steps:
        here = step["target"]["value"]
        if step["t"] == 1 and (here is None or abs(here - then) > tolerance):
            raise QgoftError(
                f"run {record['key'][:16]} has {record['primary']} {then:.3f}, and its saved adapter scores {here} here: package versions or hardware "
                "differ too much to measure its retention; run it again"
            )


def _values(probes: Mapping[str, Probe], model: nn.Module) -> dict[str, Any]:
    return {name: value.plain() for probe in probes.values() for name, value in probe.measure(model).items()}


def _pretrained_values(probes: Mapping[str, Probe], model: nn.Module, run: OpenedRun) -> dict[str, Any]:
    """Return the values of the untouched backbone, measured once per backbone and probe and kept in the user's cache."""
    values: dict[str, Any] = {}
    for name, probe in probes.items():
        base, settings = run.run_id.model, run.settings.model
        weights = {"sha256": base.sha256, "files": base.files, "dtype": settings.dtype}
        seed = run.settings.seed if settings.init == "random" else None
        content = {"probe": name, "rows": probe.depends_on, "weights": weights, "seed": seed, "version": RETENTION_VERSION}
        path = cache_directory() / "retention" / f"{hashlib.sha256(canonical_json(content).encode()).hexdigest()[:32]}.json"
        try:
            known = json.loads(path.read_text("utf-8"))
            values |= {one: ProbeValue(**value).plain() for one, value in known.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            measured = {one: value.plain() for one, value in probe.measure(model).items()}
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps(measured))
            values |= measured
    return values
