"""Adapters of the authors' first release, as ours. The mathematics is the same (levels from the first, scales before the rotations,
angles pi * tanh(p)); names and file format differ."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qgoft.errors import QgoftError

KEYS = {"hard": "goft_theta", "soft": "goft_blocks", "scaler": "goft_scale"}
# What each variant has in the release.
PARTS = {"goft": {"hard"}, "goft_star": {"hard", "scaler"}, "qgoft": {"soft"}}
NAME = re.compile(r"(?P<layer>.*)\.givens_(?P<part>hard|soft|scaler)(\.default)?")
KEPT = ("base_model_name_or_path", "exclude_modules", "inference_mode", "modules_to_save", "target_modules", "task_type")


def variant_of(config: dict[str, Any]) -> str:
    """The release's two switches: strict_oft with no_scaling is GOFT, strict_oft alone (its default) GOFT*, neither qGOFT."""
    if not config.get("strict_oft", True):
        return "qgoft"
    return "goft" if config.get("no_scaling", False) else "goft_star"


def convert_state(state: dict[str, Tensor], variant: str) -> dict[str, Tensor]:
    """Our names for the parameters of an adapter of the release. Other parameters, such as a head, are passed on.

    Args:
        state: `<layer>.givens_hard` [d-1], `<layer>.givens_soft` [d-1, 2, 2] and `<layer>.givens_scaler` [d].

    Raises:
        QgoftError: parts of another variant, a part is missing, or shapes that do not belong together.
    """
    found: dict[str, dict[str, Tensor]] = {}
    converted = {}
    for name, tensor in state.items():
        match = NAME.fullmatch(name)
        if match is None:
            converted[name] = tensor
            continue
        found.setdefault(match["layer"], {})[match["part"]] = tensor
        converted[f"{match['layer']}.{KEYS[match['part']]}"] = tensor
    if not found:
        raise QgoftError("no parameter is named givens_hard, givens_soft or givens_scaler; this is no adapter of the first release")
    for layer, parts in found.items():
        if set(parts) != PARTS[variant]:
            raise QgoftError(
                f"{layer} has {', '.join(f'givens_{p}' for p in sorted(parts))}; an adapter that its config calls {variant} has "
                f"{', '.join(f'givens_{p}' for p in sorted(PARTS[variant]))}: strict_oft and no_scaling do not belong to these weights"
            )
        _check_shapes(layer, parts)
    return converted


def _check_shapes(layer: str, parts: dict[str, Tensor]) -> None:
    first = parts["hard"] if "hard" in parts else parts["soft"]
    d = len(first) + 1
    wanted = {"hard": (d - 1,), "soft": (d - 1, 2, 2), "scaler": (d,)}
    for part, tensor in parts.items():
        if tuple(tensor.shape) != wanted[part]:
            raise QgoftError(f"{layer}.givens_{part} has shape {list(tensor.shape)}; a layer of width {d} has {list(wanted[part])}")


def convert_folder(source: Path, target: Path) -> str:
    """Write an adapter of the release as one of ours, for `PeftModel.from_pretrained`. Returns the variant.

    Raises:
        QgoftError: files are missing, cannot be read, or do not belong together.
    """
    try:
        config = json.loads((source / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise QgoftError(f"{source} holds no adapter_config.json that can be read ({error}); give the folder of an adapter") from error
    variant = variant_of(config)
    state = convert_state(_read_state(source), variant)
    target.mkdir(parents=True, exist_ok=True)
    ours = {"peft_type": "GOFT", "variant": variant, "angle": "tanh", **{name: config[name] for name in KEPT if name in config}}
    (target / "adapter_config.json").write_text(json.dumps(ours, indent=2, sort_keys=True) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, target / "adapter_model.safetensors")
    return variant


def _read_state(source: Path) -> dict[str, Tensor]:
    safe, pickled = source / "adapter_model.safetensors", source / "adapter_model.bin"
    try:
        if safe.is_file():
            return load_file(safe)
        state: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)  # tensors alone: nothing is executed
    except Exception as error:  # each of the two raises its own kinds for a damaged file
        raise QgoftError(f"{source} holds no adapter_model.safetensors or .bin that can be read ({error})") from error
    return state
