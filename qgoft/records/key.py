"""Key of a run: equal keys give equal results (up to the hardware). Paths, logging, launcher and wandb are not part of it."""

import hashlib
import json
from typing import Any

# Increment, with a line in CHANGELOG.md, for any change that affects results.
RESULTS_VERSION = 2


def base_model(record: dict[str, Any]) -> tuple[str, str | None]:
    """Return the checksums of the weights and of the files read with them; runs are averaged only if these are equal."""
    model = record["provenance"]["model"]
    return model["sha256"], model.get("files")


def hub_commit(record: dict[str, Any], what: str) -> str | None:
    """Return the hub commit of the rows ("data") or weights ("model") of a run; None if they came from elsewhere, or from several commits."""
    revision: str | None = record["provenance"][what]["revision"]
    return revision if revision and "," not in revision else None


def canonical_json(data: Any) -> str:
    """Return the canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def compute_key(
    settings: dict[str, Any], *, world_size: int, data_fingerprint: str, model_sha256: str, model_files: str | None = None
) -> str:
    """Return the SHA-256, in hex, of everything that determines the result.

    Args:
        settings: settings that affect results, as plain data.
        world_size: number of processes of the run.
        data_fingerprint: checksum of the rows.
        model_sha256: checksum of the initial weights.
        model_files: checksum of tokenizer and configuration; None for embedded models.
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
