"""Tables of an item or a suite, from planned runs and the records on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

from qgoft.config.locations import MEASURED
from qgoft.config.settings import method_label
from qgoft.errors import DISK_ERRORS
from qgoft.records import Record
from qgoft.report.cost import cost_tables, part_benches, read_bench
from qgoft.report.items import Item, item_named, item_of
from qgoft.report.leaderboard import build_leaderboard
from qgoft.report.library import RecordLibrary
from qgoft.report.paired_table import build_paired
from qgoft.report.row import Row
from qgoft.report.rows import collect_rows, control_rows
from qgoft.report.score_table import build_table
from qgoft.report.table import Table
from qgoft.report.table_files import write_table
from qgoft.report.win_rates import Rated, build_categories, build_win_rates, read_ratings
from qgoft.sweep.items import ItemFilter, ItemPlan
from qgoft.sweep.planned_run import PlannedRun, as_dict

# Items whose tables show the controls.
CONTROLLED = ("table1", "table2", "table3", "table4", "psoft-table4", "psoft-table5")


def suite_tables(suite: str, planned_runs: Sequence[PlannedRun], ask: ItemFilter, library: RecordLibrary, jobs: int) -> list[Table]:
    """Return the table of a suite's runs and those derived from it."""
    rows = collect_rows(planned_runs, library.index)
    rows += control_rows(ask.protocol, suite, ask.model, {row.label for row in rows}, ask.methods, jobs)
    item = item_of(suite, ask.protocol).only([task.removeprefix(f"{suite}/") for task in ask.tasks])
    tables = score_tables(suite, ask.protocol, rows, library, item)
    return [*tables, *rating_tables(ask.protocol, rows, library, [build_categories, build_win_rates])]


def item_rows(plan: ItemPlan, planned_runs: Sequence[PlannedRun], ask: ItemFilter, library: RecordLibrary) -> list[Row]:
    """Return the rows of an item that have planned runs."""
    own = frozenset(override for overrides, _ in plan.overrides for override in overrides) - set(ask.overrides) - {f"model={ask.model}"}
    return collect_rows(planned_runs, library.index, own=own, swept=_swept(plan))


def item_tables(plan: ItemPlan, measured: Sequence[Row], ask: ItemFilter, library: RecordLibrary, jobs: int) -> list[Table]:
    """Return all tables of an item.

    Args:
        measured: the rows of `item_rows`.
    """
    name = plan.item.name
    if plan.item.bench is not None:
        return cost_tables(name, read_bench(bench_directories(library), name, plan.item.bench))
    item = item_named(plan.item)
    rows = [*measured, *_rows_without_records(plan, measured)]
    notes = [f"not under protocol {ask.protocol}: {reason}" for reason in _shorten(plan.left_out)]
    notes += [f"for every row: {override}" for override in _fixed(plan, ask)]
    if name == "figure3":
        # A single method has no other to win against.
        wins = rating_tables(ask.protocol, rows, library, [build_win_rates])
        return wins or rating_tables(ask.protocol, rows, library, [build_categories])
    if name in CONTROLLED:
        rows += control_rows(ask.protocol, item.suite, ask.model, {row.label for row in rows}, [], jobs)
    tables = score_tables(item.suite, ask.protocol, rows, library, item, notes)
    if name == "leaderboard":
        return [build_leaderboard(item, rows, part_benches(bench_directories(library), "pocket"), library.files), *tables]
    return [*tables, *(rating_tables(ask.protocol, rows, library, [build_categories]) if name == "table2" else [])]


def bench_directories(library: RecordLibrary) -> list[Path]:
    """Return the directories with benchmark records, those of this machine first."""
    return [*([] if library.is_committed else [library.root / "bench"]), MEASURED / "bench"]


def _rows_without_records(plan: ItemPlan, rows: Sequence[Row]) -> list[Row]:
    """Return empty rows for the methods of an item that have no record at all."""
    known = {row.label.partition("@")[0].partition(",")[0] for row in rows}
    labels = []
    for overrides in plan.without_records:
        asked = as_dict(overrides)
        if asked["method"] not in known:
            labels.append(method_label(asked["method"], asked.get("method.variant", asked["method"])))
    return [Row(label, {}) for label in dict.fromkeys(labels)]


def _swept(plan: ItemPlan) -> frozenset[str]:
    """Return the settings that differ between the rows of an item, besides the method."""
    rows = {override for grid in plan.item.grids for row in grid.rows for override in row}
    names = {override.partition("=")[0] for override in rows} - {"method", "method.variant"}
    return frozenset(name for name in names if len({override for override in rows if override.startswith(f"{name}=")}) > 1)


def _fixed(plan: ItemPlan, ask: ItemFilter) -> list[str]:
    """Return the overrides of every row of an item."""
    shared = set.intersection(*(set(grid.overrides) for grid in plan.item.grids))
    return sorted(override for override in shared if not (ask.model and override.startswith("model=")))


def _shorten(reasons: Sequence[str]) -> list[str]:
    """Return one line per reason, with the number of combinations if there are many."""
    by_reason: dict[str, list[str]] = {}
    for text in reasons:
        combination, _, reason = text.partition(": ")
        by_reason.setdefault(reason, []).append(combination)
    return [
        f"{', '.join(some) if len(some) < 4 else f'{some[0]} and {len(some) - 1} more combinations'}: {reason}"
        for reason, some in by_reason.items()
    ]


def score_tables(suite: str, protocol: str, rows: list[Row], library: RecordLibrary, item: Item, notes: Sequence[str] = ()) -> list[Table]:
    """Return the table of an item, and that of the paired differences if rows are comparable."""
    table = build_table(
        suite, protocol, rows, item=item, bootstrap=library.bootstrap, extra=[*notes, *map(_problem, library.problems)], style=library.style
    )
    paired = build_paired(table.name, rows, item, library.bootstrap)
    return [table, *([paired] if paired is not None else [])]


def _problem(problem: str) -> str:
    return f"warning, skipped: {problem}" if "clock was set back" not in problem else f"warning: {problem}"


def rating_tables(
    protocol: str, rows: Sequence[Row], library: RecordLibrary, builders: Sequence[Callable[[Rated, str], Table | None]]
) -> list[Table]:
    """Return tables of the ratings of Vicuna-Eval: by category, and the first method against each other one."""
    records: list[Record] = [record for row in rows for record in row.records.get("vicuna", [])]
    rated = read_ratings(library.files, records)
    return [table for build in builders if (table := build(rated, protocol)) is not None] if rated else []


def write_tables(tables: Sequence[Table], library: RecordLibrary) -> str:
    """Write tables to <root>/tables. Return the paths of the first, or why it could not be written."""
    directory = library.root / "tables"
    try:
        paths, *_ = [write_table(table, directory, library.files) for table in tables]
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return f"not written: {error.filename or directory}: {error.strerror}"
    return f"{paths[0].parent}/{paths[0].stem}.{{{','.join(path.suffix[1:] for path in paths)}}}"
