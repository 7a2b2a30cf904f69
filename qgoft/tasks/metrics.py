"""Metrics as `evaluate` classes without network access, computed by scikit-learn and scipy. All in percent."""

from collections.abc import Callable, Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def _correlation(function: Callable[..., tuple[float, float]], predictions: np.ndarray, references: np.ndarray) -> float | None:
    """Return a correlation, or None (undefined) if one side is constant."""
    if len(predictions) < 2 or np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return None
    return 100 * float(function(predictions, references)[0])


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "accuracy": lambda p, r: 100 * float(accuracy_score(r, p)),
    "f1": lambda p, r: 100 * float(f1_score(r, p, zero_division=0)),
    "matthews": lambda p, r: 100 * float(matthews_corrcoef(r, p)),
    "pearson": lambda p, r: _correlation(pearsonr, p, r),
    "spearman": lambda p, r: _correlation(spearmanr, p, r),
}


class Scores(evaluate.Metric):
    """Several scores of one set of predictions. `pearson_spearman` is the mean of the two (GLUE's "averaged correlation")."""

    def __init__(self, names: Sequence[str], *, is_regression: bool = False):
        self.names = tuple(names)
        self.number = "float64" if is_regression else "int64"
        super().__init__(keep_in_memory=True, experiment_id="qgoft")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Scores of a GLUE task, in percent.",
            citation="Wang et al. (2019), GLUE",
            inputs_description="predictions and references: class numbers, or scores of a regression",
            features=datasets.Features({"predictions": datasets.Value(self.number), "references": datasets.Value(self.number)}),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float | None]:
        p, r = np.asarray(predictions), np.asarray(references)
        return {name: compute_score(name, p, r) for name in self.names}


def compute_score(name: str, predictions: np.ndarray, references: np.ndarray) -> float | None:
    """Return one score in percent; None if it is undefined."""
    if name == "pearson_spearman":
        pearson, spearman = (SCORES[part](predictions, references) for part in ("pearson", "spearman"))
        return None if pearson is None or spearman is None else (pearson + spearman) / 2
    return SCORES[name](predictions, references)


def standard_error(name: str, predictions: Sequence[float], references: Sequence[float], *, draws: int = 300) -> float | None:
    """Return the standard error of a score over the items, in percentage points: exact for accuracy, otherwise by resampling items (seed
    0).
    """
    p, r = np.asarray(predictions), np.asarray(references)
    if name == "accuracy":
        share = float((p == r).mean())
        return 100 * float(np.sqrt(share * (1 - share) / len(r)))
    rows = np.random.default_rng(0).integers(0, len(r), (draws, len(r)))
    known = _scores_of_draws(name, p, r, rows)
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def _scores_of_draws(name: str, p: np.ndarray, r: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the defined scores of draws of items, as `compute_score` for each: a library call for each draw would take most of an evaluation.

    Args:
        rows: numbers of the items of each draw [draws, items].
    """
    if name in ("f1", "matthews"):
        return _from_counts(name, p, r, rows)
    drawn, given = p[rows].astype(float), r[rows].astype(float)
    is_defined = (np.ptp(drawn, 1) > 0) & (np.ptp(given, 1) > 0) if rows.shape[1] > 1 else np.zeros(len(rows), bool)
    drawn, given = drawn[is_defined], given[is_defined]
    found = [
        _row_correlations(*((rankdata(one, axis=1) for one in (drawn, given)) if part == "spearman" else (drawn, given)))
        for part in name.split("_")
    ]
    return 100 * np.mean(found, axis=0)


def _row_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def _from_counts(name: str, p: np.ndarray, r: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return F1 of class 1, or Matthews' correlation, from the confusion matrix of each draw; 0 if undefined."""
    classes, codes = np.unique(np.concatenate([r, p]), return_inverse=True)
    count = len(classes)
    pairs = codes[: len(r)] * count + codes[len(r) :]
    places = np.arange(len(rows))[:, None] * count**2 + pairs[rows]
    tables = (
        np.bincount(places.ravel(), minlength=len(rows) * count**2).reshape(-1, count, count).astype(float)
    )  # [draw, label, prediction]
    if name == "f1":
        one = int(np.searchsorted(classes, 1))
        if one == count or classes[one] != 1:
            return np.zeros(len(rows))
        hits, total = tables[:, one, one], tables[:, one].sum(1) + tables[:, :, one].sum(1)
        return 200 * np.divide(hits, total, out=np.zeros(len(rows)), where=total > 0)
    labels, predictions, items = tables.sum(2), tables.sum(1), rows.shape[1]
    covariance = np.trace(tables, axis1=1, axis2=2) * items - (labels * predictions).sum(1)
    product = (items**2 - (labels**2).sum(1)) * (items**2 - (predictions**2).sum(1))
    return 100 * np.divide(covariance, np.sqrt(product), out=np.zeros(len(rows)), where=product > 0)


def majority_score(name: str, references: Sequence[float], train_labels: Sequence[float], *, is_regression: bool) -> float | None:
    """Return the score of always predicting the most frequent training label; None for correlations, which are undefined for a constant."""
    if is_regression:
        return None
    labels, counts = np.unique(np.asarray(train_labels), return_counts=True)
    constant = np.full(len(references), labels[counts.argmax()])
    return compute_score(name, constant, np.asarray(references))
