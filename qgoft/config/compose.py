"""Composition of `RunSettings` from the command line and configs/ with Hydra. Errors are one line."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from qgoft.config import locations
from qgoft.config.keys import affects_results
from qgoft.config.peft_types import SHARED, peft_types
from qgoft.config.settings import RunSettings, setting_names, settings_from_dict
from qgoft.config.suites import config_names, has_config, known_methods, read_config, unsupported_reason
from qgoft.errors import QgoftError, check_choice, hint

PATH_SETTINGS = ("data.root", "model.path", "task.path", "results.root")
# Config group -> variable of make.
GROUPS = {"protocol": "PROTOCOL", "task": "TASKS", "method": "METHOD", "model": "MODEL", "experiment": ""}
# Settings that vary between the runs of a protocol.
RUN_SETTINGS = ("protocol", "task", "method", "method.variant", "model", "seed")
# Blocks of configs/train.yaml that are selected from the protocol and the recipe.
SELECTED_BLOCKS = ("task_settings", "recipe_row", "lr_entry")
# Groups of a composed configuration that are not settings of the run.
NOT_SETTINGS = (*SELECTED_BLOCKS, "recipe", "protocol", "task", "item")


def check_config_name(group: str, value: str) -> None:
    """Check that a config group has a name.

    Raises:
        QgoftError: with the available names.
    """
    variable = GROUPS[group]
    names = known_methods() if group == "method" else config_names(group)
    check_choice(group, value, names, f"change {variable} or {group}=" if variable else f"change {group}=")


def model_files() -> dict[str, str]:
    """Return name of a model in settings -> its file in configs/model."""
    files = [name for name in config_names("model") if name != "auto"]
    return {read_config(f"model/{name}")["name"]: name for name in files}


def check_overrides(overrides: list[str]) -> None:
    """Check the chosen names, including those of sweeps, before Hydra composes them.

    Raises:
        QgoftError: an unknown name, or an unsupported combination.
    """
    chosen = {"protocol": ["pocket"], "task": ["glue/cola"], "method": ["qgoft"]}
    for override in overrides:
        name, _, value = override.partition("=")
        if name in GROUPS and value not in ("null", ""):
            chosen[name] = swept_values(override, name)
            for item in chosen[name]:
                check_config_name(name, item)
    for name in chosen.get("experiment", []):
        listed = read_config(f"experiment/{name}")["item"]
        if "rows" in listed or "bench" in listed:
            raise QgoftError(f"experiment={name}: it lists explicit rows, so -m cannot run it; run make {listed['name']}")
    has_recipe = any(override.startswith("recipe=") for override in overrides)  # that of another method
    for protocol, task, method in itertools.product(chosen["protocol"], chosen["task"], chosen["method"]):
        reason = unsupported_reason(protocol, task, "" if has_recipe else method)
        if reason:
            raise QgoftError(f"protocol {protocol} does not support method {method} on {task}: {reason}; change METHOD, TASKS or PROTOCOL")


def _parse(override: str) -> Override:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise QgoftError(f"{override}: {' '.join(str(error).split())}; expected name=value, a list a,b or glob(q*)") from error


def swept_values(override: str, group: str) -> list[str]:
    """Return the names that an override chooses from a group: one, a list, choice(...) or glob(...).

    Raises:
        QgoftError: invalid syntax, or no name.
    """
    parsed = _parse(override)
    value = parsed.value()
    try:
        if isinstance(value, Glob):
            found = value.filter(config_names(group))
        else:
            found = list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else [str(value)]
    except (HydraException, ValueError) as error:
        raise QgoftError(f"{override}: {' '.join(str(error).split())}; expected a name, a list a,b or glob(q*)") from error
    if not found:
        names = ", ".join(config_names(group))
        raise QgoftError(
            f"{override}: no match; " + (f"allowed are {names}" if names else "glob() works for config groups only, list the values")
        )
    return [name.strip() for name in found]


def override_name(override: str) -> str:
    """Return the name of the setting that an override changes: +optim.max_grad_norm=2 -> optim.max_grad_norm."""
    return override.partition("=")[0].lstrip("+~")


def override_affects_results(override: str) -> bool:
    """Return True if an override changes a setting that affects results, other than the seed."""
    name = override_name(override)
    return name != "seed" and affects_results(name)


def own_overrides(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that change the protocol: they affect results and do not choose one of its runs."""
    return [o.lstrip("+") for o in overrides if "=" in o and override_name(o) not in RUN_SETTINGS and override_affects_results(o)]


@contextmanager
def _composition(subject: str) -> Iterator[None]:
    """Initialise Hydra, and turn its errors into one line."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(locations.CONFIGS), version_base=None):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        unknown = re.match(r"Could not override '([\w.]+)'", str(error))
        reason = _unknown_setting(unknown[1]) if unknown else f"cannot compose {subject}: {' '.join(str(error).split())}"
        raise QgoftError(reason) from error


def _unknown_setting(name: str) -> str:
    """Return the message for a setting that does not exist: its block's settings, and the closest name."""
    of_make = {variable: group for group, variable in GROUPS.items() if variable} | {"SEEDS": "seed"}
    if name in of_make:
        return f"{name} is a variable of make; a command has the option --{name.lower()}, a run the setting {of_make[name]}="
    known = setting_names()
    block, _, own = name.rpartition(".")
    alike = [other for other in known if other.rpartition(".")[2] == own]
    allowed = [other for other in known if other.rpartition(".")[0] == block] if block else []
    allowed = allowed or list(dict.fromkeys(other.partition(".")[0] for other in known))
    meant = f" (did you mean {alike[0]}?)" if alike else hint(name, known)
    return f"unknown setting {name}{meant}; allowed are {', '.join(allowed)}"


def compose_settings(overrides: list[str]) -> RunSettings:
    """Compose configs/train.yaml with overrides.

    Raises:
        QgoftError: the settings do not compose, or a value is invalid.
    """
    check_overrides(overrides)
    with _composition("the settings"):
        return settings_from_config(compose("train", [quote_path(override) for override in name_peft_methods(overrides)]))


def name_peft_methods(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with the shared file of the methods that have none of their own: method=vera -> method=_peft, method.name=vera."""
    found: list[str] = []
    for override in overrides:
        name, _, value = override.partition("=")
        is_shared = name == "method" and value in peft_types() and not has_config(f"method/{value}")
        found += [f"method={SHARED}", f"method.name={value}"] if is_shared else [override]
    return found


def quote_path(override: str) -> str:
    """Return an override with its path, if it sets one, quoted for Hydra; `~` is expanded."""
    name, _, value = override.partition("=")
    if name.lstrip("+") not in PATH_SETTINGS or not value or value == "null" or value[0] in "'\"":
        return override
    value = os.path.expanduser(value)
    # In Hydra's quotes only backslashes before a quote or at the end need escaping.
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'").replace("${", "\\${")
    return f"{name}='{text}'"


def expand_multirun(overrides: list[str]) -> tuple[list[tuple[str, ...]], str, tuple[str, ...]]:
    """Expand the sweep of a command line (`-m`): the product of its lists and those of `hydra.sweeper.params`.

    Returns:
        The overrides of each run, the launcher, and its overrides (hydra.launcher.*).

    Raises:
        QgoftError: invalid overrides.
    """
    check_overrides(overrides)
    launcher = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("hydra/launcher=")), "basic")
    own = [o for o in overrides if not override_name(o).startswith("hydra")]
    of_launcher = tuple(o for o in overrides if override_name(o).startswith("hydra.launcher."))
    experiment = [o for o in own if override_name(o) == "experiment"]
    with _composition("the settings of the sweep"):
        config = compose("train", experiment, return_hydra_config=True)
        params: Any = OmegaConf.to_container(config.hydra.sweeper.params) if config.hydra.sweeper.params else {}
    given = {override_name(o) for o in own}
    swept = [*(f"{name}={value}" for name, value in params.items() if name not in given), *own]
    return list(itertools.product(*map(_expand, swept))), launcher, of_launcher


def _expand(override: str) -> list[str]:
    name, parsed = override.partition("=")[0], _parse(quote_path(override))
    if isinstance(parsed.value(), Glob):
        return [f"{name}={value}" for value in swept_values(override, name)]
    return [f"{name}={value}" for value in parsed.sweep_string_iterator()] if parsed.is_sweep_override() else [override]


def launcher_settings(launcher: str, overrides: Iterable[str]) -> dict[str, Any]:
    """Return configs/launcher/<launcher>.yaml with overrides (hydra.launcher.*). Options that are null are left out.

    Raises:
        QgoftError: an unknown option.
    """
    config = OmegaConf.create(read_config(f"launcher/{launcher}"))
    for override in overrides:
        name, value = override_name(override).removeprefix("hydra.launcher."), _parse(override).value()
        known = [str(option) for option in config]
        if name.partition(".")[0] not in known:
            raise QgoftError(f"{override}: unknown option of launcher {launcher}; allowed are {', '.join(known)}{hint(name, known)}")
        OmegaConf.update(config, name, value, force_add=True)
    found: Any = OmegaConf.to_container(config)
    return {name: value for name, value in found.items() if value is not None}


def settings_from_config(config: DictConfig) -> RunSettings:
    """Return the settings of a composed configuration.

    Raises:
        QgoftError: a value is missing, unknown or of the wrong type.
    """
    try:
        # Resolved first: every reference to one of these blocks would resolve it again.
        with open_dict(config):
            for name in SELECTED_BLOCKS:
                block = config.get(name)
                config[name] = OmegaConf.to_container(block, resolve=True) if OmegaConf.is_config(block) else block
        resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise QgoftError(f"a setting cannot be resolved: {error}") from error
    data = {name: value for name, value in resolved.items() if name not in NOT_SETTINGS}
    data["protocol"] = resolved["protocol"]["name"]
    data["task"] = _task_settings(resolved["task"], is_pocket=resolved["data"]["source"] == "pocket")
    check_options(data["method"])
    return settings_from_dict(data)


def _task_settings(task: dict[str, Any], *, is_pocket: bool) -> dict[str, Any]:
    """Choose the rows and classes of the source of the data, and drop what is not a setting."""
    here, other = ("pocket", "official") if is_pocket else ("official", "pocket")
    task = {name: value for name, value in task.items() if name not in ("kind", "title") and not name.startswith(f"{other}_")}
    task["rows"] = task.pop(f"{here}_rows")
    task["options"] = {name: value for name, value in task.get("options", {}).items() if value is not None}
    if f"{here}_classes" in task:
        task["options"]["classes"] = task.pop(f"{here}_classes")
    return task


def check_options(method: dict[str, Any]) -> None:
    """Reject options that the method does not have, since they would be ignored.

    Raises:
        QgoftError: with the options of the method.
    """
    if not has_config(f"method/{method['name']}"):
        return  # checked against the fields of its configuration when the model is built
    own = list(method_config(method["name"]).get("options", {}))
    for name in method.get("options", {}):
        if name not in own:
            known = f"allowed are {', '.join(own)}" if own else "it has none"
            raise QgoftError(
                f"method.options.{name}: method {method['name']} has no such option; {known}; remove or rename it{hint(name, own)}"
            )


def method_config(name: str) -> dict[str, Any]:
    """Return the configuration of a method, unresolved."""
    config: dict[str, Any] = read_config(f"method/{name}")
    return config


def select_row(table: DictConfig, name: str) -> Any:
    """Return the row of a task in a table of a protocol or recipe, or its row `all`."""
    return table[name] if name in table else table["all"]


def select_lr(row: DictConfig, recipe: DictConfig, variant: str) -> DictConfig:
    """Return the learning rate of a variant and its source: from `rates` of the row, or else that of the row's variant."""
    source = row.get("source", recipe.source)
    usual = row.get("variant", recipe.variant)
    rates = {usual: row.lr, **row.get("rates", {})}
    if variant in rates:
        return OmegaConf.create({"lr": rates[variant], "source": source})
    return OmegaConf.create({"lr": row.lr, "source": f"{source}, the learning rate of {usual}"})


def select_penalty(row: DictConfig, variant: str) -> float:
    """Return the penalty weight of a recipe's row; 0 for a variant with `lambda0`."""
    return 0.0 if "lambda0" in variant.split("-") else float(row.penalty)


for resolver in (select_penalty, select_row, select_lr):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
