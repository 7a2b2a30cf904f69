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

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qgoft.config.settings import RunSettings, settings_of_training
from qgoft.errors import QgoftError
from qgoft.lease import Lease, LeaseHeld
from qgoft.methods import AdaptedModel
from qgoft.records import adapter_checksums, compute_key, file_sha256, hub_commit, read_record, write_atomically
from qgoft.run_id import CHECKPOINT, RunId, world_size
from qgoft.tasks.sources import ModelFiles
from qgoft.train.training_state import TrainResult
from qgoft.tuners.psoft import apply_svd_signs, read_svd_signs

# Seconds between two checks of a training by another run.
PATIENCE = 1.0
STATE, HISTORY, SIGNS = "trained.json", "history.jsonl", "signs.json"


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
    folder: Path,
    run_folder: Path,
    adapted: AdaptedModel,
    accelerator: Accelerator,
    fit: Callable[[Path, Callable[[], None]], TrainResult],
    made: Callable[[], dict[str, Any]],
    save: Callable[[Path], None],
) -> tuple[TrainResult, dict[str, Any] | None]:
    """Train and publish the result in `folder`, or load the result that is there.

    Args:
        fit: trains, with checkpoints in the given directory; its second argument raises `LeaseLost` if another process has acquired the
            run.
        made: returns the provenance of this process, called after training.

    Returns:
        The training; and if it was loaded, its provenance (empty if unknown), otherwise None.
    """
    with _only_one(folder, accelerator) as lease:
        found = from_main(_read(folder), accelerator)
        if found is not None:
            result, by = found
            load_trained(adapted, folder / "adapter")
            if accelerator.is_main_process and (folder / HISTORY).is_file():
                shutil.copyfile(folder / HISTORY, run_folder / HISTORY)
            return result, by
        if lease is not None:
            lease.adopt()
        workspace = from_main(folder if lease is None else lease.workspace, accelerator)
        result = fit(workspace, (lambda: None) if lease is None else lease.assert_held)
        if accelerator.is_main_process:
            shutil.rmtree(workspace / "adapter", ignore_errors=True)
        save(workspace / "adapter")
        if lease is not None:
            if (run_folder / HISTORY).is_file():
                shutil.copyfile(run_folder / HISTORY, workspace / HISTORY)
            # Only this file makes the directory valid, and its checksums are verified before the adapter is used.
            state = {**dataclasses.asdict(result), "made": made(), "files": adapter_checksums(workspace)}
            write_atomically(workspace / STATE, json.dumps(state, indent=1) + "\n")
            lease.publish(leave=(CHECKPOINT,), last=STATE)
        accelerator.wait_for_everyone()  # all processes read the trained weights
        return result, None


def read_run(folder: Path) -> dict[str, Any]:
    """Return the record of a run's directory.

    Raises:
        QgoftError: it holds none.
    """
    if not (folder / "record.json").is_file():
        raise QgoftError(f"{folder} holds no record.json; give the folder of a finished run, results/runs/<key>")
    return read_record(folder / "record.json")


def as_recorded(settings: RunSettings, record: dict[str, Any]) -> RunSettings:
    """Return the settings of a record with the hub commits of its weights and rows, since branches move."""
    model, data = (hub_commit(record, what) or getattr(settings, what).revision for what in ("model", "data"))
    return dataclasses.replace(
        settings, model=dataclasses.replace(settings.model, revision=model), data=dataclasses.replace(settings.data, revision=data)
    )


def check_base(record: dict[str, Any], model: ModelFiles, advice: str) -> None:
    """Check that the weights, and the files read with them, are those of a run.

    Raises:
        QgoftError: they differ.
    """
    made = record["provenance"]["model"]
    for what, here, there in (
        ("weights", model.sha256, made["sha256"]),
        ("tokenizer and configuration", model.files, made.get("files")),
    ):
        # Older runs from a directory do not state its tokenizer; other runs have a revision.
        if here != there and None not in (here, there):
            raise QgoftError(
                f"the {what} here have checksum {here[:12]}, those of the run {there[:12]}; an adapter belongs to its base: {advice}"
            )


def check_adapter(record: dict[str, Any], folder: Path) -> None:
    """Check that the adapter in a run's directory is the one of its record. Records of earlier versions do not state it.

    Raises:
        QgoftError: one of its files was changed or is missing.
    """
    stated = {name: checksum for name, checksum in record.get("files", {}).items() if name.startswith("adapter/")}
    here = adapter_checksums(folder)
    for name in sorted(stated):
        if here.get(name) != stated[name]:
            raise QgoftError(
                f"{folder / name}: {'it was changed after' if name in here else 'it is missing since'} the run finished; restore it, or delete "
                f"{folder} and run again"
            )


def load_trained(adapted: AdaptedModel, folder: Path) -> None:
    """Load saved parameters into a model of the same method on the same base model.

    Raises:
        QgoftError: they cannot be read or do not fit.
    """
    try:
        if adapted.is_peft:
            _take_ranks(adapted, folder)
            state = load_peft_weights(str(folder), device="cpu")
            check_values(state)
            report: Any = set_peft_model_state_dict(adapted.model, state)
            if (folder / SIGNS).is_file():
                apply_svd_signs(adapted.model, json.loads((folder / SIGNS).read_text()))
            missing = [name for name in report.missing_keys if name in {n for n, p in adapted.model.named_parameters() if p.requires_grad}]
        else:
            wanted = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
            state = load_file(folder / "trained.safetensors")
            check_values(state)
            report = adapted.model.load_state_dict(state, strict=False)
            missing = sorted(wanted - set(state))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]  # torch lists every parameter
        raise QgoftError(f"the trained weights in {folder} cannot be read ({reason}); delete {folder.parent} to train anew") from error
    if missing or report.unexpected_keys:
        raise QgoftError(
            f"the trained weights in {folder} do not fit this model ({[*missing, *report.unexpected_keys][0]}); delete {folder.parent} to train anew"
        )


def check_values(state: dict[str, Tensor]) -> None:
    """Check that saved parameters are finite floating-point numbers.

    Raises:
        ValueError: names the parameter.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; a floating-point parameter is needed")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds values that are not finite")


def save_svd_signs(adapted: AdaptedModel, folder: Path) -> None:
    """Save the signs of the singular vectors next to an adapter that does not save its factors."""
    signs = read_svd_signs(adapted.model)
    if signs:
        write_atomically(folder / SIGNS, json.dumps(signs, indent=0) + "\n")


def _take_ranks(adapted: AdaptedModel, folder: Path) -> None:
    """Restore AdaLoRA's rank pattern: it saves what its budget kept of each matrix, and peft truncates a model by its configuration."""
    saved = json.loads((folder / "adapter_config.json").read_text())
    if saved.get("rank_pattern"):
        adapted.model.peft_config["default"].rank_pattern = saved["rank_pattern"]


def trained_checksum(folder: Path) -> str:
    """Return the checksum of saved parameters; empty if nothing was trained."""
    return "".join(file_sha256(path) for path in sorted(folder.glob("*.safetensors")))


def _read(folder: Path) -> tuple[TrainResult, dict[str, Any]] | None:
    """Return the training in a directory, or None if there is none, or its adapter was modified."""
    try:
        state = json.loads((folder / STATE).read_text())
        by = state.pop("made", {})  # absent in trainings of earlier versions
        files = state.pop("files", None)
        result = TrainResult.from_plain(state)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if files is not None and files != adapter_checksums(folder):
        print(f"qgoft: {folder / 'adapter'} is not the adapter that was trained; it is trained again", file=sys.stderr, flush=True)
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
def _only_one(folder: Path, accelerator: Accelerator) -> Iterator[Lease | None]:
    """Hold the lease of a training in the main process; wait while another run has it."""
    if not accelerator.is_main_process:
        yield None
        return
    with ExitStack() as stack:
        lease = None
        while lease is None:
            try:
                lease = stack.enter_context(Lease(folder))
            except LeaseHeld:
                time.sleep(PATIENCE)
        yield lease
