"""The key of a run: same key, same number (up to the hardware). Paths, logging, launcher and wandb do not count."""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

Settings = dict[str, Any]
# Raised, with a line in CHANGELOG.md, by any change that moves every number; what moves those of some runs alone is in `MOVED`.
RESULTS_VERSION = 1
# The same for runs whose batches are divided among passes or processes; the others keep their keys.
DIVIDED_VERSION = 2


def _is_real_mathematics(settings: Settings) -> bool:
    return settings.get("task", {}).get("suite") == "math" and settings.get("protocol") != "pocket"


def _is_narrow(settings: Settings) -> bool:
    return "dtype" in settings.get("model", {})  # left out where it is float32


# Changes that moved the numbers of some runs alone, by what is so since: these have other keys than before, the others keep theirs.
MOVED: dict[str, Callable[[Settings], bool]] = {
    "AdaLoRA's matrices are pulled towards orthogonal ones": lambda s: _method(s)["name"] == "adalora",
    "what a 16-bit model trains of its own is float32": _is_narrow,
    "LoRA's scale is not rounded": lambda s: _was_rounded(_method(s)),
    # The embedded twin has no matrices, pairs and units.
    "MATH's results are compared by MetaMath's rule": lambda s: s.get("task", {}).get("name") == "math" and s.get("protocol") != "pocket",
    # Nor TeX, but for its braces.
    "numbers in TeX, and what stands within $, are read": _is_real_mathematics,
    "what is no fraction of whole numbers is no number, nor i a unit": _is_real_mathematics,
    "every rate ends at optim.floor": lambda s: "floor" in s.get("optim", {}),
    "a cosine with a floor begins with the warm-up": lambda s: "floor" in s.get("optim", {}),
    "FacT's cores are drawn as its code draws them": lambda s: _method(s)["name"] in ("fact_tt", "fact_tk"),
}

# Checksums of what folders of weights hold beside them (`ModelFiles.files`), of which runs were recorded before it was part of the key.
NAMED_BEFORE = frozenset({"e62a89d108d862c0b17b783ad490fb260710d2d69623b2c3c229474af2a293d4"})


def _method(settings: Settings) -> Settings:
    return {"name": "", "variant": "", "options": {}, **settings.get("method", {})}


def _was_rounded(method: Settings) -> bool:
    """Whether scale times rank, which peft divides by the rank again, is no whole number. AdaLoRA's runs have other keys in any case."""
    rank = re.match(r"r(\d+)", method["variant"])
    if method["name"] not in ("lora", "dora", "pissa") or rank is None:
        return bool(method["name"] == "adalora")
    return not float(method["options"].get("scale", 1.0) * int(rank[1])).is_integer()


def _counted(model_files: str | None) -> str | None:
    return None if model_files in NAMED_BEFORE else model_files


def base_model(record: dict[str, Any]) -> tuple[str, str | None]:
    """What the runs of one mean must have begun with: checksums of the weights, and of what was read beside them."""
    model = record["provenance"]["model"]
    return model["sha256"], _counted(model.get("files"))


def hub_commit(record: dict[str, Any], what: str) -> str | None:
    """Which commit of the hub's repository the rows ("data") or weights ("model") of a run were of; None where they were elsewhere, or of several."""
    revision: str | None = record["provenance"][what]["revision"]
    return revision if revision and "," not in revision else None


def canonical_json(data: Any) -> str:
    """One spelling for one content: sorted names, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def compute_key(
    settings: dict[str, Any], *, world_size: int, data_fingerprint: str, model_sha256: str, model_files: str | None = None
) -> str:
    """SHA-256, in hex, of what determines a number.

    Args:
        settings: the settings that count, as plain data.
        world_size: number of processes of the run.
        data_fingerprint: checksum of the rows.
        model_sha256: checksum of the weights that training starts from.
        model_files: checksum of tokenizer and configuration, where this package does not fix them.
    """
    files = _counted(model_files)
    is_divided = world_size > 1 or settings.get("train", {}).get("accumulation", 1) > 1
    moved = [what for what, is_of in MOVED.items() if is_of(settings)]
    content = {
        "settings": settings,
        "world_size": world_size,
        "data": data_fingerprint,
        "model": model_sha256,
        "results_version": RESULTS_VERSION,
        **({"divided_version": DIVIDED_VERSION} if is_divided else {}),
        **({"moved": moved} if moved else {}),
        **({} if files is None else {"model_files": files}),
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
