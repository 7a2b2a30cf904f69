"""Paired comparison of table rows over seeds and items.

Items are resampled with replacement, with the same draws for all rows, so that what two rows share cancels in their difference. Seeds are too
few for a bootstrap (the interval of three would be their range, which covers the mean three times in four), so their part is Student's t of the
differences per seed. An interval that contains 0, or one of a single seed, does not establish an order.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qgoft.config.suites import suite_info
from qgoft.records import Record, RunFiles, base_model
from qgoft.report.answers import Answers, Array, ItemScore, LineFilter, item_score, read_answers
from qgoft.report.items import Column, Item

NUM_DRAWS = 1000
# Coverage of the intervals.
COVERAGE = 0.95


@dataclass(frozen=True)
class BootstrapSample:
    """A cell of a table under resampled items.

    Attributes:
        comparison_key: must be equal in two cells to compare them.
        scores: [1 + draws, seeds]; the first row is the measured score.
    """

    comparison_key: Any
    scores: Array


@dataclass(frozen=True)
class Difference:
    """Mean difference of two rows with its interval, in the unit of the scores. With one seed the interval is that of the items only."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def is_significantly_higher(self) -> bool:
        """Return True if the first row is significantly higher."""
        return self.seeds > 1 and self.low > 0


def sign_test(won: int, lost: int) -> float:
    """Return the two-sided p-value of a split into won and lost pairs; ties are not counted."""
    n, fewer = won + lost, min(won, lost)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


# Scores of resampled items: weights [draws, items], predictions and labels [items, runs] -> [draws, runs]. The product is computed in float32,
# which is twice as fast and moves a score by less than 1e-3 percent.


def _weighted_mean(weights: Array, values: Array) -> Array:
    """Return the means over the items; the weights of a draw sum to the number of items."""
    return np.asarray(weights @ values.astype(np.float32) / weights.shape[1])


def _accuracy(weights: Array, predictions: Array, labels: Array) -> Array:
    return 100 * _weighted_mean(weights, predictions == labels)


def _matthews(weights: Array, predictions: Array, labels: Array) -> Array:
    p, r = predictions == 1, labels == 1
    tp, fp, fn, tn = (_weighted_mean(weights, which) for which in (p & r, p & ~r, ~p & r, ~p & ~r))
    denominator = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.asarray(100 * np.divide(tp * tn - fp * fn, denominator, out=np.zeros_like(denominator), where=denominator > 0))


def _f1(weights: Array, predictions: Array, labels: Array) -> Array:
    p, r = predictions == 1, labels == 1
    tp, wrong = _weighted_mean(weights, p & r), _weighted_mean(weights, p ^ r)
    return np.asarray(100 * 2 * tp / np.maximum(2 * tp + wrong, 1e-12))


def _pearson(weights: Array, x: Array, y: Array) -> Array:
    # Values are standardised, so that float32 is sufficient.
    x, y = ((v - v.mean(0)) / np.maximum(v.std(0), 1e-12) for v in (x, y))
    mean_x, mean_y = _weighted_mean(weights, x), _weighted_mean(weights, y)
    covariance = _weighted_mean(weights, x * y) - mean_x * mean_y
    spread = (_weighted_mean(weights, x * x) - mean_x**2) * (_weighted_mean(weights, y * y) - mean_y**2)
    return np.asarray(100 * covariance / np.sqrt(np.maximum(spread, 1e-12)))


def _pearson_spearman(weights: Array, x: Array, y: Array) -> Array:
    # The ranks are computed once over all items, as an approximation.
    return np.asarray((_pearson(weights, x, y) + _pearson(weights, _ranks(x), _ranks(y))) / 2)


def _ranks(values: Array) -> Array:
    """Return the ranks in each column, from 1; equal values share their mean rank."""
    return np.stack([_ranks_of(column) for column in values.T], 1)


def _ranks_of(column: Array) -> Array:
    _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def _mean(weights: Array, predictions: Array, labels: Array) -> Array:
    return _weighted_mean(weights, predictions)


SCORES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "accuracy": _accuracy,
    "accuracy_matched": _accuracy,
    "accuracy_mismatched": _accuracy,
    "matthews": _matthews,
    "f1": _f1,
    "pearson": _pearson,
    "pearson_spearman": _pearson_spearman,
    "score": _mean,
    "mmlu5_avg": _accuracy,
    "mmlu0_avg": _accuracy,
}
# Metric over some of a run's items -> filter of their lines.
ITEMS_OF: dict[str, LineFilter] = {
    "mmlu5_avg": ("items", "5-"),
    "mmlu0_avg": ("items", "0-"),
    "accuracy_matched": ("sets", "matched"),
    "accuracy_mismatched": ("sets", "mismatched"),
}


class Bootstrap:
    """Scores of table rows under resampled items, and the differences of rows.

    Args:
        files: key of a record -> its answers.
    """

    def __init__(self, files: Mapping[str, RunFiles]):
        self.files = files
        self._weights: dict[str, Array] = {}
        self._answers: dict[tuple[str, ItemScore | None, LineFilter | None], Answers | None] = {}
        self._scores: dict[tuple[str, tuple[str, ...]], tuple[str, Array] | None] = {}

    def cell(self, column: Column, records: Sequence[Record]) -> BootstrapSample | None:
        """Return the sample of one cell, or None without comparable answers.

        Two cells are comparable if they have the same seeds, items, training and test rows (a subset is compared with the same subset only)
        and pretrained weights.
        """
        if column.task is None or not records:
            return None
        records = sorted(records, key=lambda record: int(record["seed"]))
        seeds = tuple(record["seed"] for record in records)
        metric = column.metric or records[0]["primary"]
        place = (metric, tuple(record["key"] for record in records))
        if place not in self._scores:
            self._scores[place] = self._resampled_scores(records, metric)
        sample = self._scores[place]
        if sample is None or len(set(seeds)) < len(seeds):
            return None
        items, by_seed = sample
        rows = [record["provenance"]["data"] for record in records]
        made_from = [(made["fingerprint"], made["rows"], base_model(record)) for record, made in zip(records, rows, strict=True)]
        return BootstrapSample((seeds, items, made_from), by_seed)

    def column_difference(self, column: Column, ours: Sequence[Record], theirs: Sequence[Record]) -> Difference | None:
        """Return the difference of two cells on their common seeds, or None if they are not comparable."""
        return difference(*(self.cell(column, records) for records in _common_seeds(ours, theirs)))

    def average_difference(
        self, item: Item, ours: Mapping[str, Sequence[Record]], theirs: Mapping[str, Sequence[Record]]
    ) -> Difference | None:
        """Return the difference of two averages, by the item's rule, on the common seeds of each task.

        Tasks are trained separately, so their variances add up. Those of decoders share one training, so their seeds count once.
        """
        if not item.has_average:
            return None
        weights, gaps, seeds = item.weights, [], set()
        for column in item.columns:
            one, other = (self.cell(column, some) for some in _common_seeds(*(row.get(column.task or "", []) for row in (ours, theirs))))
            gap = _gap(one, other)
            if one is None or gap is None:
                return None
            gaps.append(weights[column.printed] * gap)
            seeds.add(one.comparison_key[0])
        if suite_info(item.suite).is_decoder:
            return interval([np.sum(gaps, 0)]) if len(seeds) == 1 else None
        return interval(gaps)

    def _resampled_scores(self, records: Sequence[Record], metric: str) -> tuple[str, Array] | None:
        """Return the checksums of the answered items, one per seed, and the scores [1 + draws, seeds].

        Seeds may have different items (`seeded_halves`), but equally many; two rows are compared only if they agree seed by seed.
        """
        scored = item_score(records[0], metric)
        score = SCORES.get(metric) if scored is None else _mean
        if score is None or any(record["metrics"].get(metric, {}).get("value") is None for record in records):
            return None
        found = [self._read(record["key"], scored, ITEMS_OF.get(metric)) for record in records]
        answers = [one for one in found if one is not None and len(one.labels) == records[0]["metrics"][metric]["n"]]
        if len(answers) < len(records) or len({len(one.labels) for one in answers}) > 1:
            return None
        predictions, labels = (np.stack([getattr(one, name) for one in answers], 1) for name in ("predictions", "labels"))
        items = " ".join(one.items for one in answers)
        test_set = f"{records[0]['suite']}/{records[0]['task']} {items}"
        return items, score(self._draw_weights(test_set, len(labels)), predictions, labels)

    def _read(self, key: str, scored: ItemScore | None, keep: LineFilter | None) -> Answers | None:
        place = (key, scored, keep)
        if place not in self._answers:
            self._answers[place] = read_answers(self.files[key], scored, keep) if key in self.files else None
        return self._answers[place]

    def _draw_weights(self, test_set: str, count: int) -> Array:
        """Return how often each draw contains each item, the same for all rows on this test set. The first draw contains every item once. Other
        test sets have other draws: equal ones would correlate the scores of independent test sets of the same size.
        """
        if test_set not in self._weights:
            seed = int.from_bytes(hashlib.sha256(test_set.encode()).digest()[:8])
            chosen = np.random.default_rng(seed).integers(count, size=(NUM_DRAWS, count)) + count * np.arange(NUM_DRAWS)[:, None]
            draws = np.bincount(chosen.ravel(), minlength=NUM_DRAWS * count).reshape(NUM_DRAWS, count)
            self._weights[test_set] = np.concatenate((np.ones((1, count)), draws)).astype(np.float32)
        return self._weights[test_set]


def _common_seeds(ours: Sequence[Record], theirs: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    seeds = {record["seed"] for record in ours} & {record["seed"] for record in theirs}
    first, second = ([record for record in records if record["seed"] in seeds] for records in (ours, theirs))
    return first, second


def difference(ours: BootstrapSample | None, theirs: BootstrapSample | None) -> Difference | None:
    """Return the difference of two cells, or None if they are not comparable."""
    gap = _gap(ours, theirs)
    return None if gap is None else interval([gap])


def _gap(ours: BootstrapSample | None, theirs: BootstrapSample | None) -> Array | None:
    return None if ours is None or theirs is None or ours.comparison_key != theirs.comparison_key else ours.scores - theirs.scores


def interval(parts: Sequence[Array]) -> Difference:
    """Return the mean and interval of a sum of independent parts [1 + draws, seeds].

    The half-widths of seeds (Student's t, with Satterthwaite's degrees of freedom for several parts) and of items are combined in quadrature.
    A single t interval would be too narrow if two seeds happen to agree.
    """
    mean, seed_variance, item_variance, denominator = 0.0, 0.0, 0.0, 0.0
    for part in parts:
        seeds = part.shape[1]
        variance = float(part[0].var(ddof=1)) / seeds if seeds > 1 else 0.0
        mean += float(part[0].mean())
        seed_variance += variance
        denominator += variance**2 / max(seeds - 1, 1)
        item_variance += float(part[1:].mean(1).var(ddof=1))
    width = math.sqrt(
        _student(seed_variance**2 / denominator if denominator else 1) ** 2 * seed_variance + _student(math.inf) ** 2 * item_variance
    )
    return Difference(mean, mean - width, mean + width, min(part.shape[1] for part in parts))


def _student(df: float) -> float:
    """Return the quantile of Student's t for intervals of COVERAGE."""
    from scipy.special import stdtrit  # slow to import, and needed only to compare rows

    return float(stdtrit(min(df, 1e6), (1 + COVERAGE) / 2))
