"""Plan and run items of the papers, tables and figures, then print them: what `make table1`, `make lambda` and `make paper` call.

python scripts/paper.py table1 --method lora,qgoft --seeds 0
python scripts/paper.py all --protocol pocket
python scripts/paper.py psoft-table17 --action status
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qgoft.cli import Parser
from qgoft.commands.execution import INTERRUPTED as INTERRUPTED
from qgoft.commands.execution import add_executor_options, check_executor_options, run_action, run_overrides
from qgoft.config.compose import check_config_name
from qgoft.config.settings import method_label
from qgoft.errors import QgoftError, check_choice
from qgoft.report.cost import cost_tables, read_bench
from qgoft.report.items import ITEMS, Item
from qgoft.report.rows import MEASURED, RecordLibrary, collect_rows, control_rows, rating_tables, read_library, score_tables, write_tables
from qgoft.report.score_table import Row
from qgoft.report.table import Table, terminal_width
from qgoft.report.win_rates import build_categories, build_win_rates
from qgoft.sweep.plan import (
    ROOT,
    ItemFilter,
    PlannedItem,
    PlannedRun,
    RecordIndex,
    check_methods,
    compose_seeded,
    item_overrides,
    named,
    read_items,
    split_list,
    split_seeds,
)

# Suites whose tables show what the other rows are worth.
CONTROLLED = ("table1", "table2", "table3", "table4", "psoft-table4", "psoft-table5")


@dataclass(frozen=True)
class ItemPlan:
    """An item with its cells under one protocol, and why some are missing."""

    item: PlannedItem
    overrides: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    left_out: tuple[str, ...]
    unmade: tuple[tuple[str, ...], ...] = ()  # words of which no record can be: they are shown as missing

    def only_made(self, index: RecordIndex) -> "ItemPlan":
        """Without the words that no record is of. Composing them all takes a minute, where nothing is kept from an earlier time."""
        made = tuple((words, seeds) for words, seeds in self.overrides if index.has_any(words))
        return replace(self, overrides=made, unmade=tuple(words for words, _ in self.overrides if not index.has_any(words)))


def plan_items(names: Sequence[str], ask: ItemFilter) -> list[ItemPlan]:
    """The items that were asked for (`all`: every one that the protocol has, of those that have the methods and tasks asked for).

    Raises:
        QgoftError: an unknown name, or nothing is left of an item that was named, or of all.
    """
    check_config_name("protocol", ask.protocol)
    known = read_items(ask.protocol)
    is_all = "all" in names
    parts: list[ItemPlan] = []
    refused = []
    for name in dict.fromkeys([*(n for n, item in known.items() if is_all and item.in_papers), *(n for n in names if n != "all")]):
        check_choice("item", name, list(known), "see `make help`")
        item = known[name]
        try:
            words, left_out = item_overrides(item, ask) if item.grids else ([], [])
        except QgoftError as error:
            if not is_all:
                raise
            refused.append(error)
            continue
        if not words and item.bench is None:
            if is_all:
                continue
            raise QgoftError(f"protocol {ask.protocol} has nothing of item {name}: {'; '.join(left_out[:2])}; change PROTOCOL")
        parts.append(ItemPlan(item, tuple(words), tuple(left_out)))
    if refused and not any(part.overrides for part in parts):
        raise refused[0]
    return parts


def rows_of(part: ItemPlan, planned_runs: Sequence[PlannedRun], ask: ItemFilter, library: RecordLibrary) -> list[Row]:
    """The rows of an item that have runs planned."""
    own = frozenset(word for words, _ in part.overrides for word in words) - set(ask.overrides) - {f"model={ask.model}"}
    return collect_rows(planned_runs, library.index, own=own, swept=swept(part))


def tables_of(part: ItemPlan, measured: Sequence[Row], ask: ItemFilter, library: RecordLibrary, jobs: int) -> list[Table]:
    """Everything that is printed of an item, from its rows (`rows_of`)."""
    if part.item.bench is not None:
        return cost_tables(part.item.name, read_bench(bench_folders(library), part.item.name, part.item.bench))
    name = part.item.name
    item = printed_item(name)
    rows = [*measured, *missing_rows(part, measured)]
    notes = [f"not under protocol {ask.protocol}: {reason}" for reason in _shorten(part.left_out)]
    notes += [f"for every row: {word}" for word in _fixed(part, ask)]
    if name == "figure3":
        # One method alone wins against none.
        wins = rating_tables(ask.protocol, rows, library, [build_win_rates])
        return wins or rating_tables(ask.protocol, rows, library, [build_categories])
    if name in CONTROLLED:
        rows += control_rows(ask.protocol, item.suite, ask.model, {row.label for row in rows}, [], jobs)
    tables = score_tables(item.suite, ask.protocol, rows, library, item, notes)
    return [*tables, *(rating_tables(ask.protocol, rows, library, [build_categories]) if name == "table2" else [])]


def own_items(protocol: str) -> list[str]:
    """Items that are not in the papers."""
    return [name for name, item in read_items(protocol).items() if not item.in_papers]


def bench_folders(library: RecordLibrary) -> list[Path]:
    """Where a benchmark is looked for: one of this machine, then the committed ones, or these alone."""
    return [*([] if library.is_committed else [library.root / "bench"]), MEASURED / "bench"]


def missing_rows(part: ItemPlan, rows: Sequence[Row]) -> list[Row]:
    """Methods of an item that have no record at all."""
    known = {row.label.partition("@")[0].partition(",")[0] for row in rows}
    labels = []
    for words in part.unmade:
        asked = named(words)
        if asked["method"] not in known:
            labels.append(method_label(asked["method"], asked.get("method.variant", asked["method"])))
    return [Row(label, {}) for label in dict.fromkeys(labels)]


def printed_item(name: str) -> Item:
    """The columns of an item."""
    return ITEMS["table2" if name == "figure3" else name]


def swept(part: ItemPlan) -> frozenset[str]:
    """Settings that differ between the rows of an item, beside the method."""
    rows = {word for grid in part.item.grids for row in grid.rows for word in row}
    names = {word.partition("=")[0] for word in rows} - {"method", "method.variant"}
    return frozenset(name for name in names if len({word for word in rows if word.startswith(f"{name}=")}) > 1)


def _fixed(part: ItemPlan, ask: ItemFilter) -> list[str]:
    """What the item sets for every row, other than its tasks."""
    shared = set.intersection(*(set(grid.overrides) for grid in part.item.grids))
    return sorted(word for word in shared if not (ask.model and word.startswith("model=")))


def _shorten(reasons: Sequence[str]) -> list[str]:
    """One line for each reason, with the number of cells where there are many."""
    by_reason: dict[str, list[str]] = {}
    for text in reasons:
        planned, _, reason = text.partition(": ")
        by_reason.setdefault(reason, []).append(planned)
    return [
        f"{', '.join(planned_runs) if len(planned_runs) < 4 else f'{planned_runs[0]} and {len(planned_runs) - 1} more cells'}: {reason}"
        for reason, planned_runs in by_reason.items()
    ]


def parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", help="comma list of items, or all")
    parser.add_argument("--method", default="", help="comma list, to narrow or to add rows; default the item's")
    parser.add_argument("--tasks", default="", help="comma list, to narrow")
    parser.add_argument("--seeds", default="", help="comma list; default the protocol's")
    add_executor_options(parser)
    arguments = parser.parse_intermixed_args(words)
    check_executor_options(arguments)
    return arguments


def item_filter(arguments: argparse.Namespace) -> ItemFilter:
    """What the command line asks of every item."""
    methods = tuple(split_list(arguments.method))
    check_methods(methods)
    lists = (methods, tuple(split_list(arguments.tasks)), tuple(split_seeds(arguments.seeds)))
    return ItemFilter(arguments.protocol, *lists, arguments.model, arguments.data, tuple(run_overrides(arguments.overrides)))


def compose_parts(parts: Sequence[ItemPlan], jobs: int) -> list[list[PlannedRun]]:
    """The cells of every part; what several items share is composed once."""
    return split(parts, compose_seeded([pair for part in parts for pair in part.overrides], jobs))


def split(parts: Sequence[ItemPlan], planned_runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """The cells of all parts, in their order, part by part."""
    rest = iter(planned_runs)
    return [[next(rest) for _, seeds in part.overrides for _ in seeds] for part in parts]


def main(words: list[str]) -> int:
    arguments = parse(words)
    ask = item_filter(arguments)
    parts = plan_items(split_list(arguments.items), ask)
    planned_runs = [planned for part in compose_parts(parts, arguments.jobs) for planned in part]
    asked = next((word.removeprefix(ROOT) for word in arguments.overrides if word.startswith(ROOT)), "results")
    root = Path(planned_runs[0].settings.results.root if planned_runs else asked)

    def show(keyed: list[PlannedRun]) -> None:
        library = read_library(root, arguments.records, arguments.protocol)
        for part, mine in zip(parts, split(parts, keyed), strict=True):
            tables = tables_of(part, rows_of(part, mine, ask, library), ask, library, arguments.jobs)
            if not tables:
                print(f"\n{part.item.name}: no run is done yet")
            for table in tables:
                written = write_tables([table], root)
                if not table.name.endswith("-paired"):
                    print(f"\n{table.terminal(terminal_width())}\n{written}")

    if not planned_runs:
        show([])
        return 0
    return run_action(parts[0].item.name if len(parts) == 1 else f"{len(parts)} items", planned_runs, arguments, root, show)
