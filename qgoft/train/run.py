"""One run: settings in, record out."""

import dataclasses
import gzip
import json
import math
import os
import re
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from peft import PeftType
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from qgoft import records
from qgoft.config.settings import RunSettings
from qgoft.errors import DISK_ERRORS, Diverged, QgoftError, format_exception
from qgoft.lease import Lease, LeaseLost
from qgoft.methods import AdaptedModel, apply_method, merged_for_eval
from qgoft.methods.orthogonality import orthogonality_error
from qgoft.models import check_fit
from qgoft.run_id import CHECKPOINT, RunId, identify, world_size
from qgoft.tasks.base import TextSuite
from qgoft.tasks.evaluate import LOWER_IS_BETTER, Metric, Predictions
from qgoft.tasks.registry import Suite, build_suite
from qgoft.train.checkpoint import CheckpointManager, Resumed
from qgoft.train.distributed import check_sharding, gather_state, place, unsharded
from qgoft.train.environment import check_accelerator, check_environment
from qgoft.train.interrupts import SignalHandler
from qgoft.train.loop import fit
from qgoft.train.memory import peak_memory, reset_peak_memory
from qgoft.train.optim import check_schedule, count_steps
from qgoft.train.progress import Progress, Tracker
from qgoft.train.resources import check_resources
from qgoft.train.shared_training import from_main, save_svd_signs, train_or_load, trained_checksum, training_key
from qgoft.train.training_state import TrainResult

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT = timedelta(days=2)  # of the processes of a run for each other; torchrun ends them all where one fails
FINAL = ("done", "diverged")  # to go on from a checkpoint would come to the same
MODE_OF_SCORES = {"last": None, "best_validation": "validation", "best_reported": "test"}


@dataclasses.dataclass
class RunContext:
    """Everything loaded and checked; from here on a failure leaves a record."""

    settings: RunSettings
    run_id: RunId
    suite: Suite
    adapted: AdaptedModel
    accelerator: Accelerator
    lease: Lease | None = None
    resumed: list[Resumed] = dataclasses.field(default_factory=list)
    stop: KeyboardInterrupt | None = None

    def assert_lease_held(self) -> None:
        """Assert that this process may still write, if it is the one that writes.

        Raises:
            LeaseLost: another process holds the run now.
        """
        if self.lease is not None:
            self.lease.assert_held()


def run(settings: RunSettings, *, acquire_timeout: float = 0.0, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Do one run, or return the record of a finished one. Resumes from the last checkpoint if the run was interrupted.

    Args:
        overrides: settings of the command line that are not those of the protocol, as `name=value`; the record lists them, so that readers
            can tell the runs of a sweep from the protocol's own.
        patience: seconds to look whether another machine's process that holds this run shows life.

    Raises:
        QgoftError: the input is wrong; nothing was recorded. Later failures are in the record's status and reason.
        LeaseHeld: another process is at work on this run.
        LeaseLost: the lease of this process expired, and another process has taken the run over.
        KeyboardInterrupt: Ctrl-C or a signal (`Stopped`) ended the run, after its state was saved.
    """
    _run_provenance()  # before anything takes long: the repository may change while this process runs the code that it has loaded
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
                run_id = dataclasses.replace(run_id, folder=lease.workspace)
            began = time.perf_counter()
            context = prepare(settings, run_id, lease)
            record, tracker = _run_prepared(context, time.perf_counter() - began, signals)
            if lease is not None:
                lease.assert_held()
                record["overrides"] = sorted(overrides)
                records.write_record(lease.workspace, record)
                lease.publish(leave=(CHECKPOINT,) if record["status"] in FINAL else ())
            tracker.finish(record)
        if context.stop is not None:
            raise context.stop
        return record


@contextmanager
def _lease(run_id: RunId, acquire_timeout: float) -> Iterator[Lease | None]:
    """The main process of a run holds its lease."""
    if int(os.environ.get("RANK", "0")):
        yield None
        return
    try:
        run_id.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QgoftError(f"cannot make {run_id.folder.parent}: {error.strerror}; set results.root to another directory") from error
    with Lease(run_id.folder, acquire_timeout=acquire_timeout) as lease:
        try:
            yield lease
        except Exception:
            lease.assert_held()  # a workspace that another process took over is not found
            raise


def prepare(settings: RunSettings, run_id: RunId, lease: Lease | None = None) -> RunContext:
    """Load rows, weights and method, and check that they fit.

    Args:
        identity: of the run; its directory is the one to write to. All processes of a run use that of the main process.
        lease: held by the main process while the run is recorded.

    Raises:
        QgoftError: something does not fit.
    """
    accelerator = build_accelerator(settings)
    run_id = dataclasses.replace(run_id, folder=from_main(run_id.folder, accelerator))
    set_seed(settings.seed)
    suite = build_suite(settings, run_id)
    if settings.train.group_by_length and suite.train_lengths is None:
        raise QgoftError(f"train.group_by_length=true: the rows of suite {settings.task.suite} have no lengths here; leave it out")
    model = suite.build_model(settings, run_id.model.folder)
    if isinstance(suite, TextSuite):
        check_fit(suite.tokenizer, model, settings.train.max_length, settings.model.name)
    if settings.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    per_process = _batch_per_process(settings, accelerator)
    batches, rest = divmod(len(suite.train), per_process * accelerator.num_processes)
    batches += rest > 0 and not settings.train.drop_last
    if not batches:
        raise QgoftError(
            f"{settings.task.full_name} has {len(suite.train)} rows to train on and train.batch_size is {settings.train.batch_size}: with "
            "train.drop_last=true no batch is left; lower train.batch_size, or set train.drop_last=false"
        )
    total, per_epoch = count_steps(settings.train, batches)
    check_schedule(settings.train, settings.optim, total, per_epoch)
    adapted = apply_method(model, suite.model_settings(settings), settings.method, total_steps=total)
    check_resources(adapted, settings, accelerator)
    return RunContext(settings, run_id, suite, adapted, accelerator, lease)


def build_accelerator(settings: RunSettings) -> Accelerator:
    """On a CPU it must be said, or several processes would each look for a device. accelerate keeps the precision of the first
    Accelerator of a process; a sweep makes many runs in one, so it is forgotten first."""
    check_environment()
    AcceleratorState._reset_state()
    on_cpu = not torch.cuda.is_available()
    if settings.train.mixed_precision == "fp16" and on_cpu:
        # accelerate would train in float32 without a word.
        raise QgoftError("train.mixed_precision=fp16 does not work on this machine, which has no CUDA device; use no or bf16")
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=settings.train.mixed_precision,
        gradient_accumulation_steps=settings.train.gradient_accumulation_steps,
        # One process may wait for a training that another run makes, or ask a judge, while the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
    )
    check_accelerator(accelerator, settings)
    check_sharding(accelerator, settings, _batch_per_process(settings, accelerator))
    return accelerator


def _batch_per_process(settings: RunSettings, accelerator: Accelerator) -> int:
    size, processes = settings.train.batch_size, accelerator.num_processes
    if size % processes:
        raise QgoftError(f"train.batch_size={size} cannot be divided among {processes} processes; change train.batch_size or NPROC")
    return size // processes


def train_loader(context: RunContext) -> DataLoader:
    """Shuffled by the run's seed."""
    generator = torch.Generator().manual_seed(context.settings.seed)
    size = _batch_per_process(context.settings, context.accelerator)
    suite, drop_last = context.suite, context.settings.train.drop_last
    if context.settings.train.group_by_length:
        assert suite.train_lengths is not None
        # Groups of a whole step, so that the order of the rows does not depend on how a step is divided.
        of_step = context.settings.train.batch_size * context.settings.train.gradient_accumulation_steps
        sampler = LengthGroupedSampler(of_step, lengths=suite.train_lengths, generator=generator)
        return DataLoader(suite.train, batch_size=size, sampler=sampler, drop_last=drop_last, collate_fn=suite.collate)
    return DataLoader(suite.train, batch_size=size, shuffle=True, drop_last=drop_last, collate_fn=suite.collate, generator=generator)


def predict_test_sets(context: RunContext) -> dict[str, Predictions]:
    """Predictions and scores on every reported set."""
    suite = context.suite
    return {name: suite.evaluate(f"test:{name}", context.adapted.model, context.accelerator) for name in suite.test_sets}


def build_selector(context: RunContext) -> Callable[[], float | None] | None:
    """Scores the part that the selection rule looks at; None for `last`."""
    suite, part = context.suite, MODE_OF_SCORES[context.settings.selection]
    if part is None:
        return None

    def choose() -> float | None:
        with unsharded(context.adapted.model), merged_for_eval(context.adapted):
            if part == "test":
                return suite.compute_metrics(predict_test_sets(context))[context.settings.task.primary].value
            return suite.selection_score(suite.evaluate(part, context.adapted.model, context.accelerator))

    return choose


def _train(context: RunContext, tracker: Tracker, signals: SignalHandler) -> tuple[TrainResult, dict[str, Any] | None, bool]:
    """Train, or load the training that other tasks of this suite share; then also what the record says about it, and whether it was loaded."""
    settings, adapted, accelerator, suite = context.settings, context.adapted, context.accelerator, context.suite
    key = None if suite.shared_training is None else training_key(settings, context.run_id, suite.shared_training)

    def measure_drift() -> float | None:
        with unsharded(adapted.model):
            return _finite(orthogonality_error(adapted.model))

    def train(folder: Path, check: Callable[[], None]) -> TrainResult:
        checkpoints = CheckpointManager(
            folder / CHECKPOINT,
            accelerator,
            every=settings.results.checkpoint_interval,
            origin=records.code_origin(),
            hardware=_hardware(),
            notify=tracker.progress.say,
            lines=lambda: tracker.lines,
            rewind=tracker.rewind,
            check=check,
        )

        def log(line: dict[str, Any]) -> None:
            check()
            tracker.log(line)

        result = fit(
            adapted, train_loader(context), settings, accelerator, build_selector(context), log, measure_drift, checkpoints, signals
        )
        result.note_memory()
        context.resumed = checkpoints.resumed
        return result

    if key is None:
        return train(context.run_id.folder, context.assert_lease_held), None, False

    def made() -> dict[str, Any]:
        return {"run": context.run_id.key, **_run_provenance(), "resumed": [dataclasses.asdict(part) for part in context.resumed]}

    folder = trained_folder(settings, key)
    result, by = train_or_load(folder, context.run_id.folder, adapted, accelerator, train, made, lambda to: save_adapter(context, to))
    is_loaded = by is not None
    if is_loaded:
        place(adapted.model, accelerator)
    suite.weights = trained_checksum(folder / "adapter")
    # An earlier attempt of this very run may have made it, and ended before it was scored.
    is_own = (by or {}).pop("run", None) == context.run_id.key
    return result, {"key": key, "shared": is_loaded and not is_own, **({"by": by} if by else {})}, is_loaded


def trained_folder(settings: RunSettings, key: str) -> Path:
    """Where a training that several tasks share lies."""
    return Path(settings.results.root) / "trained" / key


def _run_prepared(context: RunContext, setup: float, signals: SignalHandler) -> tuple[dict[str, Any], Tracker]:
    settings, folder = context.settings, context.run_id.folder
    started = _now()
    result, predictions, status, reason, training, is_loaded = None, {}, "done", None, None, False
    loggers = None if context.lease is None else context.lease.folder
    tracker = Tracker(settings, folder, context.accelerator, Progress(settings), loggers)
    reset_peak_memory()
    try:
        result, training, is_loaded = _train(context, tracker, signals)
        with unsharded(context.adapted.model), merged_for_eval(context.adapted):
            predictions = predict_test_sets(context)
        context.assert_lease_held()
        if training is not None and is_loaded:
            # As it was saved: AdaLoRA's, which was cut down to its budget, would be cut down once more.
            if context.accelerator.is_main_process:
                shutil.copytree(trained_folder(settings, training["key"]) / "adapter", folder / "adapter", dirs_exist_ok=True)
        else:
            save_adapter(context, folder / "adapter")
        if context.accelerator.is_main_process:
            _write_predictions(folder / "predictions.jsonl.gz", predictions)
    except LeaseLost:
        raise
    except QgoftError as error:  # such as a judge that did not answer: what is missing is said in words
        status, reason = "failed", str(error)
    except Diverged as error:
        status, reason = "diverged", str(error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        status, reason = "oom", f"{format_exception(error)}; {_smaller(settings, is_trained=result is not None)}"
    except KeyboardInterrupt as stop:
        status, reason, context.stop = "interrupted", str(stop) or "stopped from the keyboard", stop
    except OSError as error:
        context.assert_lease_held()
        if error.errno in DISK_ERRORS:
            raise
        status, reason = "failed", format_exception(error)
        traceback.print_exc()
    except Exception as error:  # the record must say what happened, whatever it was
        context.assert_lease_held()
        status, reason = "failed", format_exception(error)
        traceback.print_exc()
    finally:
        tracker.close()
    metrics = context.suite.compute_metrics(predictions) if predictions else {}
    if status == "done" and metrics[settings.task.primary].value is None:
        status, reason = "diverged", f"{settings.task.primary} is undefined: the predictions are all alike"
    if context.accelerator.num_processes > 1:
        status, reason = _of_all_processes(context, status, reason)
    # Of training: scoring holds copies of merged weights and writes many answers at a time.
    peak = peak_memory() if result is None else result.peak_memory
    return _record(context, started, setup, result, metrics, status, reason, training, peak), tracker


def _of_all_processes(context: RunContext, status: str, reason: str | None) -> tuple[str, str | None]:
    """What went wrong, where it did: the process that fails leaves word, since the others end by a signal or a closed connection."""
    if not context.accelerator.is_main_process:
        if status in ("failed", "oom"):
            context.run_id.write_rank_failure(context.accelerator.process_index, status, str(reason))
        return status, reason
    if status in ("failed", "interrupted"):
        return context.run_id.pop_rank_failure() or (status, reason)
    return status, reason


def _examples_a_step(context: RunContext) -> float:
    """Rows a step, on average over an epoch, whose last batch may be small."""
    train, rows = context.settings.train, len(context.suite.train)
    unsharded, rest = divmod(rows, train.batch_size)
    _, per_epoch = count_steps(train, unsharded + (rest > 0 and not train.drop_last))
    return (unsharded * train.batch_size if train.drop_last else rows) / per_epoch


def _record(
    context: RunContext,
    started: str,
    setup: float,
    result: TrainResult | None,
    metrics: dict[str, Metric],
    status: str,
    reason: str | None,
    training: dict[str, Any] | None,
    peak: int | None,
) -> dict[str, Any]:
    settings, adapted, run_id = context.settings, context.adapted, context.run_id
    seconds, steps = (result.seconds, result.steps) if result else (None, None)
    examples = steps * _examples_a_step(context) if steps else None
    data, model = run_id.data, run_id.model
    with unsharded(adapted.model):
        max_error = _finite(orthogonality_error(adapted.model)) if result else None
        penalty = _finite(adapted.penalty(adapted.model).item()) if result and adapted.penalty else None
    return {
        "schema": records.SCHEMA,
        "key": run_id.key,
        "protocol": settings.protocol,
        "suite": settings.task.suite,
        "task": settings.task.name,
        "task_version": settings.task.version,
        "method": settings.method.name,
        "variant": settings.method.variant,
        "model": settings.model.name,
        "seed": settings.seed,
        "status": status,
        "reason": reason,
        "primary": settings.task.primary,
        "metrics": {name: {**dataclasses.asdict(m), "higher_is_better": name not in LOWER_IS_BETTER} for name, m in metrics.items()},
        "selection": settings.selection,
        "best_checkpoint": {"step": result.best_step if result else None, "score": result.best_score if result else None},
        "params": {"trainable": adapted.trainable, "head": adapted.head, "total": adapted.total},
        "cost": {
            "setup_seconds": setup,
            "seconds": seconds,
            "steps": steps,
            "seconds_per_step": seconds / steps if seconds and steps else None,
            "examples_per_second": examples / seconds if seconds and examples else None,
            # Of a training that another run did, this process has seen nothing.
            "peak_memory_bytes": None if training and training["shared"] else peak,
        },
        "orthogonality": {"max_error": max_error, "penalty": penalty},
        "started": started,
        "finished": _now(),
        "settings": _public_settings(settings),
        # Of a run that failed, answers may be of an earlier attempt.
        **({"files": {**records.file_checksums(run_id.folder), **records.adapter_checksums(run_id.folder)}} if status == "done" else {}),
        "provenance": {
            **_run_provenance(),
            "data": {
                "source": data.source,
                "revision": data.revision,
                "fingerprint": data.fingerprint,
                "rows": context.suite.rows,
                "subset": context.suite.is_subset,
                **({"data_fixes": context.suite.data_fixes} if context.suite.data_fixes else {}),
            },
            "model": {
                "source": model.source,
                "revision": model.revision,
                "sha256": model.sha256,
                **({} if model.files is None else {"files": model.files}),
            },
            **({"resumed": [dataclasses.asdict(part) for part in context.resumed]} if context.resumed else {}),
            **({} if training is None else {"training": training}),
        },
    }


def _smaller(settings: RunSettings, *, is_trained: bool) -> str:
    """What takes less memory for the same training."""
    size, times = settings.train.batch_size, settings.train.gradient_accumulation_steps
    if is_trained:
        return f"it was trained, and being scored: set train.eval_batch_size={max(1, settings.train.eval_batch_size // 2)}"
    if size % 2 == 0:
        return f"the same batch in halves: train.batch_size={size // 2} train.gradient_accumulation_steps={2 * times}"
    return (
        "train.gradient_checkpointing=true needs less" if not settings.train.gradient_checkpointing else "this model needs a larger device"
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _public_settings(settings: RunSettings) -> dict[str, Any]:
    """The settings without paths of this machine: what a path held is stated by its checksum."""
    data = dataclasses.asdict(settings)
    data["results"]["root"] = None
    data["data"]["root"] = "directory" if settings.data.root else None
    data["model"]["path"] = "directory" if settings.model.path else None
    data["task"]["path"] = "directory" if settings.task.path else None
    return data


def save_adapter(context: RunContext, folder: Path) -> None:
    """What was trained: peft's own format, or the freed parameters as safetensors. Never pickle. All processes call it, the main one writes."""
    adapted, accelerator = context.adapted, context.accelerator
    state = gather_state(adapted.model)
    if not accelerator.is_main_process:
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _save_weights(adapted, state, folder)
    except SafetensorError as error:  # it tells a full disk by text alone
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number.group(1)), os.strerror(int(number.group(1)))) from error
    if adapted.is_peft:
        # peft writes where the base model lay on this machine; the record states its checksum instead.
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        config["base_model_name_or_path"] = context.settings.model.hub or context.settings.model.name
        for name in ("target_modules", "exclude_modules"):  # sets, whose order varies between processes
            if isinstance(config.get(name), list):
                config[name] = sorted(config[name])
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (folder / "README.md").unlink(missing_ok=True)
        save_svd_signs(adapted, folder)


def _save_weights(adapted: AdaptedModel, state: dict[str, Tensor] | None, folder: Path) -> None:
    if adapted.is_peft:
        with warnings.catch_warnings():
            if adapted.model.peft_config["default"].peft_type == PeftType.ADALORA:
                # A budget may leave nothing of a matrix. peft takes that for shards that were not gathered; ours are.
                warnings.filterwarnings("ignore", message=r".*have invalid shape")
            adapted.model.save_pretrained(folder, state_dict=state)
        return
    parameters = dict(adapted.model.named_parameters())
    trained = {n: (state or parameters)[n].detach().contiguous().cpu() for n, p in parameters.items() if p.requires_grad}
    save_file(trained, folder / "trained.safetensors")


def _write_predictions(path: Path, predictions: dict[str, Predictions]) -> None:
    with gzip.GzipFile(path, "wb", mtime=0) as raw:
        for name, found in predictions.items():
            for idx, prediction, label in zip(found.ids, found.predictions, found.labels, strict=True):
                line = {"set": name, "idx": idx, "prediction": prediction, "label": label}
                raw.write((json.dumps(line) + "\n").encode())


class _disk_errors:  # noqa: N801 - reads as the statement it is
    """A full disk, or a file that may not be read, is one line and not a traceback."""

    def __init__(self, settings: RunSettings):
        self.root = settings.results.root

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            name = error.filename
            if isinstance(name, str | Path) and not Path(name).resolve().is_relative_to(Path(self.root).resolve()):
                raise QgoftError(f"{name}: {error.strerror}; make it accessible, or name another place") from error
            raise QgoftError(
                f"cannot write below results.root={self.root}: {error.strerror}; free space or set results.root to another folder"
            ) from error


def _hardware() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return records.hardware(device=device, threads=torch.get_num_threads(), processes=world_size())


def _run_provenance() -> dict[str, Any]:
    """Code, packages and hardware of this process."""
    return {
        **records.code_provenance(REPOSITORY),
        "code": records.code_checksum(),
        "packages": records.package_versions(),
        "hardware": _hardware(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
