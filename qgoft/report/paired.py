"""Whether two rows of a table differ, or whether other seeds and other items could have turned them round.

Scores are drawn again: seeds with replacement, and items with replacement, the same items for every row, since all rows answered the same.
What both rows share cancels in the difference. An interval that holds zero claims no order.
"""

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qgoft.report.items import Column, Item, Record

DRAWS = 1000
SHARE = 0.95
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Answers:
    """What one run answered: ids of the items, predictions and labels, in the order of the ids."""

    ids: tuple[Any, ...]
    predictions: list[Any]
    labels: list[Any]


@dataclass(frozen=True)
class Difference:
    """Of one row from another: mean and interval, in the unit of the scores. `holds_zero`: no order is claimed."""

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


def read_answers(folder: Path) -> Answers | None:
    """predictions.jsonl.gz of a run's folder; None where it is missing or torn."""
    try:
        text = gzip.decompress((folder / "predictions.jsonl.gz").read_bytes()).decode()
        # One array is read three times as fast as its lines.
        lines = json.loads("[" + text.strip().replace("\n", ",") + "]")
        found = sorted(((str(line["set"]), str(line["idx"])), line["prediction"], line["label"]) for line in lines)
    except (OSError, ValueError, EOFError, KeyError, TypeError, zlib.error):
        return None
    if not found:
        return None
    return Answers(tuple(key for key, _, _ in found), [p for _, p, _ in found], [label for _, _, label in found])


def sign_test(won: int, lost: int) -> float:
    """Two-sided probability of so uneven a split, were both equally likely; ties are left out."""
    n, fewer = won + lost, min(won, lost)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


# --- scores of drawn items: weights [draws, items] -> [draws] --------------------------------------------------------------------------


def _share_right(weights: Array, predictions: Array, labels: Array) -> Array:
    return np.asarray(100 * (weights @ (predictions == labels)) / weights.sum(1))


def _matthews(weights: Array, predictions: Array, labels: Array) -> Array:
    p, r = predictions == 1, labels == 1
    tp, fp, fn, tn = (weights @ which for which in (p & r, p & ~r, ~p & r, ~p & ~r))
    below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.asarray(100 * np.divide(tp * tn - fp * fn, below, out=np.zeros_like(below), where=below > 0))


def _f1(weights: Array, predictions: Array, labels: Array) -> Array:
    p, r = predictions == 1, labels == 1
    tp, wrong = weights @ (p & r), weights @ (p ^ r)
    return np.asarray(100 * 2 * tp / np.maximum(2 * tp + wrong, 1e-12))


def _pearson(weights: Array, x: Array, y: Array) -> Array:
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    covariance = weights @ (x * y) / total - mean_x * mean_y
    spread = (weights @ (x * x) / total - mean_x**2) * (weights @ (y * y) / total - mean_y**2)
    return np.asarray(100 * covariance / np.sqrt(np.maximum(spread, 1e-24)))


def _pearson_spearman(weights: Array, x: Array, y: Array) -> Array:
    # Ranks are those among all items: they move little in a draw, and the order of rows not at all.
    return np.asarray((_pearson(weights, x, y) + _pearson(weights, _ranks(x), _ranks(y))) / 2)


def _ranks(values: Array) -> Array:
    """From 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def _mean(weights: Array, predictions: Array, labels: Array) -> Array:
    return np.asarray(weights @ predictions / weights.sum(1))


SCORES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "accuracy": _share_right,
    "matthews": _matthews,
    "f1": _f1,
    "pearson_spearman": _pearson_spearman,
    "score": _mean,
}
NUMERIC = ("pearson_spearman", "score")


class Redrawn:
    """Scores of table rows under redrawn seeds and items.

    Args:
        folders: key of a record -> its folder, where the answers are.
    """

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = folders
        self._weights: dict[int, Array] = {}
        self._scores: dict[tuple[str, str], tuple[str, Array] | None] = {}

    def column(self, column: Column, records: Sequence[Record]) -> tuple[Any, Array] | None:
        """What must agree for two rows to be compared (seeds and items), and the means of one cell: as measured, and drawn [1 + draws]."""
        if column.task is None or not records:
            return None
        records = sorted(records, key=lambda record: int(record["seed"]))
        seeds = tuple(record["seed"] for record in records)
        found = [self._run(record, column.metric or record["primary"]) for record in records]
        if any(run is None for run in found) or len(set(seeds)) < len(seeds):
            return None
        runs = [run for run in found if run is not None]
        if len({items for items, _ in runs}) > 1:
            return None
        by_seed = np.stack([scores for _, scores in runs], 1)
        picks = np.random.default_rng(1).integers(0, len(seeds), (DRAWS + 1, len(seeds)))
        picks[0] = np.arange(len(seeds))
        return (seeds, runs[0][0]), np.take_along_axis(by_seed, picks, 1).mean(1)

    def average(self, item: Item, cells: Mapping[str, Sequence[Record]]) -> tuple[Any, Array] | None:
        """The same for a row's average by the item's own rule, where every column can be drawn."""
        columns = [self.column(column, cells.get(column.task or "", ())) for column in item.columns]
        if not columns or any(found is None for found in columns) or not item.has_average:
            return None
        known = [found for found in columns if found is not None]
        by_name = dict(zip((column.printed for column in item.columns), (values for _, values in known), strict=True))
        groups = item.groups or (("", tuple(by_name)),)
        means = [np.mean([by_name[name] for name in names], 0) for _, names in groups]
        return tuple(same for same, _ in known), np.mean(means, 0)

    def _run(self, record: Record, metric: str) -> tuple[str, Array] | None:
        place = (record["key"], metric)
        if place not in self._scores:
            self._scores[place] = self._draw(record, metric)
        return self._scores[place]

    def _draw(self, record: Record, metric: str) -> tuple[str, Array] | None:
        """A checksum of which items were answered, and the drawn scores."""
        folder = self.folders.get(record["key"])
        is_formula = (record["suite"], record["task"]) == ("math", "math")  # right is more than the same text there
        if metric not in SCORES or folder is None or is_formula or record["metrics"].get(metric, {}).get("value") is None:
            return None
        answers = read_answers(folder)
        if answers is None or len(answers.ids) != record["metrics"][metric]["n"]:
            return None
        if metric in NUMERIC:
            predictions = np.asarray(answers.predictions, float)
            labels = predictions if metric == "score" else np.asarray(answers.labels, float)
        else:
            predictions, labels = _alike(answers)
        items = hashlib.sha256(repr(answers.ids).encode()).hexdigest()
        return items, SCORES[metric](self._drawn(len(predictions)), predictions, labels)

    def _drawn(self, items: int) -> Array:
        """How often each item is drawn; one choice for all rows. The first draw has every item once: it is what was measured."""
        if items not in self._weights:
            draws = np.random.default_rng(0).multinomial(items, np.full(items, 1 / items), DRAWS)
            self._weights[items] = np.concatenate((np.ones((1, items)), draws)).astype(np.float32)
        return self._weights[items]


def _alike(answers: Answers) -> tuple[Array, Array]:
    """Classes as numbers; texts as numbers of their own, an answer that was not given as one that is never right."""
    if all(isinstance(value, int) for value in (*answers.predictions, *answers.labels)):
        return np.asarray(answers.predictions), np.asarray(answers.labels)
    numbers: dict[str, int] = {}
    texts = [[None if v is None else str(v) for v in values] for values in (answers.predictions, answers.labels)]
    predictions, labels = ([-1 if v is None else numbers.setdefault(v, len(numbers)) for v in values] for values in texts)
    return np.asarray(predictions), np.asarray(labels)


def difference(ours: tuple[Any, Array] | None, theirs: tuple[Any, Array] | None) -> Difference | None:
    """Of two drawn scores; None where they are not of the same seeds and items."""
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return None
    drawn = ours[1] - theirs[1]
    low, high = np.quantile(drawn[1:], [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Difference(float(drawn[0]), float(low), float(high))
