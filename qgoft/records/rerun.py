"""The command that repeats a run."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from qgoft.config.keys import affects_results
from qgoft.records.key import hub_commit
from qgoft.records.schema import Record

# Settings of which a record states only that they are directories.
DIRECTORIES = (("data", "root"), ("model", "path"), ("task", "path"))


def rerun_command(record: Record, models: Mapping[str, str]) -> str:
    """Return the command line of `rerun_words`.

    Args:
        models: name of a model in settings -> its file in configs/model.
    """
    return " ".join(rerun_words(record, models))


def rerun_words(record: Record, models: Mapping[str, str]) -> list[str]:
    """Return the arguments of the command that repeats the run, quoted for a shell: every setting that affects results. DIRECTORY stands for a
    directory of rows or weights.
    """
    words = [f"protocol={record['protocol']}", f"task={record['suite']}/{record['task']}", f"method={record['method']}"]
    words += [f"method.variant={record['variant']}", f"seed={record['seed']}"]
    if record["model"] in models:
        words.append(f"model={models[record['model']]}")
    settings = record["settings"]
    words += [f"data.source={settings['data']['source']}"] if "data" in settings else []
    # Pin the commits of rows and weights from the hub.
    words += [f"{name}.revision={commit}" for name in ("data", "model") if (commit := hub_commit(record, name))]
    words += [f"{name}.{place}=DIRECTORY" for name, place in DIRECTORIES if settings.get(name, {}).get(place)]
    for group in ("train", "optim", "judge"):
        names = (name for name in settings.get(group, {}) if affects_results(f"{group}.{name}"))
        words += [f"{group}.{name}={_word(settings[group][name])}" for name in names]
    words += [f"method.{name}={_word(settings['method'][name])}" for name in ("penalty", "targets")]
    words += [f"++model.dtype={settings['model']['dtype']}"] if "dtype" in settings["model"] else []
    # Column names belong to the task.
    options = {name: value for name, value in settings.get("task", {}).get("options", {}).items() if name != "train_columns"}
    words += [f"++task.options.{name}={_word(value)}" for name, value in options.items()]
    # As in `settings_in_key`: sampled answers depend on the batch size.
    words += [f"train.eval_batch_size={settings['train']['eval_batch_size']}"] if options.get("temperature") else []
    words += [f"++method.options.{name}={_word(value)}" for name, value in settings["method"].get("options", {}).items()]
    words += [f"{name}={settings[name]}" for name in ("eval_scheme", "selection") if name in settings]
    processes = record["provenance"]["hardware"].get("processes", 1)
    start = ["python"] if processes == 1 else ["torchrun", f"--nproc_per_node={processes}"]
    return [*start, "scripts/train.py", *map(shlex.quote, words)]


def _word(value: Any) -> str:
    """Return a value in Hydra's syntax."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_word(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_word, value)) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./@+-]*", value):
        return "'" + value.replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
