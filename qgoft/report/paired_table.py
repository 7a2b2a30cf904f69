"""Tables of paired differences: every row of an item minus its best row."""

import statistics

from qgoft.config.suites import suite_info
from qgoft.report.items import Item
from qgoft.report.names import display_label
from qgoft.report.row import Row, averages_of, mean_score
from qgoft.report.score_table import average_gap, column_gap
from qgoft.report.significance import Bootstrap, Difference, sign_test
from qgoft.report.table import Table


def build_paired(table_name: str, rows: list[Row], item: Item, bootstrap: Bootstrap) -> Table | None:
    """Return the mean difference and 95% interval of every row from the baseline row, column by column; None with fewer than two rows.

    Rows on a subset of the data are included, since they share it.
    """
    ranked = [row for row in rows if row.is_compared]
    baseline = _baseline(ranked, item)
    if baseline is None or len(ranked) < 2 or not item.columns:
        return None
    is_decoder = suite_info(item.suite).is_decoder
    titles = [*(column.title for column in item.columns), *(["Avg"] if item.has_average else [])]
    less = f"minus {baseline.label}"
    # The first column repeats the title, which a CSV file lacks.
    title = f"{item.title}: each row {display_label(less)}"
    table = Table(f"{table_name}-paired", title, [less, *titles, "won/lost", "sign p"], has_methods=True)
    has_single_seed = False
    for row in ranked:
        if row is baseline:
            continue
        found = [column_gap(bootstrap, column, row, baseline) for column in item.columns]
        if item.has_average:
            found.append(average_gap(bootstrap, item, row, baseline))
        everything = [record["key"] for record in (*row.all(), *baseline.all())]
        for place, title in enumerate(titles, start=1):
            task = None if title == "Avg" else item.columns[place - 1].task
            both = (*row.records.get(task, []), *baseline.records.get(task, [])) if task else ()
            table.sources[len(table.rows), place] = [record["key"] for record in both] or everything
        won, lost = _won_and_lost(row, baseline, item)
        chance = "-" if is_decoder else f"{sign_test(won, lost):.2g}"
        table.rows.append([row.label, *map(_format, found), f"{won}/{lost}", chance])
        has_single_seed = has_single_seed or any(gap is not None and gap.seeds == 1 for gap in found)
    table.notes = [
        "mean difference and 95% interval on the common seeds (Student's t over the differences per seed, and 1000 bootstrap draws of the items); "
        "an interval that contains 0 does not establish an order; no correction for the number of rows",
        "won/lost: pairs of task and seed in which the row scored higher or lower; sign p: two-sided p-value of that split",
    ]
    if has_single_seed:
        table.notes.append("with one common seed the interval covers the items only and does not establish an order")
    if is_decoder:
        table.notes.append("sign p: -, since the tasks of a seed share one training")
    if any("-" in row[1 : 1 + len(titles)] for row in table.rows):
        table.notes.append(
            "-: the rows share no seed, differ in items, data or weights, their answers are missing or not separable (MMLU's groups), or the score "
            "is not a mean over items"
        )
    if any(not row.is_ranked for row in ranked):
        table.notes.append("subsets of the official data")
    return table


def _baseline(ranked: list[Row], item: Item) -> Row | None:
    """Return the row with the best average among those with the most runs.

    Without averages: the best mean of the columns that all rows have, or else the first row.
    """
    averages = {row.label: average for row in ranked if (average := (averages_of(row, item) or [None])[-1]) is not None}
    common = [column for column in item.columns if all(row.records.get(column.task or "") for row in ranked)]
    if not averages and item.has_average and common:
        averages = {
            row.label: statistics.fmean(mean for column in common if (mean := mean_score(row, column)) is not None) for row in ranked
        }
    # Only common seeds are compared, so a baseline with fewer seeds would discard those of the others.
    runs = {row.label: sum(len(row.records.get(column.task or "", [])) for column in item.columns) for row in ranked}
    complete = [row for row in ranked if row.label in averages and runs[row.label] == max(runs[label] for label in averages)]
    return max(complete, key=lambda row: averages[row.label], default=next(iter(ranked), None))


def _format(gap: Difference | None) -> str:
    return "-" if gap is None else f"{gap.mean:+.1f} ({gap.low:+.1f}, {gap.high:+.1f})"


def _won_and_lost(ours: Row, theirs: Row, item: Item) -> tuple[int, int]:
    """Count by one column per task, the primary one if it is shown: several columns of a run are not several pairs."""
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
