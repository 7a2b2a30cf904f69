"""Tables of scores, measured beside published (qgoft/report/items.py says which).

A cell is the mean over the seeds that are done, with the standard deviation over seeds where there are two or more. A missing cell is a
dash, one that failed says what happened, and one of which some seeds failed how many. The average is over tasks and stands only where every task
is there. The best of a column is bold and the second underlined where redrawn seeds and items put it above every row below it
(qgoft/report/paired.py).
"""

import functools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from qgoft.config.settings import DECODER_SUITES, method_label
from qgoft.records import code_checksum
from qgoft.report.counts import REASONS
from qgoft.report.items import PAPER_MODELS, SETUP, SUITES, Column, Item, Record, group_by_training, item_of
from qgoft.report.published import PublishedRow, load_rows
from qgoft.report.significance import Bootstrap, Difference, sign_test
from qgoft.report.table import Table

# A printed average and the mean of the printed cells may differ by this much: both are rounded, some to whole tenths.
ROUNDED = 0.11
# Why our count stands beside another printed one.
COUNT_NOTES = {
    "oft": "#Param of oft: peft trains the skew-symmetric entries; oft_paper has the full b x b blocks that the paper counts",
}
PART = {
    "test": "test split",
    "halves": "second half of validation",
    "validation": "validation",
    "seeded_halves": "second half of validation, in an order by the seed",
    "whole": "test split, trained on all of the thousand",
    "train800": "test split, trained on the 800 of train",
}
RULE = {
    "last": "last step, no selection",
    "best_validation": "selected on validation",
    "best_reported": "best score on the reported part (not comparable)",
}


@dataclass
class Row:
    """One method@variant on one backbone: task -> records of its seeds that are done, and of those that are not."""

    label: str
    records: dict[str, list[Record]]
    is_context: bool = False  # from results/measured, beside the user's own rows
    is_altered: bool = False  # settings are not the protocol's own
    planned: dict[str, int] = field(default_factory=dict)  # task -> seeds that were asked for
    failed: dict[str, list[Record]] = field(default_factory=dict)
    targets: str | None = None  # where an item mixes choices of layers, or weights of a penalty
    penalty: float | None = None
    left_out: int = 0  # runs on other data or weights than the newest
    others: int = 0  # runs with the same settings on other data, weights or number of processes, which are not shown
    sources: set[str] = field(default_factory=set)  # where the learning rates are from, as the recipes say today

    @property
    def is_compared(self) -> bool:
        """Whether the row may be set against others."""
        is_plain = not self.is_context and not self.is_altered and not self.label.startswith("random") and bool(self.records)
        return is_plain and not any(record["selection"] == "best_reported" for record in self.all())

    @property
    def is_ranked(self) -> bool:
        """Whether the row may be the best of its column: never on a subset of the data."""
        return self.is_compared and not any(record["provenance"]["data"]["subset"] for record in self.all())

    def seeds_missing(self) -> str:
        """`1 of 3 seeds`, where that is so of every task that was asked for; else nothing."""
        counts = {(len(self.records.get(task, [])), planned) for task, planned in self.planned.items()}
        if len(counts) != 1 or self.is_context:
            return ""
        done, planned = counts.pop()
        return f"{done} of {planned} seeds" if 0 < done < planned else ""

    def flags(self) -> str:
        """What a reader must know before comparing the row with anything."""
        marks = ["*"] if self.is_context else []
        records = self.all()
        if self.is_altered:
            marks.append("(altered)")
        if self.seeds_missing():
            marks.append(f"({self.seeds_missing()})")
        if any(record["provenance"]["data"]["subset"] for record in records):
            marks.append("(subset)")
        if any(record["selection"] == "best_reported" for record in records):
            marks.append("(best reported)")
        return "".join(f" {flag}" for flag in marks)

    def all(self) -> list[Record]:
        return [record for records in self.records.values() for record in records]

    def any(self) -> list[Record]:
        """Of runs that are done, or where none is, of those that failed."""
        return self.all() or [record for records in self.failed.values() for record in records]


def row_label(record: Record) -> str:
    """lora@r8; a random backbone is said first."""
    name = method_label(record["method"], record["variant"])
    return f"random + {name}" if record["settings"]["model"]["init"] == "random" else name


def build_table(
    suite: str, protocol: str, rows: list[Row], *, item: Item | None = None, bootstrap: Bootstrap | None = None, extra: Sequence[str] = ()
) -> Table:
    """The table of a suite, or of an item, under a protocol, from rows of done records.

    Args:
        redrawn: where the answers of the runs are; without it no row is marked as the best.
        extra: further notes.
    """
    item = item_of(suite, protocol) if item is None else item
    is_comparable = item.is_comparable(protocol)
    table = Table(
        item.name if protocol == "pocket" else f"{item.name}-{protocol}",
        f"{item.title}: {SUITES[suite]}, protocol {protocol}",
        [f"{item.title} ({protocol})", "#Param", *item.titles],
    )
    places: dict[int, int] = {}  # number of a row -> its line
    reasons: list[str] = []
    for number, row in enumerate(rows):
        places[number] = len(table.rows)
        table.rows.append(_cells(row, item))
        _open_cells(table, row, item)
        if is_comparable:
            published = _published(item, row)
            if published:
                reason = REASONS.get((published.paper, published.table, published.name))
                reasons += [f"#Param of {row.label}: {reason}"] if reason else []
                table.rows += _beside(row, published, item, is_comparable=_is_comparable(row))
                if _is_comparable(row) and not _average_follows(published, item):
                    reasons.append(
                        f"Avg of {row.label}: the printed one does not follow from the printed cells (make audit); nothing is taken from it"
                    )
    majority = _majority(rows, item)
    if majority:
        table.rows.append(majority)
    table.notes = _notes(rows, [] if item.no_published_values else load_rows(item.paper, item.table), item, is_comparable)
    if not is_comparable and not item.no_published_values:
        table.context = _context(rows, load_rows(item.paper, item.table), item)
        table.notes += [f"published: {item.printed_model} on other data, for context only"] if table.context else []
    table.notes += reasons
    if item.no_published_values:
        table.notes.append(f"published: {item.no_published_values}")
    if bootstrap is not None:
        table.notes += _mark_best(table, rows, places, item, bootstrap)
    table.notes += extra
    return table


def _open_cells(table: Table, row: Row, item: Item) -> None:
    """Which runs stand behind each cell of the line that was added last."""
    line = len(table.rows) - 1
    averages = len(table.columns) - 2 - len(item.columns) - len(item.extra_columns)
    for number, column in enumerate(item.all_columns):
        place = 2 + number + (averages if number >= len(item.columns) else 0)
        records = row.all() if column.task is None else [*row.records.get(column.task, []), *row.failed.get(column.task, [])]
        if records:
            table.sources[line, place] = [record["key"] for record in records]
    if averages and row.all():
        table.sources[line, 1 + len(item.columns) + averages] = [record["key"] for record in row.all()]


def _mark_best(table: Table, rows: list[Row], places: dict[int, int], item: Item, bootstrap: Bootstrap) -> list[str]:
    """Bold and underline, where the order holds."""
    ranked = [number for number, row in enumerate(rows) if row.is_ranked]
    if len(ranked) < 2 or not item.columns:
        return []
    places_of: list[tuple[int, Callable[[Row], float | None], Callable[[Row, Row], Difference | None]]] = [
        (2 + number, functools.partial(_mean_of, column=column), functools.partial(_column_gap, bootstrap, column))
        for number, column in enumerate(item.columns)
    ]
    if item.has_average:
        gap_of = functools.partial(_average_gap, bootstrap, item)
        places_of.append((2 + len(item.columns) + len(item.groups), lambda row: averages_of(row, item)[-1], gap_of))
    for place, mean_of, gap_of in places_of:
        known = [(mean, n) for n in ranked if (mean := mean_of(rows[n])) is not None]
        order = [n for _, n in sorted(known, key=lambda pair: -pair[0])]
        for rank, flag in ((0, "best"), (1, "second")):
            below = order[rank + 1 :]
            gaps = (gap_of(rows[order[rank]], rows[n]) for n in below)
            # From every row, not from the next alone: one that varies much may lie lower and still be as good.
            if not below or not all(gap is not None and gap.is_above for gap in gaps):
                break
            table.highlights[places[order[rank]], place] = flag
    return [
        "bold: best, underlined: second, where the 95% intervals of its differences from all rows below it (over seeds and items) lie above 0, "
        f"never with one seed; {table.name}-paired has the differences from one row"
    ]


def _mean_of(row: Row, column: Column) -> float | None:
    values = scores_of(row, column)
    return statistics.fmean(values) if values else None


def _column_gap(bootstrap: Bootstrap, column: Column, ours: Row, theirs: Row) -> Difference | None:
    return bootstrap.column_difference(column, *(row.records.get(column.task or "", []) for row in (ours, theirs)))


def _average_gap(bootstrap: Bootstrap, item: Item, ours: Row, theirs: Row) -> Difference | None:
    return bootstrap.average_difference(item, ours.records, theirs.records)


def build_paired(table_name: str, rows: list[Row], item: Item, bootstrap: Bootstrap) -> Table | None:
    """Every row against the best average among those of the most runs (without one: the best mean of the columns that all rows have, or else
    the first row): mean difference and 95% interval, column by column. Rows on a subset of the data are among them, as they are on the same."""
    if not item.columns:
        return None
    ranked = [row for row in rows if row.is_compared]
    averages = {row.label: average for row in ranked if (average := (averages_of(row, item) or [None])[-1]) is not None}
    common = [column for column in item.columns if all(row.records.get(column.task or "") for row in ranked)]
    if not averages and item.has_average and common:
        averages = {row.label: statistics.fmean(mean for column in common if (mean := _mean_of(row, column)) is not None) for row in ranked}
    # A row of fewer seeds would take the others' from them.
    runs = {row.label: sum(len(row.records.get(column.task or "", [])) for column in item.columns) for row in ranked}
    complete = [row for row in ranked if row.label in averages and runs[row.label] == max(runs[label] for label in averages)]
    first = max(complete, key=lambda row: averages[row.label], default=next(iter(ranked), None))
    if first is None or len(ranked) < 2:
        return None
    titles = [*(column.title for column in item.columns), *(["Avg"] if item.has_average else [])]
    less = f"minus {first.label}"
    # The first column says it too: a CSV has no title.
    table = Table(f"{table_name}-paired", f"{item.title}: each row {less}", [less, *titles, "won/lost", "sign p"])
    alone = False
    for row in ranked:
        if row is first:
            continue
        found = [_column_gap(bootstrap, column, row, first) for column in item.columns]
        if item.has_average:
            found.append(_average_gap(bootstrap, item, row, first))
        won, lost = _won_and_lost(row, first, item)
        chance = "-" if item.suite in DECODER_SUITES else f"{sign_test(won, lost):.2g}"
        table.rows.append([row.label, *map(_spell, found), f"{won}/{lost}", chance])
        alone = alone or any(gap is not None and gap.seeds == 1 for gap in found)
    table.notes = [
        "mean difference and 95% interval on the seeds that both have (Student's, from the differences seed by seed and items drawn again 1000 times); "
        "where it holds 0, no order is claimed; nothing allows for the number of rows",
        "won/lost: pairs of task and seed in which the row scored higher or lower; sign p: two-sided probability of so uneven a split",
    ]
    if alone:
        table.notes.append("where both have one seed alone, the interval is of the items alone and claims no order")
    if item.suite in DECODER_SUITES:
        table.notes.append("sign p: -, since the tasks of a seed share one training")
    if any("-" in row[1 : 1 + len(titles)] for row in table.rows):
        table.notes.append(
            "-: the rows share no seed, differ in items, data or weights, their answers are not kept or not told apart (MMLU's groups), or the score "
            "is no mean over items"
        )
    if any(not row.is_ranked for row in ranked):
        table.notes.append("subsets of the official data")
    return table


def _spell(gap: Difference | None) -> str:
    return "-" if gap is None else f"{gap.mean:+.1f} ({gap.low:+.1f}, {gap.high:+.1f})"


def _won_and_lost(ours: Row, theirs: Row, item: Item) -> tuple[int, int]:
    """By one column of each task, its primary one where it is shown: several columns of one run are not several pairs."""
    won = lost = 0
    for task in dict.fromkeys(column.task for column in item.columns if column.task in ours.records):
        records = ours.records[task]
        columns = [column for column in item.columns if column.task == task]
        column = next((c for c in columns if records and c.metric in (None, records[0]["primary"])), columns[0])
        other = {record["seed"]: column.value(record) for record in theirs.records.get(task, [])}
        for record in records:
            if record["seed"] in other:
                won += column.value(record) > other[record["seed"]]
                lost += column.value(record) < other[record["seed"]]
    return won, lost


def scores_of(row: Row, column: Column) -> list[float]:
    """What the seeds of a row scored in a column, or what its trainings cost."""
    if column.task is None:
        costs: dict[str, float] = {}
        # Of tasks that share a training, the one that did it knows what it cost.
        for training, record in group_by_training(row.all()):
            if (value := column.value(record)) is not None:
                costs.setdefault(training, value)
        return list(costs.values())
    return [column.value(record) for record in row.records.get(column.task, [])]


def _cell(row: Row, column: Column) -> str:
    values = scores_of(row, column)
    failed = row.failed.get(column.task or "", [])
    if not values:
        return failed[-1]["status"] if failed else "-"
    mean = statistics.fmean(values)
    if column.task is None:
        return f"{mean:{column.spelling}}"
    text = f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ±{statistics.stdev(values):.1f}"
    planned = row.planned.get(column.task, 0)
    if failed and not row.is_context:  # a mean of those that did not diverge is not the mean
        lost = "".join(f", {count} {status}" for status, count in Counter(record["status"] for record in failed).items())
        return f"{text} [{len(values)} of {max(planned, len(values) + len(failed))}{lost}]"
    # Where all cells lack the same seeds, the row says so once.
    return text if row.is_context or row.seeds_missing() or len(values) >= planned else f"{text} [{len(values)} of {planned}]"


def averages_of(row: Row, item: Item) -> list[float | None]:
    """Group means and the average of a row; None where a task is missing."""
    return item.averages([statistics.fmean(values) if (values := scores_of(row, column)) else None for column in item.columns])


def _cells(row: Row, item: Item) -> list[str]:
    counts = {record["params"]["trainable"] for record in row.any()}
    params = f"{counts.pop():,}" if len(counts) == 1 else "differs" if counts else "-"
    averages = ["-" if average is None else f"{average:.1f}" for average in averages_of(row, item)]
    cells = [[_cell(row, column) for column in columns] for columns in (item.columns, item.extra_columns)]
    return [row.label + row.flags(), params, *cells[0], *averages, *cells[1]]


def _published(item: Item, row: Row) -> PublishedRow | None:
    if not row.any() or item.no_published_values:
        return None
    record = row.any()[0]
    # The published counts of oft are those of full blocks; the row of the same block size stands beside ours with that reason.
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


def _is_comparable(row: Row) -> bool:
    """Only the paper's model, rows and rules may be subtracted from the paper's figures."""
    return row.is_ranked and all(record["model"] in PAPER_MODELS[record["suite"]] for record in row.all())


def _number(value: Any) -> str:
    """As printed, with at least two places, so that the figures of a column stand alike."""
    if isinstance(value, float | int):
        places = -Decimal(repr(round(float(value), 6))).as_tuple().exponent
        return f"{value:.{max(2, places)}f}"
    return "-" if value is None else str(value).upper()


def _beside(row: Row, published: PublishedRow, item: Item, *, is_comparable: bool) -> list[list[str]]:
    printed_row = ["  published", published.params or "", *_printed(published, item)]
    if not is_comparable:
        return [printed_row]
    differences = []
    for column in item.columns:
        values, printed = scores_of(row, column), published.printed(column.printed)
        is_number = values and isinstance(printed, float | int)
        differences.append(f"{statistics.fmean(values) - printed:+.1f}" if is_number else "-")
    averages = printed_averages(published, item)
    if not _average_follows(published, item):
        averages[-1] = None
    for ours, printed in zip(averages_of(row, item), averages, strict=True):
        differences.append("-" if ours is None or printed is None else f"{ours - printed:+.1f}")
    return [printed_row, *([["  difference", "", *differences, *("" for _ in item.extra_columns)]] if differences else [])]


def printed_averages(published: PublishedRow, item: Item) -> list[float | None]:
    """The printed average; group means, which are not printed, from the printed cells."""
    if not item.has_average:
        return []
    printed = published.printed("average") if published.average is None else published.average
    return [*(None if mean is None else round(mean, 2) for mean in _averages_of_cells(published, item)[:-1]), printed]


def _averages_of_cells(published: PublishedRow, item: Item) -> list[float | None]:
    cells = (published.printed(column.printed) for column in item.columns)
    return item.averages([v if isinstance(v, float | int) else None for v in cells])


def _average_follows(published: PublishedRow, item: Item) -> bool:
    """Whether the printed average is that of the printed cells by the table's rule; else nothing can be compared with it."""
    printed, own = (averages[-1:] for averages in (printed_averages(published, item), _averages_of_cells(published, item)))
    known = [value for value in (*printed, *own) if isinstance(value, float | int)]
    return len(known) < 2 or abs(known[0] - known[1]) <= ROUNDED


def _printed(published: PublishedRow, item: Item) -> list[str]:
    cells, extra_columns = ([_number(published.printed(c.printed)) for c in columns] for columns in (item.columns, item.extra_columns))
    return [*cells, *(_number(average) for average in printed_averages(published, item)), *extra_columns]


def _majority(rows: list[Row], item: Item) -> list[str] | None:
    values: list[float | None] = []
    for column in item.all_columns:
        records = [record for row in rows for record in row.records.get(column.task or "", [])]
        values.append(column.value(records[0], "majority_baseline") if records else None)
    if all(value is None for value in values):
        return None
    cells = ["-" if value is None else f"{value:.1f}" for value in values]
    middle, end = ["-" for _ in item.averages([None] * len(item.columns))], len(item.columns)
    return ["majority class", "0", *cells[:end], *middle, *cells[end:]]


def _notes(rows: list[Row], published: list[PublishedRow], item: Item, is_comparable: bool) -> list[str]:
    records = [record for row in rows for record in row.all()]
    if not records:
        return ["no run is done yet"]
    own = [record for row in rows if not row.is_context for record in row.all()] or records
    seeds = sorted({record["seed"] for record in own})
    parts = ", ".join(sorted({PART[r["settings"]["eval_scheme"]] for r in own}))
    rules = ", ".join(sorted({RULE[r["selection"]] for r in own}))
    spread = ", ± standard deviation over seeds" if len(seeds) > 1 else ""
    what = f"{parts}; {rules}" if item.columns else rules  # costs are of no part
    notes = [f"n = {len(seeds)} seed{'s' if len(seeds) > 1 else ''}{spread}; {what}; #Param without the head"]
    if SETUP in item.extra_columns:
        notes.append("start s: weights, rows and the decomposition; printed: the decomposition alone")
    if any(row.is_context for row in rows):
        context = sorted({record["seed"] for row in rows if row.is_context for record in row.all()})
        notes.append(f"* from results/measured (committed records, n = {len(context)}), for comparison")
    if any(row.is_altered for row in rows):
        notes.append("(altered): settings were changed on the command line; the row is not the protocol's")
    if is_comparable:
        notes += [note for method, note in COUNT_NOTES.items() if any(record["method"] == method for record in own)]
    if not is_comparable:
        for method in dict.fromkeys(record["method"] for record in own):
            printed = [p for p in published if p.method == method]
            for row in printed:
                cells = _printed(row, item)
                shown = "  ".join(
                    [*cells[: len(item.columns)], *(cells[-len(item.extra_columns) :] if item.extra_columns and row.values else [])]
                )
                averages = printed_averages(row, item)
                average = f" | {_number(averages[-1])}" if averages else ""
                notes.append(
                    f"published {_published_name(row, len(printed))} ({item.printed_model}, other data; context only): {shown}{average}"
                )
    subsets = [r for r in own if r["provenance"]["data"]["subset"]]
    if subsets:
        shown = "; ".join(f"{r['task']} {r['provenance']['data']['rows']}" for r in _one_per_task(subsets))
        notes.append(f"subset: rows differ from the official splits, not comparable with published figures: {shown}")
    data_fixes = {(r["task"], what, count) for r in own for what, count in r["provenance"]["data"].get("data_fixes", {}).items()}
    notes += [f"data of {task}: {count} {what}" for task, what, count in sorted(data_fixes)]
    sources = {source for row in rows if not row.is_context for source in row.sources} or {
        r["settings"]["method"]["lr_source"] for r in own
    }
    notes.append(f"learning rates: {'; '.join(sorted(sources))}")
    left_out = sum(row.left_out for row in rows)
    if left_out:
        notes.append(f"warning: left out {left_out} run{'s' if left_out > 1 else ''} on other data or weights than the newest of their row")
    others = sum(row.others for row in rows)
    if others:
        notes.append(
            f"warning: not shown {others} run{'s' if others > 1 else ''} with the same settings on other data, weights or number of processes; the "
            "newest is shown, or the one on the data of DATA="
        )
    return [*notes, *_origin_notes(own)]


def _origin_notes(records: list[Record]) -> list[str]:
    """Warnings if numbers of one table were made with different code, packages or hardware."""
    made_by = [part for r in records for part in (r["provenance"], r["provenance"].get("training", {}).get("by", {})) if "commit" in part]
    notes = []
    commits = {part["commit"] for part in made_by}
    if len(commits) > 1:
        notes.append(f"warning: these numbers come from {len(commits)} commits of the code")
    if any(part.get("dirty") for part in made_by):
        notes.append("warning: some numbers come from uncommitted code (dirty)")
    stale = sum(part.get("code", code_checksum()) != code_checksum() for part in made_by)
    if stale:
        notes.append(f"warning: {stale} of {len(made_by)} runs were made with other code than the present one; delete them to run again")
    versions: dict[str, set[str]] = {}
    for part in made_by:
        for name, version in part.get("packages", {}).items():
            if name != "qgoft":
                versions.setdefault(name, set()).add(version)
    mixed = [f"{name} {', '.join(sorted(found))}" for name, found in sorted(versions.items()) if len(found) > 1]
    if mixed:
        notes.append(f"warning: these numbers come from different versions of packages: {'; '.join(mixed)}")
    for name, text in (("device", "devices"), ("threads", "numbers of threads, which changes the last bits")):
        found = sorted({str(part["hardware"].get(name)) for part in made_by if "hardware" in part})
        if len(found) > 1:
            notes.append(f"warning: these numbers come from different {text}: {', '.join(found)}")
    return notes


def _context(rows: list[Row], published: list[PublishedRow], item: Item) -> list[list[str]]:
    """Return the printed figures of the methods of the rows, as rows of the table."""
    found = []
    for method in dict.fromkeys(record["method"] for row in rows if not row.is_context for record in row.all()):
        printed = [row for row in published if row.method == method]
        found += [[f"published {_published_name(row, len(printed))}", row.params or "-", *_printed(row, item)] for row in printed]
    return found


def _published_name(row: PublishedRow, alike: int) -> str:
    """The method, and what tells its rows apart where the paper prints several."""
    if alike == 1:
        return row.method
    penalty = "" if row.penalty is None else f", penalty {row.penalty:g}"
    return f"{method_label(row.method, row.variant or row.method)}{'' if row.targets is None else f', {row.targets}'}{penalty}"


def _one_per_task(records: Iterable[Record]) -> list[Record]:
    return list({record["task"]: record for record in records}.values())
