"""Metrics against values computed by hand, in percent."""

import numpy as np
import pytest

from qgoft.config.settings import TaskSettings
from qgoft.tasks.evaluate import Predictions
from qgoft.tasks.glue.suite import combine
from qgoft.tasks.metrics import Scores, majority_score, standard_error

P, R = [1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]


def test_classification_metrics():
    scores = Scores(["accuracy", "f1", "matthews"]).compute(predictions=P, references=R)
    # tp 2, fp 1, tn 2, fn 1
    assert scores["accuracy"] == pytest.approx(100 * 4 / 6)
    assert scores["f1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    assert scores["matthews"] == pytest.approx(100 * (2 * 2 - 1 * 1) / 9)


def test_correlation_metrics():
    scores = Scores(["pearson", "spearman", "pearson_spearman"], is_regression=True).compute(
        predictions=[1.0, 2.0, 3.0, 4.0], references=[1.0, 2.0, 3.0, 40.0]
    )
    x, y = np.array([1, 2, 3, 4.0]), np.array([1, 2, 3, 40.0])
    assert scores["pearson"] == pytest.approx(100 * np.corrcoef(x, y)[0, 1])
    assert scores["spearman"] == pytest.approx(100)
    assert scores["pearson_spearman"] == pytest.approx((scores["pearson"] + 100) / 2)


def test_correlation_of_a_constant():
    assert Scores(["pearson_spearman"], is_regression=True).compute(predictions=[2.0, 2.0, 2.0], references=[1.0, 2.0, 3.0]) == {
        "pearson_spearman": None
    }


def test_standard_errors():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    predictions = np.where(rng.random(400) < 0.8, labels, 1 - labels)
    share = (labels == predictions).mean()
    assert standard_error("accuracy", predictions, labels) == pytest.approx(100 * np.sqrt(share * (1 - share) / 400))
    # A balanced Matthews correlation is about 2 x accuracy - 1, so its error is about twice as large.
    assert standard_error("matthews", predictions, labels) == pytest.approx(2 * standard_error("accuracy", predictions, labels), rel=0.2)


def test_majority_baseline_uses_training_labels():
    assert majority_score("accuracy", [0, 0, 0, 1], [1, 1, 0], is_regression=False) == 25
    assert majority_score("matthews", [0, 0, 0, 1], [1, 1, 0], is_regression=False) == 0
    assert majority_score("pearson_spearman", [0.0, 1.0], [1.0], is_regression=True) is None


def task(**changes):
    facts = {
        "suite": "glue",
        "name": "mnli",
        "version": 1,
        "columns": [],
        "labels": ["a", "b"],
        "metrics": ["accuracy"],
        "primary": "accuracy",
    }
    return TaskSettings(**{**facts, "hub": "", "config": "", "rows": {}, **changes})


def test_metrics_of_two_test_sets():
    outcomes = {
        "matched": Predictions([0, 1], [0, 0], [0, 0], {"accuracy": 100.0}),
        "mismatched": Predictions([0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 1], {"accuracy": 50.0}),
    }
    found = combine(task(), outcomes, [0, 0, 1])
    assert {name: m.value for name, m in found.items()} == {"accuracy_matched": 100.0, "accuracy_mismatched": 50.0, "accuracy": 75.0}
    assert found["accuracy"].n == 6
    assert found["accuracy"].standard_error == pytest.approx(12.5)
    assert found["accuracy"].majority_baseline == pytest.approx((100 + 75) / 2)


def test_metric_of_a_named_test_set():
    """PSOFT's validation halves of MNLI report only mismatched."""
    found = combine(task(primary="accuracy_mismatched"), {"mismatched": Predictions([0, 1], [0, 1], [0, 0], {"accuracy": 50.0})}, [0])
    assert found["accuracy_mismatched"].value == found["accuracy"].value == 50.0
