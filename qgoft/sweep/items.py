"""Plans of items of the papers (configs/experiment), and of suites."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qgoft.config.compose import check_config_name
from qgoft.config.locations import COMMAND
from qgoft.config.suites import config_names, read_config, tasks_of, unsupported_reason
from qgoft.errors import QgoftError, check_choice, hint
from qgoft.sweep.planned_run import (
    PlannedRun,
    SeededOverrides,
    as_dict,
    common_overrides,
    compose_seeded,
    method_overrides,
    protocol_seeds,
    split_list,
)
from qgoft.sweep.record_index import RecordIndex


@dataclass(frozen=True)
class SweepGrid:
    """A product of rows, tasks and seeds.

    Attributes:
        rows: overrides of each row.
        seeds: None for those of the protocol.
        overrides: overrides of every row.
    """

    rows: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...]
    seeds: tuple[str, ...] | None
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class PlannedItem:
    """An item of a paper with its grids under one protocol.

    Attributes:
        bench: shape of the benchmark, for an item without runs.
        in_papers: False for an item that the papers lack.
        title: title of such an item.
    """

    name: str
    grids: tuple[SweepGrid, ...]
    bench: str | None = None
    in_papers: bool = True
    title: str = ""


@dataclass(frozen=True)
class ItemFilter:
    """Restriction of items by the command line. Empty lists keep those of the item."""

    protocol: str
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    model: str = ""
    data: str = ""
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class ItemPlan:
    """The runs of an item under one protocol.

    Attributes:
        overrides: overrides with their seeds.
        left_out: unsupported combinations with their reasons.
        without_records: overrides for which no record exists; their rows are shown as missing.
    """

    item: PlannedItem
    overrides: tuple[SeededOverrides, ...]
    left_out: tuple[str, ...]
    without_records: tuple[tuple[str, ...], ...] = ()

    def only_recorded(self, index: RecordIndex) -> "ItemPlan":
        """Return the plan without runs that have no record: composing them all would take a minute."""
        made = tuple((overrides, seeds) for overrides, seeds in self.overrides if index.has_any(overrides))
        return replace(self, overrides=made, without_records=tuple(o for o, _ in self.overrides if not index.has_any(o)))


def read_items(protocol: str) -> dict[str, PlannedItem]:
    """Return every item of configs/experiment by name, as it is under a protocol. Several files may define one item."""
    items: dict[str, PlannedItem] = {}
    for name in config_names("experiment"):
        data = read_config(f"experiment/{name}")
        item = data["item"]
        if item.get("protocol", protocol) != protocol:
            continue
        params = dict(data.get("hydra", {}).get("sweeper", {}).get("params", {}))
        rows = item.get("rows")
        seeds = None  # every protocol has its own; those of the file are the papers'
        if protocol in item:  # what this protocol changes
            changed = item[protocol].get("params", {})
            params = {name: value for name, value in {**params, **changed}.items() if value is not None}
            rows = item[protocol].get("rows", rows)
            seeds = tuple(split_list(str(changed["seed"]))) if "seed" in changed else None
        known = items.get(item["name"], PlannedItem(item["name"], ()))
        grids = (*known.grids, _grid(params, rows, seeds)) if params else known.grids
        items[item["name"]] = PlannedItem(
            item["name"], grids, item.get("bench", {}).get("shape"), item.get("in_papers", True), item.get("title", item["name"])
        )
    return items


def _grid(params: dict[str, Any], rows: list[str] | None, seeds: tuple[str, ...] | None) -> SweepGrid:
    params = dict(params)
    tasks = tuple(split_list(params.pop("task")))
    params.pop("seed", None)
    choices = {name: split_list(str(value)) for name, value in params.items()}
    fixed = tuple(f"{name}={values[0]}" for name, values in choices.items() if len(values) == 1 and name != "method")
    swept = {name: values for name, values in choices.items() if len(values) > 1 or name == "method"}
    products = itertools.product(*([f"{name}={value}" for value in values] for name, values in swept.items()))
    every = tuple(tuple(row) for row in products) if rows is None else tuple(tuple(row.split()) for row in rows)
    return SweepGrid(every, tasks, seeds, fixed)


def item_names() -> list[str]:
    """Return the names of the items of all protocols."""
    return sorted({read_config(f"experiment/{name}")["item"]["name"] for name in config_names("experiment")})


def own_items(protocol: str) -> list[str]:
    """Return the items of this project, which the papers do not have."""
    return [name for name, item in read_items(protocol).items() if not item.in_papers]


def plan_items(names: Sequence[str], ask: ItemFilter) -> list[ItemPlan]:
    """Plan some items (`all`: every item of the papers that the protocol supports).

    Raises:
        QgoftError: an unknown name, or nothing is left of an item that was named, or of all.
    """
    check_config_name("protocol", ask.protocol)
    known = read_items(ask.protocol)
    is_all = "all" in names
    plans: list[ItemPlan] = []
    refused = []
    for name in dict.fromkeys([*(n for n, item in known.items() if is_all and item.in_papers), *(n for n in names if n != "all")]):
        check_choice("item", name, list(known), f"see `{COMMAND} help`")
        item = known[name]
        try:
            overrides, left_out = item_overrides(item, ask) if item.grids else ([], [])
        except QgoftError as error:
            if not is_all:
                raise
            refused.append(error)
            continue
        if not overrides and item.bench is None:
            if is_all:
                continue
            raise QgoftError(f"protocol {ask.protocol} supports nothing of item {name}: {'; '.join(left_out[:2])}; change PROTOCOL")
        plans.append(ItemPlan(item, tuple(overrides), tuple(left_out)))
    if refused and not any(plan.overrides for plan in plans):
        raise refused[0]
    return plans


def item_overrides(item: PlannedItem, ask: ItemFilter) -> tuple[list[SeededOverrides], list[str]]:
    """Return the overrides of every run of an item with their seeds, and the unsupported combinations.

    Raises:
        QgoftError: the item does not have a requested task or method.
    """
    shared = common_overrides(ask.protocol, ask.model, ask.data)
    known = list(dict.fromkeys(task for grid in item.grids for task in grid.tasks))
    for task in ask.tasks:
        if not any(task in (name, name.partition("/")[2]) for name in known):
            raise QgoftError(f"item {item.name} has no task {task!r}; it has {', '.join(known)}; change TASKS")
    has_recipe = any(override.startswith("recipe=") for override in ask.overrides)  # that of another method
    asked, left_out = [], []
    for number, grid in enumerate(item.grids):
        seeds = ask.seeds or grid.seeds or tuple(protocol_seeds(ask.protocol))
        for row, task in itertools.product(_rows(item, number, ask.methods), grid.tasks):
            if ask.tasks and not {task, task.partition("/")[2]} & set(ask.tasks):
                continue
            method = as_dict(row)["method"]
            reason = unsupported_reason(ask.protocol, task, "" if has_recipe else method)
            if reason:
                left_out.append(f"{method} on {task}: {reason}")
                continue
            fixed = [override for override in grid.overrides if not (ask.model and override.startswith("model="))]
            asked.append(((*shared, f"task={task}", *row, *fixed, *ask.overrides), seeds))
    return asked, list(dict.fromkeys(left_out))


def _rows(item: PlannedItem, number: int, methods: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the requested rows of one grid. Methods that the item lacks are added if its rows are single methods."""
    grid = item.grids[number]
    if not methods:
        return grid.rows
    every = {row for other in item.grids for row in other.rows}
    chosen = []
    for name in methods:
        overrides = tuple(method_overrides(name))
        mine = [row for row in grid.rows if set(overrides) <= {*row, *grid.overrides}]
        if mine:
            chosen += mine
        elif any(set(overrides) <= {*row, *other.overrides} for other in item.grids for row in other.rows):
            continue  # in another grid of the item
        elif all(len(row) == 1 for row in every):
            chosen += [overrides] if number == 0 else []
        else:
            known = sorted({as_dict(row)["method"] for row in every})
            raise QgoftError(f"item {item.name} has no row of {name}; it has {', '.join(known)}; change METHOD")
    return tuple(dict.fromkeys(chosen))


def compose_plans(plans: Sequence[ItemPlan], jobs: int) -> list[list[PlannedRun]]:
    """Return the runs of every plan; runs that several items share are composed once."""
    return split_runs(plans, compose_seeded([pair for plan in plans for pair in plan.overrides], jobs))


def split_runs(plans: Sequence[ItemPlan], runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Divide the runs of all plans, in their order, by plan."""
    rest = iter(runs)
    return [[next(rest) for _, seeds in plan.overrides for _ in seeds] for plan in plans]


def plan_suite(suite: str, ask: ItemFilter) -> list[SeededOverrides]:
    """Plan methods on tasks of a suite (all that the protocol supports, if none are named).

    Raises:
        QgoftError: an unknown name, or an unsupported combination.
    """
    known = tasks_of(suite)
    chosen = [task.removeprefix(f"{suite}/") for task in ask.tasks]
    chosen = chosen or [task for task in known if not unsupported_reason(ask.protocol, f"{suite}/{task}", "")]
    if not chosen:
        reason = unsupported_reason(ask.protocol, f"{suite}/{known[0]}", "")
        raise QgoftError(f"protocol {ask.protocol} has no task of suite {suite}: {reason}; change PROTOCOL")
    for task in chosen:
        if task not in known:
            raise QgoftError(f"unknown task {task!r} of suite {suite}; allowed are {', '.join(known)}; change TASKS{hint(task, known)}")
    if not ask.methods:
        raise QgoftError("METHOD is empty; expected a list such as qgoft,lora@r2")
    common = (*common_overrides(ask.protocol, ask.model, ask.data), *ask.overrides)
    return [((*common, f"task={suite}/{task}", *method_overrides(method)), ask.seeds) for method in ask.methods for task in chosen]
