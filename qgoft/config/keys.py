"""Settings that affect results, which are part of a run's key."""

import dataclasses
from typing import Any

from qgoft.config.settings import RunSettings

# Locations, logging, and settings that the record states by content: checksums of data and weights.
NOT_IN_KEY = (
    "results",
    "wandb",
    "tensorboard",
    "data",
    "model.path",
    "model.hub",
    "model.revision",
    "train.eval_batch_size",
    "method.lr_source",
    "task.rows",
    "task.hub",
    "task.config",
    "task.path",
    "task.sources",
    "judge.url",
    "judge.timeout",
    "judge.retries",
    "judge.token_field",
    "judge.price_input",
    "judge.price_output",
)
# Settings that were added after records existed, with their former fixed value, at which they are left out of the key.
DEFAULTS_NOT_IN_KEY: dict[str, Any] = {"judge.temperature": 0.0, "judge.max_tokens": 2048, "judge.system_role": True}


def affects_results(name: str) -> bool:
    """Return True unless a setting (train.max_steps), or its group, is one of NOT_IN_KEY."""
    return not any(f"{name}.".startswith(f"{place}.") for place in NOT_IN_KEY)


def settings_in_key(settings: RunSettings) -> dict[str, Any]:
    """Return the settings that affect results as plain data."""
    data = dataclasses.asdict(settings)
    for name in NOT_IN_KEY:
        node, last = _parent(data, name)
        del node[last]
    for name, default in DEFAULTS_NOT_IN_KEY.items():
        node, last = _parent(data, name)
        if node[last] == default:
            del node[last]
    for group in ("method", "task"):  # null is the default of an option
        data[group]["options"] = {name: value for name, value in data[group]["options"].items() if value is not None}
    # Only the chosen target set of a model matters.
    data["model"]["target_sets"] = data["model"]["target_sets"].get(settings.method.targets)
    if settings.task.options.get("temperature"):  # sampled answers depend on the batch size
        data["train"]["eval_batch_size"] = settings.train.eval_batch_size
    return data


def settings_of_training(settings: RunSettings) -> dict[str, Any]:
    """Return the settings of a training that several tasks share (decoders)."""
    data = settings_in_key(settings)
    del data["task"]
    data["train"].pop("eval_batch_size", None)
    data.pop("judge", None)
    prompts = {name: settings.task.options.get(name) for name in ("train_columns", "train_prompt")}
    return {**data, "suite": settings.task.suite, **{name: value for name, value in prompts.items() if value is not None}}


def _parent(data: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    *path, last = name.split(".")
    for part in path:
        data = data[part]
    return data, last
