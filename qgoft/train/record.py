"""The record of a run, from its context and its result."""

import dataclasses
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from qgoft import records
from qgoft.config.locations import REPOSITORY
from qgoft.config.settings import RunSettings
from qgoft.lease import Lease
from qgoft.methods import AdaptedModel
from qgoft.methods.orthogonality import orthogonality_error
from qgoft.run_id import RunId, world_size
from qgoft.tasks.base import Suite
from qgoft.tasks.evaluate import LOWER_IS_BETTER, Metric, Predictions
from qgoft.train.checkpoint import Resumed
from qgoft.train.distributed import unsharded
from qgoft.train.memory import peak_memory
from qgoft.train.optim import count_steps
from qgoft.train.training_state import TrainResult
from qgoft.tuners.goft.layer import givens_backend


@dataclass
class RunContext:
    """Everything loaded and checked before training. From then on a failure leaves a record."""

    settings: RunSettings
    run_id: RunId
    suite: Suite
    adapted: AdaptedModel
    accelerator: Accelerator
    lease: Lease | None = None

    def assert_lease_held(self) -> None:
        """Check that this process may still write, if it is the one that writes.

        Raises:
            LeaseLost: another process has acquired the run.
        """
        if self.lease is not None:
            self.lease.assert_held()


@dataclass
class RunResult:
    """The result of a run, filled step by step.

    Attributes:
        training: result of the training loop; None if it did not finish.
        shared: key and provenance of a training shared by several tasks.
        is_loaded: the shared training was loaded instead of trained.
        resumed: interruptions of the training.
        interrupt: the signal that ended the run.
    """

    started: str
    setup_seconds: float
    training: TrainResult | None = None
    shared: dict[str, Any] | None = None
    is_loaded: bool = False
    resumed: list[Resumed] = field(default_factory=list)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    status: str = "done"
    reason: str | None = None
    interrupt: KeyboardInterrupt | None = None

    def fail(self, status: str, reason: str) -> None:
        """Set a status other than done, with its reason."""
        self.status, self.reason = status, reason


def build_record(context: RunContext, result: RunResult) -> dict[str, Any]:
    """Build the record; all processes call it, since sharded weights are gathered."""
    settings, adapted, task = context.settings, context.adapted, context.settings.task
    training = result.training
    return {
        "schema": records.SCHEMA,
        "key": context.run_id.key,
        "protocol": settings.protocol,
        "suite": task.suite,
        "task": task.name,
        "task_version": task.version,
        "method": settings.method.name,
        "variant": settings.method.variant,
        "model": settings.model.name,
        "seed": settings.seed,
        "status": result.status,
        "reason": result.reason,
        "primary": task.primary,
        "metrics": {name: {**dataclasses.asdict(m), "higher_is_better": name not in LOWER_IS_BETTER} for name, m in result.metrics.items()},
        "selection": settings.selection,
        "best_checkpoint": {"step": training.best_step if training else None, "score": training.best_score if training else None},
        "params": {"trainable": adapted.trainable, "head": adapted.head, "total": adapted.total},
        "cost": _cost(context, result),
        "orthogonality": _orthogonality(context, result),
        "started": result.started,
        "finished": now(),
        "settings": _public_settings(settings),
        **_files(context, result),
        "provenance": _provenance(context, result),
    }


def _cost(context: RunContext, result: RunResult) -> dict[str, Any]:
    training = result.training
    seconds, steps = (training.seconds, training.steps) if training else (None, None)
    examples = steps * _examples_per_step(context) if steps else None
    # Peak of training: evaluation holds copies of merged weights and generates many answers at a time.
    peak = peak_memory() if training is None else training.peak_memory
    return {
        "setup_seconds": result.setup_seconds,
        "seconds": seconds,
        "steps": steps,
        "seconds_per_step": seconds / steps if seconds and steps else None,
        "examples_per_second": examples / seconds if seconds and examples else None,
        # Unknown if another run has trained.
        "peak_memory_bytes": None if result.shared and result.shared["shared"] else peak,
    }


def _examples_per_step(context: RunContext) -> float:
    """Return the mean rows per step over an epoch, whose last batch may be small."""
    train, rows = context.settings.train, len(context.suite.train)
    full, rest = divmod(rows, train.batch_size)
    _, per_epoch = count_steps(train, full + (rest > 0 and not train.drop_last))
    return (full * train.batch_size if train.drop_last else rows) / per_epoch


def _orthogonality(context: RunContext, result: RunResult) -> dict[str, Any]:
    """Return error and unweighted penalty; None if nothing was trained, or if a failed run has left the device unusable."""
    model, penalty = context.adapted.model, context.adapted.penalty
    measured: dict[str, Any] = {"max_error": None, "penalty": None}
    if result.training is None:
        return measured
    try:
        with unsharded(model):
            measured["max_error"] = finite(orthogonality_error(model))
            measured["penalty"] = finite(penalty(model).item()) if penalty else None
    except RuntimeError:
        if result.status == "done":
            raise
    return measured


def _files(context: RunContext, result: RunResult) -> dict[str, Any]:
    """Return the checksums of the files of a finished run; those of a failed one may belong to an earlier attempt.

    Only the main process writes the record, and moves the files afterwards, while the others may still build theirs.
    """
    if result.status != "done" or not context.accelerator.is_main_process:
        return {}
    directory = context.run_id.directory
    return {"files": {**records.file_checksums(directory), **records.adapter_checksums(directory)}}


def _provenance(context: RunContext, result: RunResult) -> dict[str, Any]:
    data, model, suite = context.run_id.data, context.run_id.model, context.suite
    found: dict[str, Any] = {
        **run_provenance(context.adapted.model),
        "data": {
            "source": data.source,
            "revision": data.revision,
            "fingerprint": data.fingerprint,
            "rows": suite.rows,
            "subset": suite.is_subset,
        },
        "model": {"source": model.source, "revision": model.revision, "sha256": model.sha256},
    }
    if suite.data_fixes:
        found["data"]["data_fixes"] = suite.data_fixes
    if model.files is not None:
        found["model"]["files"] = model.files
    if result.resumed:
        found["resumed"] = [dataclasses.asdict(part) for part in result.resumed]
    if result.shared is not None:
        found["training"] = result.shared
    return found


def _public_settings(settings: RunSettings) -> dict[str, Any]:
    """Return the settings without local paths; the content of a path is stated by its checksum."""
    data = dataclasses.asdict(settings)
    data["results"]["root"] = None
    data["data"]["root"] = "directory" if settings.data.root else None
    data["model"]["path"] = "directory" if settings.model.path else None
    data["task"]["path"] = "directory" if settings.task.path else None
    return data


def hardware(model: nn.Module | None = None) -> dict[str, Any]:
    """Return the hardware of this run, with the backend of the Givens operator if the model has such layers."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    backend = None if model is None else givens_backend(model)
    found = records.hardware(device=device, threads=torch.get_num_threads(), processes=world_size())
    return found if backend is None else {**found, "givens": backend}


def run_provenance(model: nn.Module | None = None) -> dict[str, Any]:
    """Return code, packages and hardware of this process."""
    return {
        **records.code_provenance(REPOSITORY),
        "code": records.code_checksum(),
        "packages": records.package_versions(),
        "hardware": hardware(model),
    }


def finite(value: float | None) -> float | None:
    """Return a value, or None if it is not finite, since records hold no NaN."""
    return value if value is not None and math.isfinite(value) else None


def now() -> str:
    """Return the current time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
