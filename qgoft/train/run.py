"""One run: settings in, record out."""

import dataclasses
import gzip
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from qgoft import records
from qgoft.config.settings import RunSettings
from qgoft.errors import DISK_ERRORS, Diverged, QgoftError, format_exception
from qgoft.lease import Lease, LeaseLost
from qgoft.methods import merged_for_eval
from qgoft.methods.orthogonality import orthogonality_error
from qgoft.run_id import CHECKPOINT, RunId, identify
from qgoft.tasks.evaluate import Predictions
from qgoft.train.adapter_files import save_adapter, weights_checksum
from qgoft.train.checkpoint import CheckpointManager
from qgoft.train.distributed import place, unsharded
from qgoft.train.interrupts import SignalHandler
from qgoft.train.loop import LoopHooks, fit
from qgoft.train.memory import reset_peak_memory
from qgoft.train.prepare import prepare, train_loader
from qgoft.train.progress import Progress, Tracker
from qgoft.train.record import RunContext, RunResult, build_record, finite, hardware, now, run_provenance
from qgoft.train.shared_training import train_or_load, training_key
from qgoft.train.training_state import TrainResult

# Statuses after which a resumed run would end in the same way.
FINAL = ("done", "diverged")
# Selection rule -> the split that it evaluates.
SELECTION_SPLIT = {"last": None, "best_validation": "validation", "best_reported": "test"}


def run(settings: RunSettings, *, acquire_timeout: float = 0.0, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare, train, evaluate and record one run. Resumes from the last checkpoint if interrupted.

    Args:
        acquire_timeout: seconds to watch the heartbeat of a process on another host that owns the run.
        overrides: settings of the command line that differ from the protocol, as `name=value`, listed in the record.

    Returns:
        The record, which may be that of an earlier run.

    Raises:
        QgoftError: invalid input; nothing was recorded. Later failures are in the record's status and reason.
        LeaseHeld: another process owns this run.
        LeaseLost: the lease of this process expired, and another process has acquired the run.
        KeyboardInterrupt: Ctrl-C or a signal (`Stopped`) ended the run, after a checkpoint.
    """
    run_provenance()  # captured first, since the working tree may change during the run
    with _disk_errors(settings), SignalHandler() as signals:
        run_id = identify(settings)
        if run_id.is_done:
            run_id.delete_checkpoints()
            return run_id.read() or {}
        with _lease(run_id, acquire_timeout) as lease:
            if run_id.is_done:  # another sweep was faster
                return run_id.read() or {}
            if lease is not None:
                lease.adopt()
                run_id.pop_rank_failure()  # of an earlier attempt
                run_id = dataclasses.replace(run_id, directory=lease.workspace)
            began = time.perf_counter()
            context = prepare(settings, run_id, lease)
            result = RunResult(started=now(), setup_seconds=time.perf_counter() - began)
            tracker = Tracker(
                settings, run_id.directory, context.accelerator, Progress(settings), None if lease is None else lease.directory
            )
            _train_and_evaluate(context, result, tracker, signals)
            record = build_record(context, result)
            if lease is not None:
                lease.assert_held()
                record["overrides"] = sorted(overrides)
                records.write_record(lease.workspace, record)
                lease.publish(discard=(CHECKPOINT,) if record["status"] in FINAL else ())
            tracker.finish(record)
        if result.interrupt is not None:
            raise result.interrupt
        return record


@contextmanager
def _lease(run_id: RunId, acquire_timeout: float) -> Iterator[Lease | None]:
    """Hold the lease of a run in its main process."""
    if int(os.environ.get("RANK", "0")):
        yield None
        return
    try:
        run_id.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QgoftError(f"cannot create {run_id.directory.parent}: {error.strerror}; set results.root to another directory") from error
    with Lease(run_id.directory, acquire_timeout=acquire_timeout) as lease:
        try:
            yield lease
        except Exception:
            lease.assert_held()  # the workspace is missing if another process has acquired the run
            raise


def _train_and_evaluate(context: RunContext, result: RunResult, tracker: Tracker, signals: SignalHandler) -> None:
    """Train, evaluate and write the files of a run; any failure becomes its status and reason."""
    reset_peak_memory()
    try:
        _train(context, result, tracker, signals)
        _evaluate(context, result)
    except LeaseLost:
        raise
    except QgoftError as error:  # such as a judge that did not answer
        result.fail("failed", str(error))
    except Diverged as error:
        result.fail("diverged", str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        result.fail("oom", f"{format_exception(error)}; {_memory_advice(context.settings, is_trained=result.training is not None)}")
    except KeyboardInterrupt as interrupt:
        result.fail("interrupted", str(interrupt) or "interrupted by Ctrl-C")
        result.interrupt = interrupt
    except Exception as error:  # the record must state any failure
        context.assert_lease_held()
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        result.fail("failed", format_exception(error))
        traceback.print_exc()
    finally:
        tracker.close()
    primary = context.settings.task.primary
    if result.status == "done" and result.metrics[primary].value is None:
        result.fail("diverged", f"{primary} is undefined: constant predictions or labels")
    if context.accelerator.num_processes > 1:
        _collect_failures(context, result)


def _train(context: RunContext, result: RunResult, tracker: Tracker, signals: SignalHandler) -> None:
    """Train, or load the training that other tasks of this suite share."""
    settings, suite = context.settings, context.suite

    def train(directory: Path, check: Callable[[], None]) -> TrainResult:
        return _fit(context, result, tracker, signals, directory, check)

    def made() -> dict[str, Any]:
        return {
            "run": context.run_id.key,
            **run_provenance(context.adapted.model),
            "resumed": [dataclasses.asdict(part) for part in result.resumed],
        }

    if suite.shared_training is None:
        result.training = train(context.run_id.directory, context.assert_lease_held)
        return
    key = training_key(settings, context.run_id, suite.shared_training)
    directory = trained_directory(settings, key)
    result.training, by = train_or_load(directory, context, train, made)
    result.is_loaded = by is not None
    if result.is_loaded:
        place(context.adapted.model, context.accelerator)
    suite.weights = weights_checksum(directory / "adapter")
    # An earlier attempt of this run may have trained it, and ended before the evaluation.
    is_own = (by or {}).pop("run", None) == context.run_id.key
    result.shared = {"key": key, "shared": result.is_loaded and not is_own, **({"by": by} if by else {})}


def _fit(
    context: RunContext, result: RunResult, tracker: Tracker, signals: SignalHandler, directory: Path, check: Callable[[], None]
) -> TrainResult:
    """Train with checkpoints in a directory; `check` raises if another process has acquired it."""
    checkpoints = CheckpointManager(
        directory / CHECKPOINT,
        context.accelerator,
        every=context.settings.results.checkpoint_interval,
        origin=records.code_origin(),
        hardware=hardware(context.adapted.model),
        notify=tracker.progress.say,
        lines=lambda: tracker.lines,
        rewind=tracker.rewind,
        check=check,
    )

    def log(line: dict[str, Any]) -> None:
        check()
        tracker.log(line)

    def measure_drift() -> float | None:
        with unsharded(context.adapted.model):
            return finite(orthogonality_error(context.adapted.model))

    hooks = LoopHooks(
        selection_score=build_selector(context), log=log, measure_drift=measure_drift, checkpoints=checkpoints, signals=signals
    )
    training = fit(context.adapted, train_loader(context), context.settings, context.accelerator, hooks)
    training.note_memory()
    result.resumed = checkpoints.resumed
    return training


def build_selector(context: RunContext) -> Callable[[], float | None] | None:
    """Return a function that evaluates the split of the selection rule; None for `last`."""
    suite, split = context.suite, SELECTION_SPLIT[context.settings.selection]
    if split is None:
        return None

    def select() -> float | None:
        with unsharded(context.adapted.model), merged_for_eval(context.adapted):
            if split == "test":
                return suite.compute_metrics(predict_test_sets(context))[context.settings.task.primary].value
            return suite.selection_score(suite.evaluate(split, context.adapted.model, context.accelerator))

    return select


def trained_directory(settings: RunSettings, key: str) -> Path:
    """Return the directory of a training shared by several tasks."""
    return Path(settings.results.root) / "trained" / key


def predict_test_sets(context: RunContext) -> dict[str, Predictions]:
    """Return predictions and scores of every test set."""
    suite = context.suite
    return {name: suite.evaluate(f"test:{name}", context.adapted.model, context.accelerator) for name in suite.test_sets}


def _evaluate(context: RunContext, result: RunResult) -> None:
    """Evaluate the test sets, and write adapter and predictions."""
    directory = context.run_id.directory
    with unsharded(context.adapted.model), merged_for_eval(context.adapted):
        result.predictions = predict_test_sets(context)
    context.assert_lease_held()
    if result.shared is not None and result.is_loaded:
        # Copied, because saving AdaLoRA again would truncate it to its budget a second time.
        if context.accelerator.is_main_process:
            shutil.copytree(
                trained_directory(context.settings, result.shared["key"]) / "adapter", directory / "adapter", dirs_exist_ok=True
            )
    else:
        save_adapter(context, directory / "adapter")
    if context.accelerator.is_main_process:
        _write_predictions(directory / "predictions.jsonl.gz", result.predictions)
    result.metrics = context.suite.compute_metrics(result.predictions)


def _write_predictions(path: Path, predictions: dict[str, Predictions]) -> None:
    with gzip.GzipFile(path, "wb", mtime=0) as raw:
        for name, found in predictions.items():
            for idx, prediction, label in zip(found.ids, found.predictions, found.labels, strict=True):
                line = {"set": name, "idx": idx, "prediction": prediction, "label": label}
                raw.write((json.dumps(line) + "\n").encode())


def _collect_failures(context: RunContext, result: RunResult) -> None:
    """Take the status of the rank that failed; the others end by a signal or a closed connection."""
    if not context.accelerator.is_main_process:
        if result.status in ("failed", "oom"):
            context.run_id.write_rank_failure(context.accelerator.process_index, result.status, str(result.reason))
    elif result.status in ("failed", "interrupted") and (failure := context.run_id.pop_rank_failure()):
        result.fail(*failure)


def _memory_advice(settings: RunSettings, *, is_trained: bool) -> str:
    """Return a setting that needs less memory for the same training."""
    size, steps = settings.train.batch_size, settings.train.gradient_accumulation_steps
    if is_trained:
        return f"during evaluation; set train.eval_batch_size={max(1, settings.train.eval_batch_size // 2)}"
    if size % 2 == 0:
        return f"for the same batch set train.batch_size={size // 2} train.gradient_accumulation_steps={2 * steps}"
    if not settings.train.gradient_checkpointing:
        return "set train.gradient_checkpointing=true"
    return "this model needs a larger device"


@contextmanager
def _disk_errors(settings: RunSettings) -> Iterator[None]:
    """Report a full disk, or a file without permission, as a user error."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        name, root = error.filename, settings.results.root
        if isinstance(name, str | Path) and not Path(name).resolve().is_relative_to(Path(root).resolve()):
            raise QgoftError(f"{name}: {error.strerror}; make it accessible, or choose another path") from error
        raise QgoftError(
            f"cannot write below results.root={root}: {error.strerror}; free space or set results.root to another directory"
        ) from error
