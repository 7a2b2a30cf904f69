"""The key of a run: same key, same number (up to the hardware). Paths, logging, launcher and wandb do not count."""

import hashlib
import json
from typing import Any

# Raised, with a line in CHANGELOG.md, by any change that moves a number: generated data, training, evaluation, metrics.
RESULTS_VERSION = 1
# The same for runs whose batches are divided among passes or processes; the others keep their keys.
DIVIDED_VERSION = 2


def canonical_json(data: Any) -> str:
    """One spelling for one content: sorted names, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def compute_key(settings: dict[str, Any], *, world_size: int, data_fingerprint: str, model_sha256: str) -> str:
    """SHA-256, in hex, of what determines a number.

    Args:
        settings: the settings that count, as plain data.
        world_size: number of processes of the run.
        data_fingerprint: checksum of the rows.
        model_sha256: checksum of the weights that training starts from.
    """
    is_divided = world_size > 1 or settings.get("train", {}).get("accumulation", 1) > 1
    content = {
        "settings": settings,
        "world_size": world_size,
        "data": data_fingerprint,
        "model": model_sha256,
        "results_version": RESULTS_VERSION,
        **({"divided_version": DIVIDED_VERSION} if is_divided else {}),
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
