"""One training that several tasks are scored with: the first run trains and leaves its adapter, the others load it.

It lies in results/trained/<key>/, where the key is made like that of a record, from what decides the training alone. Runs that want the
same training at the same time wait for the one that does it; a lock of a process that died is free.
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

# Seconds between two looks at a training that another run makes.
PATIENCE = 1.0
STATE, HISTORY, SIGNS = "trained.json", "history.jsonl", "signs.json"


def training_key(settings: RunSettings, run_id: RunId, rows: str) -> str:
    """Key of a training from its settings, the checksum of its rows and prompts, and those of the base model."""
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
        fit: train, with checkpoints in the given directory; its second argument raises `LeaseLost` once another process has taken over.
        made: return the code, packages and hardware of this process, called after training.

    Returns:
        The training; and, if it was loaded, what it was made with (empty if it does not say), otherwise None.
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
            # Without this file nothing in the directory counts, and its checksums are checked before the adapter is used.
            state = {**dataclasses.asdict(result), "made": made(), "files": adapter_checksums(workspace)}
            write_atomically(workspace / STATE, json.dumps(state, indent=1) + "\n")
            lease.publish(leave=(CHECKPOINT,), last=STATE)
        accelerator.wait_for_everyone()  # all of them read what was trained
        return result, None


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a run's folder.

    Raises:
        QgoftError: it holds none.
    """
    if not (folder / "record.json").is_file():
        raise QgoftError(f"{folder} holds no record.json; give the folder of a finished run, results/runs/<key>")
    return read_record(folder / "record.json")


def as_recorded(settings: RunSettings, record: dict[str, Any]) -> RunSettings:
    """The settings of a record with the commits of the hub that its weights and rows were of: a branch moves."""
    model, data = (hub_commit(record, what) or getattr(settings, what).revision for what in ("model", "data"))
    return dataclasses.replace(
        settings, model=dataclasses.replace(settings.model, revision=model), data=dataclasses.replace(settings.data, revision=data)
    )


def check_base(record: dict[str, Any], model: ModelFiles, advice: str) -> None:
    """Whether the weights, and what was read beside them, are those that a run began with.

    Raises:
        QgoftError: they are others.
    """
    made = record["provenance"]["model"]
    for what, here, there in (
        ("weights", model.sha256, made["sha256"]),
        ("tokenizer and configuration", model.files, made.get("files")),
    ):
        # Runs from a directory that are older than this do not name its tokenizer, and one from elsewhere has a revision.
        if here != there and None not in (here, there):
            raise QgoftError(
                f"the {what} here have checksum {here[:12]}, those of the run {there[:12]}; an adapter belongs to its base: {advice}"
            )


def check_adapter(record: dict[str, Any], folder: Path) -> None:
    """Assert that the adapter in a run's directory is the one its record describes. Records of earlier versions do not describe it.

    Raises:
        QgoftError: a file of it was changed or is missing.
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
    """Put saved parameters into a model of the same method on the same base.

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
        reason = str(error).strip().splitlines()[0][:200]  # torch names every parameter
        raise QgoftError(f"the trained weights in {folder} cannot be read ({reason}); delete {folder.parent} to train anew") from error
    if missing or report.unexpected_keys:
        raise QgoftError(
            f"the trained weights in {folder} do not fit this model ({[*missing, *report.unexpected_keys][0]}); delete {folder.parent} to train anew"
        )


def check_values(state: dict[str, Tensor]) -> None:
    """Assert that saved parameters are finite floating-point numbers.

    Raises:
        ValueError: naming the parameter.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; a floating-point parameter is needed")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds values that are not finite")


def save_svd_signs(adapted: AdaptedModel, folder: Path) -> None:
    """Say beside a saved adapter that keeps no factors which signs these had."""
    signs = read_svd_signs(adapted.model)
    if signs:
        write_atomically(folder / SIGNS, json.dumps(signs, indent=0) + "\n")


def _take_ranks(adapted: AdaptedModel, folder: Path) -> None:
    """AdaLoRA saves what its budget left of each matrix; peft cuts a model down to it where its configuration says so."""
    saved = json.loads((folder / "adapter_config.json").read_text())
    if saved.get("rank_pattern"):
        adapted.model.peft_config["default"].rank_pattern = saved["rank_pattern"]


def trained_checksum(folder: Path) -> str:
    """Checksum of saved parameters; of nothing where nothing was trained."""
    return "".join(file_sha256(path) for path in sorted(folder.glob("*.safetensors")))


def _read(folder: Path) -> tuple[TrainResult, dict[str, Any]] | None:
    """Return the training in a directory, or None if there is none, or its adapter is not the one that was saved."""
    try:
        state = json.loads((folder / STATE).read_text())
        by = state.pop("made", {})  # trainings of earlier versions have none
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
    """The lease of a training, held by the main process of a run; the others follow what it finds. Who comes second waits."""
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
