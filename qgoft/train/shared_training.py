"""A training shared by several tasks: the first run trains and saves its adapter, the others load it.

It is stored in results/trained/<key>/, with a key like that of a record, of everything that affects training only. Runs that need the same
training wait for the one that has its lease.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from qgoft.config.keys import settings_of_training
from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError
from qgoft.lease import Lease, LeaseHeld
from qgoft.records import adapter_checksums, compute_key, hub_commit, read_record, write_atomically
from qgoft.run_id import CHECKPOINT, RunId, world_size
from qgoft.train.adapter_files import load_adapter, save_adapter
from qgoft.train.record import RunContext
from qgoft.train.training_state import TrainResult

# Seconds between two checks of a training by another run.
POLL_INTERVAL = 1.0
STATE, HISTORY = "trained.json", "history.jsonl"


def training_key(settings: RunSettings, run_id: RunId, rows: str) -> str:
    """Return the key of a training from its settings, the checksum of its rows and prompts, and those of the base model."""
    return compute_key(
        settings_of_training(settings),
        world_size=world_size(),
        data_fingerprint=rows,
        model_sha256=run_id.model.sha256,
        model_files=run_id.model.files,
    )


def train_or_load(
    directory: Path,
    context: RunContext,
    fit: Callable[[Path, Callable[[], None]], TrainResult],
    made: Callable[[], dict[str, Any]],
) -> tuple[TrainResult, dict[str, Any] | None]:
    """Train and publish the result in `directory`, or load the result that is there.

    Args:
        fit: trains, with checkpoints in the given directory; its second argument raises `LeaseLost` if another process has acquired the
            run.
        made: returns the provenance of this process, called after training.

    Returns:
        The training; and if it was loaded, its provenance (empty if unknown), otherwise None.
    """
    accelerator, run_directory = context.accelerator, context.run_id.directory
    with _only_one(directory, accelerator) as lease:
        found = from_main(_read(directory), accelerator)
        if found is not None:
            result, by = found
            load_adapter(context.adapted, directory / "adapter")
            if accelerator.is_main_process and (directory / HISTORY).is_file():
                shutil.copyfile(directory / HISTORY, run_directory / HISTORY)
            return result, by
        if lease is not None:
            lease.adopt()
        workspace = from_main(directory if lease is None else lease.workspace, accelerator)
        result = fit(workspace, (lambda: None) if lease is None else lease.assert_held)
        if accelerator.is_main_process:
            shutil.rmtree(workspace / "adapter", ignore_errors=True)
        save_adapter(context, workspace / "adapter")
        if lease is not None:
            if (run_directory / HISTORY).is_file():
                shutil.copyfile(run_directory / HISTORY, workspace / HISTORY)
            # Only this file makes the directory valid, and its checksums are verified before the adapter is used.
            state = {**dataclasses.asdict(result), "made": made(), "files": adapter_checksums(workspace)}
            write_atomically(workspace / STATE, json.dumps(state, indent=1) + "\n")
            lease.publish(discard=(CHECKPOINT,), last=STATE)
        accelerator.wait_for_everyone()  # all processes read the trained weights
        return result, None


def read_run(directory: Path) -> dict[str, Any]:
    """Return the record of a run's directory.

    Raises:
        QgoftError: it holds none.
    """
    if not (directory / "record.json").is_file():
        raise QgoftError(f"{directory} has no record.json; expected the directory of a finished run, results/runs/<key>")
    return read_record(directory / "record.json")


def as_recorded(settings: RunSettings, record: dict[str, Any]) -> RunSettings:
    """Return the settings of a record with the hub commits of its weights and rows, since branches move."""
    model, data = (hub_commit(record, what) or getattr(settings, what).revision for what in ("model", "data"))
    return dataclasses.replace(
        settings, model=dataclasses.replace(settings.model, revision=model), data=dataclasses.replace(settings.data, revision=data)
    )


def _read(directory: Path) -> tuple[TrainResult, dict[str, Any]] | None:
    """Return the training in a directory, or None if there is none, or its adapter was modified."""
    try:
        state = json.loads((directory / STATE).read_text())
        by = state.pop("made", {})  # absent in trainings of earlier versions
        files = state.pop("files", None)
        result = TrainResult.from_plain(state)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if files is not None and files != adapter_checksums(directory):
        print(f"qgoft: {directory / 'adapter'} is not the trained adapter; training again", file=sys.stderr, flush=True)
        return None
    return result, by


def from_main(value: Any, accelerator: Accelerator) -> Any:
    """Return the value of the main process in all processes."""
    if accelerator.num_processes == 1:
        return value
    box = [value]
    broadcast_object_list(box)
    return box[0]


@contextmanager
def _only_one(directory: Path, accelerator: Accelerator) -> Iterator[Lease | None]:
    """Hold the lease of a training in the main process; wait while another run has it."""
    if not accelerator.is_main_process:
        yield None
        return
    with ExitStack() as stack:
        lease = None
        while lease is None:
            try:
                lease = stack.enter_context(Lease(directory))
            except LeaseHeld:
                time.sleep(POLL_INTERVAL)
        yield lease
