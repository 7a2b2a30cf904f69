"""Figure 3 of GOFT as a table: one method against each other one on the questions of Vicuna-Eval, and the mean rating of each category."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qgoft.judge.ratings import bootstrap_interval, paired_interval, win_tie_loss
from qgoft.records import Record, RunFiles
from qgoft.report.names import display_label
from qgoft.report.published import load_figures
from qgoft.report.row import row_label
from qgoft.report.table import Table

Ratings = dict[tuple[int, Any], float]  # (seed, question) -> rating


class RatedRow(NamedTuple):
    """The ratings of a row, the category of each question, and the keys of its records."""

    ratings: Ratings
    categories: dict[Any, str]
    keys: list[str]


Rated = dict[str, RatedRow]  # by the label of the row


def read_ratings(files: Mapping[str, RunFiles], records: Sequence[Record]) -> Rated:
    """Return row label -> its ratings over all seeds. Records without answers are left out.

    Args:
        files: key of a record -> its answers.
    """
    found: Rated = {}
    for record in records:
        answers = files[record["key"]].answers() if record["key"] in files else None
        if answers is None:
            continue
        row = found.setdefault(row_label(record), RatedRow({}, {}, []))
        row.keys.append(record["key"])
        for question, rating, category in zip(answers.items, answers.predictions, answers.labels, strict=True):
            row.ratings[record["seed"], question] = rating
            row.categories[question] = category
    return found


def build_win_rates(rated: Rated, protocol: str) -> Table | None:
    """Compare the first row with each other one by the mean rating of a question over the common seeds; None if there is no other."""
    if len(rated) < 2:
        return None
    (first, (ours, _, our_keys)), *others = rated.items()
    title = f"{display_label(first)} against each, on the questions both answered, protocol {protocol}"
    table = Table(f"figure3-{protocol}", title, ["against", "won", "tie", "lost", "mean difference", "95% interval"], has_methods=True)
    for label, (theirs, _, keys) in others:
        first_means, means = (
            _by_question({key: ratings[key] for key in ratings if key in ours and key in theirs}) for ratings in (ours, theirs)
        )
        counts = win_tie_loss(first_means, means)
        if not sum(counts):
            continue
        low, high = paired_interval(first_means, means)
        difference = statistics.fmean(first_means[question] - means[question] for question in means)
        cells = [label, *map(str, counts), f"{difference:+.2f}", f"{low:+.2f} to {high:+.2f}"]
        table.add_row(cells, [*our_keys, *keys])
    table.notes.append("interval: bootstrap over questions, 2000 draws; other seeds are not in it")
    if any(len({seed for seed, _ in ratings}) > 1 for ratings, *_ in rated.values()):
        table.notes.append("won, tie, lost: by a question's mean rating over seeds, so that ties are rarer than in one run")
    if first == "goft":
        printed = load_figures("goft-icml2024", "figure3")["rows"]
        shown = "; ".join(f"{name} {'/'.join(map(str, row['values']))}" for name, row in printed.items())
        note = "published" if protocol == "goft_icml24" else "published (LLaMA-2-7B, context only)"
        table.notes.append(f"{note}, won/tie/lost: {shown}")
    return table


def _by_question(ratings: Ratings) -> dict[Any, float]:
    """Return the mean rating of each question: answers of several seeds to one question are not independent."""
    found: dict[Any, list[float]] = {}
    for (_, question), rating in ratings.items():
        found.setdefault(question, []).append(rating)
    return {question: statistics.fmean(values) for question, values in found.items()}


def build_categories(rated: Rated, protocol: str) -> Table:
    """Return the mean rating of each category, and over all questions with its interval."""
    names = list(dict.fromkeys(category for row in rated.values() for category in row.categories.values()))
    title = f"Vicuna-Eval by category, ratings from 1 to 10, protocol {protocol}"
    table = Table(f"vicuna-{protocol}", title, ["", *names, "all", "95% interval"], has_methods=True)
    for label, (ratings, categories, keys) in rated.items():
        by_category = {name: [rating for (_, question), rating in ratings.items() if categories[question] == name] for name in names}
        cells = [f"{statistics.fmean(values):.2f}" if values else "-" for values in by_category.values()]
        low, high = bootstrap_interval(list(_by_question(ratings).values()))
        table.add_row([label, *cells, f"{statistics.fmean(ratings.values()):.2f}", f"{low:.2f} to {high:.2f}"], keys)
    return table
