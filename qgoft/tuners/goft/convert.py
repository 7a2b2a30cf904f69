"""Conversion of adapters saved by the authors' code.

Both releases save the same parameter names and shapes, and their configurations do not state the release, so the caller names it:

- first (peft-givens 0fe813e): R = P_L ... P_1 diag(v), features see R^T. Converted to `goft`, `goft_star` or `qgoft`.
- second (e6f03ec, "GOFT-V2"): mixes neighbours at every level. Converted to `goft_v2` or `qgoft_v2`.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qgoft.errors import QgoftError

KEYS = {"hard": "goft_theta", "soft": "goft_blocks", "scaler": "goft_scale"}
# Parameters of each variant in both releases.
PARTS = {"goft": {"hard"}, "goft_star": {"hard", "scaler"}, "qgoft": {"soft"}}
RELEASES = ("first", "second")
NAME = re.compile(r"(?P<layer>.*)\.givens_(?P<part>hard|soft|scaler)(\.default)?")
KEPT = ("base_model_name_or_path", "exclude_modules", "inference_mode", "modules_to_save", "target_modules", "task_type")


def variant_of(config: dict[str, Any]) -> str:
    """Return the variant selected by the two flags of both releases: strict_oft with no_scaling is GOFT, strict_oft without it (the
    default) is GOFT*, neither is qGOFT.
    """
    if not config.get("strict_oft", True):
        return "qgoft"
    return "goft" if config.get("no_scaling", False) else "goft_star"


def convert_state(state: dict[str, Tensor], variant: str) -> dict[str, Tensor]:
    """Rename the parameters of a released adapter; others, such as a head, are kept.

    Args:
        state: `<layer>.givens_hard` [d-1], `<layer>.givens_soft` [d-1, 2, 2] and `<layer>.givens_scaler` [d].

    Raises:
        QgoftError: parameters of another variant, a missing parameter, or inconsistent shapes.
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
        raise QgoftError("no parameter is named givens_hard, givens_soft or givens_scaler; this is not an adapter of peft-givens")
    for layer, parts in found.items():
        if set(parts) != PARTS[variant]:
            raise QgoftError(
                f"{layer} has {', '.join(f'givens_{p}' for p in sorted(parts))}; an adapter whose config says {variant} has "
                f"{', '.join(f'givens_{p}' for p in sorted(PARTS[variant]))}: strict_oft and no_scaling do not belong to these weights"
            )
        _check_shapes(layer, parts)
    return converted


def _check_shapes(layer: str, parts: dict[str, Tensor]) -> None:
    first = parts["hard"] if "hard" in parts else parts["soft"]
    d = len(first) + 1
    wanted = {"hard": (d - 1,), "soft": (d - 1, 2, 2), "scaler": (d,)}
    for part, tensor in parts.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise QgoftError(f"{layer}.givens_{part} is {tensor.dtype} or not finite; expected a finite floating-point tensor")
        if tuple(tensor.shape) != wanted[part]:
            raise QgoftError(f"{layer}.givens_{part} has shape {list(tensor.shape)}; a layer of width {d} has {list(wanted[part])}")


def convert_directory(source: Path, target: Path, release: str | None) -> str:
    """Convert an adapter of a release for `PeftModel.from_pretrained`, and return its variant.

    Args:
        release: `first` or `second`, the release whose code trained the adapter.

    Raises:
        QgoftError: an unknown release; files are missing, unreadable or inconsistent; a scaler in an adapter of the second release, which
            has no counterpart.
    """
    if release not in RELEASES:
        raise QgoftError(
            f"--release={release}: both releases save the same keys and compute different products; expected {' or '.join(RELEASES)}; name the "
            "release that trained the adapter"
        )
    try:
        config = json.loads((source / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise QgoftError(f"{source} has no readable adapter_config.json ({error}); expected the directory of an adapter") from error
    variant = variant_of(config)
    if release == "second" and variant == "goft_star":
        raise QgoftError(
            f"{source}: strict_oft with scaling under the second release has no variant here; expected no_scaling=true (goft_v2) or "
            "strict_oft=false (qgoft_v2)"
        )
    state = convert_state(_read_state(source), variant)
    if release == "second":
        variant += "_v2"
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
        state: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)  # loads tensors only, executes nothing
    except Exception as error:  # the two loaders raise different exceptions for a damaged file
        raise QgoftError(f"{source} has no readable adapter_model.safetensors or .bin ({error})") from error
    return state
