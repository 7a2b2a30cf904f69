"""Score tables: measured rows next to published ones, in the columns of `qgoft.report.items`.

A cell is the mean over the finished seeds, with the standard deviation over two or more. A missing cell is a dash; a failed one shows its
status, and one without all of its seeds a dagger. The average needs every task. The best and second of a column are highlighted if the paired
comparison (qgoft/report/significance.py) puts them above all rows below, or by their means (BOLD=best).
"""

import functools
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from qgoft.config.suites import suite_info
from qgoft.report.counts import REASONS
from qgoft.report.items import Column, Item, item_of
from qgoft.report.names import display_label
from qgoft.report.notes import build_notes, published_name
from qgoft.report.published import PublishedRow, is_average_consistent, load_rows, printed_averages, printed_cells
from qgoft.report.row import Row, averages_of, majority_baseline, mean_score, scores_of
from qgoft.report.significance import Bootstrap, Difference
from qgoft.report.style import PLAIN, TableStyle
from qgoft.report.table import ColumnGroup, Table, table_name

DAGGER = "†"


def build_table(
    suite: str,
    protocol: str,
    rows: list[Row],
    *,
    item: Item | None = None,
    bootstrap: Bootstrap | None = None,
    extra: Sequence[str] = (),
    style: TableStyle = PLAIN,
) -> Table:
    """Return the table of a suite, or of an item, under a protocol.

    Args:
        bootstrap: finds the significantly best rows; without it no cell is highlighted.
        extra: further notes.
    """
    item = item_of(suite, protocol) if item is None else item
    is_comparable = item.is_comparable(protocol)
    table = Table(
        table_name(item.name, protocol),
        f"{item.title}: {suite_info(suite).title}, protocol {protocol}",
        [f"{item.title} ({protocol})", "#Param", *item.titles],
        groups=[ColumnGroup(title, 2 + first, titles) for title, first, titles in item.column_groups],
        has_methods=True,
    )
    lines: dict[int, int] = {}  # number of a row -> line in the table
    reasons: list[str] = []
    for number, row in enumerate(rows):
        lines[number] = len(table.rows)
        table.rows.append(_cells(row, item, style))
        _add_sources(table, row, item)
        published = _published(item, row) if is_comparable else None
        if published:
            reasons += _count_reason(row, published)
            table.rows += _published_lines(row, published, item)
            if _may_subtract(row) and not is_average_consistent(published, item):
                reasons.append(
                    f"Avg of {row.label}: the printed one is not the mean of the printed cells (make audit), so it is not subtracted"
                )
    if majority := _majority(rows, item):
        table.rows.append(majority)
    printed = [] if item.no_published_values else load_rows(item.paper, item.table)
    table.notes = [
        *build_notes(rows, printed, item, is_comparable),
        *_incomplete_note(rows, item),
        *(flag_notes(rows) if style.is_paper else []),
    ]
    if not is_comparable and not item.no_published_values:
        table.context = _context(rows, printed, item)
        table.notes += [f"published: {item.printed_model} on other data, for context only"] if table.context else []
    table.notes += reasons
    if item.no_published_values:
        table.notes.append(f"published: {item.no_published_values}")
    if bootstrap is not None:
        table.notes += _highlight(table, rows, lines, item, bootstrap if style.bold == "significant" else None)
    table.notes += extra
    return table


def _add_sources(table: Table, row: Row, item: Item) -> None:
    """Store the keys of the runs behind each cell of the last line."""
    line = len(table.rows) - 1
    averages = len(table.columns) - 2 - len(item.columns) - len(item.extra_columns)
    for number, column in enumerate(item.all_columns):
        place = 2 + number + (averages if number >= len(item.columns) else 0)
        records = row.all() if column.task is None else [*row.records.get(column.task, []), *row.failed.get(column.task, [])]
        if records:
            table.sources[line, place] = [record["key"] for record in records]
    if averages and row.all():
        table.sources[line, 1 + len(item.columns) + averages] = [record["key"] for record in row.all()]


def _highlight(table: Table, rows: list[Row], lines: dict[int, int], item: Item, bootstrap: Bootstrap | None) -> list[str]:
    """Highlight the best and the second of each column. Return the note that says so.

    Args:
        bootstrap: only if their order is significant; None: by their means.
    """
    ranked = [number for number, row in enumerate(rows) if row.is_ranked]
    if len(ranked) < 2 or not item.columns:
        return []
    means: list[tuple[int, Callable[[Row], float | None], Column | None]] = [
        (2 + number, functools.partial(mean_score, column=column), column) for number, column in enumerate(item.columns)
    ]
    if item.has_average:
        means.append((2 + len(item.columns) + len(item.groups), lambda row: averages_of(row, item)[-1], None))
    for place, mean_of, column in means:
        known = [(mean, n) for n in ranked if (mean := mean_of(rows[n])) is not None]
        order = [n for _, n in sorted(known, key=lambda pair: -pair[0])]
        for rank, highlight in ((0, "best"), (1, "second")):
            below = order[rank + 1 :]
            # All rows below, not only the next: a row with a large variance may have a lower mean without being significantly lower.
            if not below or (
                bootstrap is not None and not all(_is_above(bootstrap, item, column, rows[order[rank]], rows[n]) for n in below)
            ):
                break
            table.highlights[lines[order[rank]], place] = highlight
    if bootstrap is None:
        return ["bold: highest mean of its column, underlined: second highest; differences may be smaller than their spread over seeds"]
    return [
        "bold: best, underlined: second, if the 95% intervals of its differences from all rows below it (over seeds and items) are above 0, "
        f"never with one seed; {table.name}-paired has the differences from one row"
    ]


def _is_above(bootstrap: Bootstrap, item: Item, column: Column | None, ours: Row, theirs: Row) -> bool:
    """Return True if a row is significantly above another in a column, or in the average."""
    gap = average_gap(bootstrap, item, ours, theirs) if column is None else column_gap(bootstrap, column, ours, theirs)
    return gap is not None and gap.is_significantly_higher


def column_gap(bootstrap: Bootstrap, column: Column, ours: Row, theirs: Row) -> Difference | None:
    """Return the difference of two rows in a column."""
    return bootstrap.column_difference(column, *(row.records.get(column.task or "", []) for row in (ours, theirs)))


def average_gap(bootstrap: Bootstrap, item: Item, ours: Row, theirs: Row) -> Difference | None:
    """Return the difference of the averages of two rows."""
    return bootstrap.average_difference(item, ours.records, theirs.records)


def _cell(row: Row, column: Column) -> str:
    values = scores_of(row, column)
    failed = row.failed.get(column.task or "", [])
    if not values:
        return str(failed[-1]["status"]) if failed else "-"
    mean = statistics.fmean(values)
    if column.task is None:
        return f"{mean:{column.spelling}}"
    text = f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ±{statistics.stdev(values):.1f}"
    return f"{text}{DAGGER}" if _seeds_lost(row, column) else text


def _seeds_lost(row: Row, column: Column) -> str:
    """Return `1 of 3 seeds, 2 diverged` for a cell that lacks some of its seeds, else an empty string."""
    done, failed = row.records.get(column.task or "", []), row.failed.get(column.task or "", [])
    planned = row.planned.get(column.task or "", 0)
    # If all cells lack the same seeds, the label of the row says so once.
    if row.is_context or not done or (not failed and (row.seeds_missing() or len(done) >= planned)):
        return ""
    lost = "".join(f", {count} {status}" for status, count in Counter(record["status"] for record in failed).items())
    return f"{len(done)} of {max(planned, len(done) + len(failed))} seeds{lost}"


def _incomplete_note(rows: Sequence[Row], item: Item) -> list[str]:
    """Return the note of the daggers. The mean of the runs that did not diverge is not the mean."""
    cells = [
        f"{display_label(row.label)}, {column.title}: {lost}"
        for row in rows
        for column in item.all_columns
        if (lost := _seeds_lost(row, column))
    ]
    return [f"{DAGGER} mean over some of the seeds only ({'; '.join(cells)})"] if cells else []


def flag_notes(rows: Sequence[Row]) -> list[str]:
    """Return the marks of rows as notes, one per mark."""
    by_flag: dict[str, list[str]] = {}
    for row in rows:
        for flag in row.marks():
            by_flag.setdefault(flag, []).append(display_label(row.label))
    return [f"{flag}: {', '.join(labels)}" for flag, labels in by_flag.items()]


def _cells(row: Row, item: Item, style: TableStyle) -> list[str]:
    counts = {record["params"]["trainable"] for record in row.any()}
    params = f"{counts.pop():,}" if len(counts) == 1 else "differs" if counts else "-"
    averages = ["-" if average is None else f"{average:.1f}" for average in averages_of(row, item)]
    cells, extra = ([_cell(row, column) for column in columns] for columns in (item.columns, item.extra_columns))
    return [row.label + row.flags(is_paper=style.is_paper), params, *cells, *averages, *extra]


def _published(item: Item, row: Row) -> PublishedRow | None:
    if not row.any() or item.no_published_values:
        return None
    record = row.any()[0]
    # The published counts of oft are those of full blocks; its row of the same block size is shown with that explanation.
    methods = (record["method"], record["method"] + "_paper")
    found = [
        p
        for p in load_rows(item.paper, item.table)
        if p.method in methods
        and p.variant in (None, record["variant"])
        and (p.targets is None or p.targets == row.targets)
        and (p.penalty is None or p.penalty == row.penalty)
    ]
    return found[0] if found and record["settings"]["model"]["init"] == "pretrained" else None


def _count_reason(row: Row, published: PublishedRow) -> list[str]:
    reason = REASONS.get((published.paper, published.table, published.name))
    return [f"#Param of {row.label}: {reason}"] if reason else []


def _may_subtract(row: Row) -> bool:
    """Return True if the row has the paper's model, rows and rules."""
    return row.is_ranked and all(record["model"] in suite_info(record["suite"]).paper_models for record in row.all())


def _published_lines(row: Row, published: PublishedRow, item: Item) -> list[list[str]]:
    """Return the published line, and the line of differences if the row is comparable."""
    line = ["  published", published.params or "", *printed_cells(published, item)]
    if not _may_subtract(row):
        return [line]
    differences = []
    for column in item.columns:
        values, printed = scores_of(row, column), published.printed(column.printed)
        is_number = values and isinstance(printed, float | int)
        differences.append(f"{statistics.fmean(values) - printed:+.1f}" if is_number else "-")
    averages = printed_averages(published, item)
    if not is_average_consistent(published, item):
        averages[-1] = None
    for ours, printed in zip(averages_of(row, item), averages, strict=True):
        differences.append("-" if ours is None or printed is None else f"{ours - printed:+.1f}")
    return [line, *([["  difference", "", *differences, *("" for _ in item.extra_columns)]] if differences else [])]


def _majority(rows: list[Row], item: Item) -> list[str] | None:
    """Return the line of the majority class, or None if no column has one."""
    values = [majority_baseline(rows, column) for column in item.all_columns]
    if all(value is None for value in values):
        return None
    cells = ["-" if value is None else f"{value:.1f}" for value in values]
    averages, end = ["-" for _ in item.averages([None] * len(item.columns))], len(item.columns)
    return ["majority class", "0", *cells[:end], *averages, *cells[end:]]


def _context(rows: list[Row], published: Sequence[PublishedRow], item: Item) -> list[list[str]]:
    """Return the printed values of the methods of the rows as lines."""
    found = []
    for method in dict.fromkeys(record["method"] for row in rows if not row.is_context for record in row.all()):
        printed = (row for row in published if row.method == method)
        found += [[f"published {published_name(row)}", row.params or "-", *printed_cells(row, item)] for row in printed]
    return found
