"""From the command line and configs/ to `RunSettings`: the only code that knows Hydra. Mistakes come out as one line."""

import functools
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qgoft.config.settings import RunSettings, affects_results, settings_from_dict
from qgoft.errors import QgoftError, check_choice, hint

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
BACKENDS = ("data.root", "model.path", "task.path", "results.root")
GROUPS = {"protocol": "PROTOCOL", "task": "TASKS", "method": "METHOD", "model": "MODEL", "experiment": "", "debug": ""}


def choices(group: str) -> list[str]:
    """Names of the files of a config group, with their folders: glue/cola."""
    folder = CONFIGS / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def check_config_name(group: str, value: str) -> None:
    """Refuse a name that is not in a config group.

    Raises:
        QgoftError: naming what is allowed.
    """
    variable = GROUPS[group]
    check_choice(group, value, choices(group), f"change {variable} or {group}=" if variable else f"change {group}=")


def model_files() -> dict[str, str]:
    """The name that runs know a model by -> its file in configs/model."""
    files = [name for name in choices("model") if name != "auto"]
    return {yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text())["name"]: name for name in files}


@functools.cache
def _unsupported() -> dict[str, Any]:
    gaps: dict[str, Any] = yaml.safe_load((CONFIGS / "gaps.yaml").read_text())
    return gaps


def unsupported_reason(protocol: str, task: str, method: str) -> str | None:
    """Why a cell does not exist (configs/gaps.yaml), or None where it does."""
    listed = _unsupported().get(protocol, {"tasks": {}, "methods": {}})
    of_suite = listed.get("suites", {}).get(task.partition("/")[0], {})
    return listed["tasks"].get(task) or listed["methods"].get(method) or of_suite.get(method)


def check_overrides(overrides: list[str]) -> None:
    """Check the group choices among the overrides, of sweeps too, before Hydra meets them.

    Raises:
        QgoftError: an unknown name, or a cell that does not exist.
    """
    chosen = {"protocol": ["pocket"], "task": ["glue/cola"], "method": ["qgoft"]}
    for override in overrides:
        name, _, value = override.partition("=")
        if name in GROUPS and value not in ("null", ""):
            chosen[name] = swept_values(override, name)
            for item in chosen[name]:
                check_config_name(name, item)
    for name in chosen.get("experiment", []):
        listed = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text())["item"]
        if "rows" in listed or "bench" in listed:
            raise QgoftError(f"experiment {name} is no product of lists, which is all that Hydra sweeps over; run make {listed['name']}")
    for protocol, task, method in itertools.product(chosen["protocol"], chosen["task"], chosen["method"]):
        reason = unsupported_reason(protocol, task, method)
        if reason:
            raise QgoftError(f"protocol {protocol} has no recipe for method {method} on {task}: {reason}; change METHOD, TASKS or PROTOCOL")


def swept_values(override: str, group: str) -> list[str]:
    """Return the names that an override of a group chooses: one, a list, choice(...) or glob(...) of Hydra's grammar.

    Raises:
        QgoftError: it cannot be read, or it does not choose names.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
        value = parsed.value()
        if isinstance(value, Glob):
            found = value.filter(choices(group))
        else:
            found = list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else [str(value)]
    except (HydraException, ValueError) as error:
        raise QgoftError(f"{override}: {' '.join(str(error).split())}; a name, a list a,b or glob(q*) is needed") from error
    if not found:
        raise QgoftError(f"{override} chooses nothing; there are {', '.join(choices(group))}")
    return [name.strip() for name in found]


def name_of(word: str) -> str:
    """The setting that a word of the command line sets: +optim.max_grad_norm=2 -> optim.max_grad_norm."""
    return word.partition("=")[0].lstrip("+~")


def override_affects_results(word: str) -> bool:
    """Whether a word of the command line, other than the seed, sets what moves a number."""
    name = name_of(word)
    return name != "seed" and affects_results(name)


# Settings that vary between the runs of a protocol.
OWN = ("protocol", "task", "method", "method.variant", "model", "seed")


def own_overrides(words: Iterable[str]) -> list[str]:
    """Return the words of a command line that change a number and are not a choice of the protocol's own runs."""
    return [word.lstrip("+") for word in words if "=" in word and name_of(word) not in OWN and override_affects_results(word)]


def compose_settings(overrides: list[str]) -> RunSettings:
    """Compose configs/train.yaml with overrides, as the command line does.

    Raises:
        QgoftError: it does not compose, or a value is wrong.
    """
    check_overrides(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            return settings_of(compose("train", [quoted(word) for word in overrides]))
    except (HydraException, OmegaConfBaseException) as error:
        raise QgoftError(f"the settings do not compose: {error}; see configs/train.yaml for the names") from error


def quoted(word: str) -> str:
    """Return a word of the command line with its path, if it sets one, in Hydra's quotes; `~` is expanded."""
    name, _, value = word.partition("=")
    if name.lstrip("+") not in BACKENDS or not value or value == "null" or value[0] in "'\"":
        return word
    value = os.path.expanduser(value)
    # In Hydra's quotes a backslash is one, but for those before a quote or at the end.
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'").replace("${", "\\${")
    return f"{name}='{text}'"


def compose_launcher(launcher: str, overrides: list[str]) -> dict[str, Any]:
    """The settings of one of Hydra's submitit launchers (hydra.launcher.partition=... and so on), as submitit names them.

    Raises:
        QgoftError: they do not compose.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            config = compose("train", [f"hydra/launcher={launcher}", *overrides], return_hydra_config=True)
            found: Any = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise QgoftError(
            f"the settings of the launcher do not compose: {error}; ARGS='hydra.launcher.partition=...' is the form"
        ) from error
    prefix = launcher.removeprefix("submitit_")
    shared = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "stderr_to_stdout")
    left_out = ("_target_", "submitit_folder", "name", "array_parallelism", "max_num_timeout")
    return {
        name if name in shared else f"{prefix}_{name}": value for name, value in found.items() if name not in left_out and value is not None
    }


def settings_of(config: DictConfig) -> RunSettings:
    """The part of a composed configuration that is a run, resolved.

    Raises:
        QgoftError: a value is missing, unknown or of the wrong type.
    """
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise QgoftError(f"a setting cannot be resolved: {error}") from error
    data = {
        name: value
        for name, value in resolved.items()
        if name not in ("task_settings", "recipe_row", "lr_entry", "recipe", "protocol", "task", "item")
    }
    data["protocol"] = resolved["protocol"]["name"]
    task = dict(resolved["task"])
    task.pop("kind")
    here, other = ("pocket", "official") if resolved["data"]["source"] == "pocket" else ("official", "pocket")
    task["rows"] = task.pop(f"{here}_rows")
    task["options"] = {name: value for name, value in task.get("options", {}).items() if value is not None}
    if f"{here}_classes" in task:
        task["options"] = {**task.get("options", {}), "classes": task.pop(f"{here}_classes")}
    data["task"] = {name: value for name, value in task.items() if not name.startswith(f"{other}_")}
    check_options(data["method"])
    return settings_from_dict(data)


def check_options(method: dict[str, Any]) -> None:
    """Refuse options that the method does not have: they would be ignored.

    Raises:
        QgoftError: naming the option and those that the method has.
    """
    own = list(method_config(method["name"]).get("options", {}))
    for name in method.get("options", {}):
        if name not in own:
            known = f"it has {', '.join(own)}" if own else "it has none"
            raise QgoftError(
                f"method.options.{name}: method {method['name']} has no such option; {known}; remove or rename it{hint(name, own)}"
            )


@functools.cache
def method_config(name: str) -> dict[str, Any]:
    """Return the file of a method, unresolved."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / "method" / f"{name}.yaml").read_text())
    return config


def line_of(table: DictConfig, name: str) -> Any:
    """The line of a task in a table of a protocol or a recipe, or the line `all` where one serves every task of a suite."""
    return table[name] if name in table else table["all"]


def rate_of(row: DictConfig, recipe: DictConfig, variant: str) -> DictConfig:
    """The rate of a variant and where it comes from: its own, where the line of the recipe has one under `rates`, else that of the line's variant."""
    source = row.get("source", recipe.source)
    usual = row.get("variant", recipe.variant)
    rates = {usual: row.lr, **row.get("rates", {})}
    if variant in rates:
        return OmegaConf.create({"lr": rates[variant], "source": source})
    return OmegaConf.create({"lr": row.lr, "source": f"{source}, the rate of {usual}"})


def penalty_of(row: DictConfig, variant: str) -> float:
    """The lambda of a recipe's line; 0 for a variant that says so."""
    return 0.0 if "lambda0" in variant.split("-") else float(row.penalty)


OmegaConf.register_new_resolver("select_penalty", penalty_of, replace=True)
OmegaConf.register_new_resolver("select_row", line_of, replace=True)
OmegaConf.register_new_resolver("select_lr", rate_of, replace=True)
