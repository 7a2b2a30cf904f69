"""Metrics as `evaluate` classes without network access, computed by scikit-learn and scipy. All in percent."""

from collections.abc import Callable, Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
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
    rng = np.random.default_rng(0)
    values = [compute_score(name, p[rows], r[rows]) for rows in rng.integers(0, len(r), (draws, len(r)))]
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def majority_score(name: str, references: Sequence[float], train_labels: Sequence[float], *, is_regression: bool) -> float | None:
    """Return the score of always predicting the most frequent training label; None for correlations, which are undefined for a constant."""
    if is_regression:
        return None
    labels, counts = np.unique(np.asarray(train_labels), return_counts=True)
    constant = np.full(len(references), labels[counts.argmax()])
    return compute_score(name, constant, np.asarray(references))
