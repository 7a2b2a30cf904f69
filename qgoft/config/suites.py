"""Descriptions of the suites (configs/suite/<suite>.yaml), and the combinations that a protocol supports."""

import functools
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qgoft.config import locations
from qgoft.config.peft_types import SHARED, peft_types
from qgoft.errors import QgoftError, check_choice


@dataclass(frozen=True)
class SuiteInfo:
    """What all tasks of a suite have in common.

    Attributes:
        title: title of tables.
        kind: encoder, vision or decoder; it selects the model of a protocol. The tasks of a decoder suite share one training.
        implementation: dotted name of the `tasks.base.Suite` class, or one per task.
        eval_schemes: accepted values of `eval_scheme`.
        generator: dotted name of the function (task, directory) that writes the embedded rows; None if there are none.
        probe_task: task whose training curves the report draws; None for none.
        random_model: model file of the random control; None if the suite has none.
        printed_model: model of the published figures, as printed.
        paper_models: models whose results may be compared with published figures.
        tables: protocol -> item whose table the suite prints.
        extra_columns: protocol -> further tasks of that table.
        groups: title -> tasks of a group; the average is then the mean of the group means.
        seconds: protocol -> typical seconds of a run, until records tell.
        tokens: task (or all) -> tokens per row on average, and of the longest of 32 rows.
    """

    name: str
    title: str
    kind: str
    implementation: str | dict[str, str]
    eval_schemes: list[str]
    generator: str | None = None
    probe_task: str | None = None
    random_model: str | None = None
    printed_model: str = ""
    paper_models: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    extra_columns: dict[str, list[str]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, list[float]] = field(default_factory=dict)

    @property
    def is_decoder(self) -> bool:
        return self.kind == "decoder"

    def implementation_of(self, task: str) -> Any:
        """Import the class of a task.

        Raises:
            QgoftError: the suite has no such task.
        """
        name = self.implementation
        if isinstance(name, dict):
            check_choice(f"task of suite {self.name}", task, list(name), "change task")
            name = name[task]
        return import_name(name)


def import_name(dotted: str) -> Any:
    """Import a module's attribute by its dotted name."""
    module, _, attribute = dotted.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def config_names(group: str) -> list[str]:
    """Return the names of the files of a config group, with their directories: glue/cola."""
    return list(_names_below(locations.CONFIGS / group))


@functools.cache
def _names_below(directory: Path) -> tuple[str, ...]:
    names = (path.relative_to(directory).with_suffix("").as_posix() for path in directory.rglob("*.yaml"))
    return tuple(sorted(name for name in names if not name.startswith("_")))  # a file that several methods share


def known_methods() -> list[str]:
    """Return the names of all methods: those of configs/method, and the tuner types of peft."""
    return sorted({*config_names("method"), *peft_types()})


def has_config(name: str) -> bool:
    """Return True if configs has a file of this name."""
    return (locations.CONFIGS / f"{name}.yaml").is_file()


def read_config(name: str) -> Any:
    """Return the content of a file below configs, unresolved."""
    return _read_yaml(locations.CONFIGS / f"{name}.yaml")


@functools.cache
def _read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def suite_names() -> list[str]:
    """Return the names of all suites."""
    return config_names("suite")


def decoder_suites() -> list[str]:
    """Return the names of the suites of decoders."""
    return [name for name in suite_names() if suite_info(name).is_decoder]


def suite_info(name: str) -> SuiteInfo:
    """Return the description of a suite.

    Raises:
        QgoftError: an unknown suite, or an invalid description.
    """
    return _read_suite(locations.CONFIGS, name)


@functools.cache
def _read_suite(configs: Path, name: str) -> SuiteInfo:
    check_choice("suite", name, suite_names(), "change task")
    try:
        return SuiteInfo(name, **_read_yaml(configs / "suite" / f"{name}.yaml"))
    except TypeError as error:
        raise QgoftError(f"configs/suite/{name}.yaml: {error}; qgoft.config.suites.SuiteInfo lists the fields") from error


def tasks_of(suite: str) -> list[str]:
    """Return the tasks of a suite, without its name."""
    return [name.removeprefix(f"{suite}/") for name in config_names("task") if name.startswith(f"{suite}/")]


def task_title(suite: str, task: str) -> str:
    """Return the column title of a task: its `title`, or else its name."""
    return str(read_config(f"task/{suite}/{task}").get("title", task))


def unsupported_reason(protocol: str, task: str, method: str) -> str | None:
    """Return why a protocol does not support a combination, or None if it does.

    A combination is supported if the protocol has a block for the suite with a line for the task (or `all`), and the method's recipe has
    them too. `unsupported` in the protocol's file may give a reason for a suite, a task, a method or `suite/method`.
    """
    suite, _, name = task.partition("/")
    settings = read_config(f"protocol/{protocol}")
    reasons = settings.get("unsupported", {})
    if reason := reasons.get(task) or reasons.get(suite):
        return str(reason)
    if not {name, "all"} & set(settings.get(suite, {}).get("tasks", ())):
        return f"configs/protocol/{protocol}.yaml has no settings for {task}"
    if not method:
        return None
    recipe = method if has_config(f"method/{method}") else SHARED
    path = locations.CONFIGS / "recipe" / protocol / f"{recipe}.yaml"
    rows = (read_config(f"recipe/{protocol}/{recipe}") or {}).get(suite, ()) if path.is_file() else ()
    if {name, "all"} & set(rows):
        return None
    missing = "is missing" if not path.is_file() else f"has no settings for {task}"
    return str(reasons.get(f"{suite}/{method}") or reasons.get(method) or f"configs/recipe/{protocol}/{path.name} {missing}")
