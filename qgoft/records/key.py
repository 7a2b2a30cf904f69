"""The key of a run: same key, same number (up to the hardware). Paths, logging, launcher and wandb do not count."""

import hashlib
import json
from typing import Any

# Raised, with a line in CHANGELOG.md, by any change that moves a number.
RESULTS_VERSION = 2


def base_model(record: dict[str, Any]) -> tuple[str, str | None]:
    """What the runs of one mean must have begun with: checksums of the weights, and of what was read beside them."""
    model = record["provenance"]["model"]
    return model["sha256"], model.get("files")


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
    content = {
        "settings": settings,
        "world_size": world_size,
        "data": data_fingerprint,
        "model": model_sha256,
        "model_files": model_files,
        "results_version": RESULTS_VERSION,
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
