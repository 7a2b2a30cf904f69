"""Files of a trained adapter: peft's format, or safetensors of the trained parameters. Never pickle."""

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftType, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qgoft.errors import QgoftError
from qgoft.methods import AdaptedModel
from qgoft.records import adapter_checksums, file_sha256, write_atomically
from qgoft.tasks.sources import ModelFiles
from qgoft.train.distributed import gather_state
from qgoft.train.record import RunContext
from qgoft.tuners.psoft import apply_svd_signs, read_svd_signs

TRAINED, SIGNS = "trained.safetensors", "signs.json"


def save_adapter(context: RunContext, directory: Path) -> None:
    """Save the trained parameters. All processes call it, the main process writes."""
    adapted = context.adapted
    state = gather_state(adapted.model)
    if not context.accelerator.is_main_process:
        return
    directory.mkdir(parents=True, exist_ok=True)
    try:
        _save_weights(adapted, state, directory)
    except SafetensorError as error:  # reports a full disk only in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number.group(1)), os.strerror(int(number.group(1)))) from error
    if not adapted.is_peft:
        return
    # peft writes the local path of the base model; the record states its checksum instead.
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = context.settings.model.hub or context.settings.model.name
    for name in ("target_modules", "exclude_modules"):  # sets, whose order varies between processes
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (directory / "README.md").unlink(missing_ok=True)
    if signs := read_svd_signs(adapted.model):  # this adapter does not save its factors
        write_atomically(directory / SIGNS, json.dumps(signs, indent=0) + "\n")


def _save_weights(adapted: AdaptedModel, state: dict[str, Tensor] | None, directory: Path) -> None:
    if adapted.is_peft:
        model: Any = adapted.model
        with warnings.catch_warnings():
            if model.peft_config["default"].peft_type == PeftType.ADALORA:
                # A budget may leave nothing of a matrix, which peft takes for a shard that was not gathered.
                warnings.filterwarnings("ignore", message=r".*have invalid shape")
            model.save_pretrained(directory, state_dict=state)
        return
    parameters = dict(adapted.model.named_parameters())
    trained = {n: (state or parameters)[n].detach().contiguous().cpu() for n, p in parameters.items() if p.requires_grad}
    save_file(trained, directory / TRAINED)


def load_adapter(adapted: AdaptedModel, directory: Path) -> None:
    """Load saved parameters into a model of the same method on the same base model.

    Raises:
        QgoftError: they cannot be read or do not fit.
    """
    try:
        unexpected, missing = _load_peft(adapted, directory) if adapted.is_peft else _load_parameters(adapted, directory)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]  # torch lists every parameter
        raise QgoftError(
            f"the trained weights in {directory} cannot be read ({reason}); delete {directory.parent} to train again"
        ) from error
    if missing or unexpected:
        raise QgoftError(
            f"the trained weights in {directory} do not fit this model ({[*missing, *unexpected][0]}); delete {directory.parent} to train again"
        )


def _load_peft(adapted: AdaptedModel, directory: Path) -> tuple[list[str], list[str]]:
    """Load an adapter; return unexpected and missing names."""
    model: Any = adapted.model
    ranks = json.loads((directory / "adapter_config.json").read_text()).get("rank_pattern")
    if ranks:  # AdaLoRA saves what its budget kept of each matrix, and peft truncates a model by its configuration
        model.peft_config["default"].rank_pattern = ranks
    state = load_peft_weights(str(directory), device="cpu")
    check_values(state)
    report: Any = set_peft_model_state_dict(model, state)
    if (directory / SIGNS).is_file():
        apply_svd_signs(model, json.loads((directory / SIGNS).read_text()))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return report.unexpected_keys, [name for name in report.missing_keys if name in trained]


def _load_parameters(adapted: AdaptedModel, directory: Path) -> tuple[list[str], list[str]]:
    """Load plain parameters; return unexpected and missing names."""
    state = load_file(directory / TRAINED)
    check_values(state)
    report = adapted.model.load_state_dict(state, strict=False)
    trained = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    return report.unexpected_keys, sorted(trained - set(state))


def check_values(state: dict[str, Tensor]) -> None:
    """Check that saved parameters are finite floating-point numbers.

    Raises:
        ValueError: names the parameter.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; expected a floating-point parameter")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite")


def weights_checksum(directory: Path) -> str:
    """Return the checksum of saved parameters; empty if nothing was trained."""
    return "".join(file_sha256(path) for path in sorted(directory.glob("*.safetensors")))


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
        if here is not None and there is not None and here != there:
            raise QgoftError(
                f"the {what} here have checksum {here[:12]}, those of the run {there[:12]}; an adapter belongs to its base: {advice}"
            )


def check_adapter(record: dict[str, Any], directory: Path) -> None:
    """Check that the adapter in a run's directory is the one of its record. Records of earlier versions do not state it.

    Raises:
        QgoftError: one of its files was changed or is missing.
    """
    stated = {name: checksum for name, checksum in record.get("files", {}).items() if name.startswith("adapter/")}
    here = adapter_checksums(directory)
    for name in sorted(stated):
        if here.get(name) != stated[name]:
            raise QgoftError(
                f"{directory / name}: {'it was changed after' if name in here else 'it is missing since'} the run finished; restore it, or delete "
                f"{directory} and run again"
            )
