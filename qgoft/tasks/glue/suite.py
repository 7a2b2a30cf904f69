"""GLUE: classification of sentences and pairs, and one regression."""

import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from qgoft.config.settings import RunSettings, TaskSettings
from qgoft.models import load_classifier
from qgoft.tasks.base import TextSuite
from qgoft.tasks.evaluate import LabelledRows, Metric, Predictions, forward_rows, score_labels, token_lengths
from qgoft.tasks.glue.data import load_splits

COMPUTED_BY = "qgoft.tasks.metrics.compute_score"


class Glue(TextSuite):
    def load(self) -> None:
        splits = load_splits(self.settings, self.run_id.data, self.tokenizer, self.tokenizer_sha256)
        self.eval_sets = {} if splits.validation is None else {"validation": splits.validation}
        self.eval_sets |= {f"test:{name}": split for name, split in splits.test.items()}
        self.train, self.splits = _model_input(splits.train), list(self.eval_sets)
        self.train_lengths = token_lengths(splits.train)
        self.train_labels = list(splits.train["labels"])
        self.rows, self.is_subset, self.data_fixes = splits.rows, splits.is_subset, splits.data_fixes

    @classmethod
    def build_model(cls, settings: RunSettings, directory: Path) -> PreTrainedModel:
        return load_classifier(settings, directory)

    def labelled(self, split: str) -> LabelledRows:
        if split == "train":
            return LabelledRows(self.train, self.train_labels, self.train_lengths)
        rows = self.eval_sets[split]
        return LabelledRows(_model_input(rows), list(rows["labels"]), token_lengths(rows))

    def evaluate(self, split: str, model: nn.Module, accelerator: Accelerator) -> Predictions:
        task, given, rows = self.settings.task, self.labelled(split), self.eval_sets[split]
        read: Any = _read_scores if task.is_regression else _read_classes
        size = self.settings.train.eval_batch_size
        predictions: list[Any] = forward_rows(model, given.rows, self.collate, accelerator, size, read, given.lengths)
        ids = list(rows["idx"]) if "idx" in rows.column_names else list(range(len(rows)))
        return score_labels(task, ids, predictions, given.labels)

    def compute_metrics(self, outcomes: dict[str, Predictions]) -> dict[str, Metric]:
        return combine(self.settings.task, outcomes, self.train_labels)

    def selection_score(self, outcome: Predictions) -> float | None:
        # Validation of MNLI is one set, scored by its accuracy, whatever the test metric is called.
        task = self.settings.task
        return outcome.scores[task.primary if task.primary in task.metrics else task.metrics[0]]


def _model_input(rows: Dataset) -> Dataset:
    """Return all columns except the row number."""
    return rows.select_columns([name for name in rows.column_names if name != "idx"])


def _read_classes(output: Any, batch: dict[str, Tensor]) -> list[int]:
    return output.logits.float().argmax(-1).tolist()


def _read_scores(output: Any, batch: dict[str, Tensor]) -> list[float]:
    return output.logits.float()[:, 0].tolist()


def combine(task: TaskSettings, outcomes: dict[str, Predictions], train_labels: list[float]) -> dict[str, Metric]:
    """Return the metrics. With several test sets (MNLI) each has its own, `<metric>_<set>`, in addition to their mean."""
    found: dict[str, Metric] = {}
    for name in task.metrics:
        splits = [_measure(task, name, outcome, train_labels) for outcome in outcomes.values()]
        for label, split in zip(outcomes, splits, strict=True):
            if label:
                found[f"{name}_{label}"] = split
        found[name] = splits[0] if len(splits) == 1 else _mean(splits)
    return found


def _measure(task: TaskSettings, name: str, outcome: Predictions, train_labels: list[float]) -> Metric:
    from qgoft.tasks.metrics import majority_score, standard_error

    error = standard_error(name, outcome.predictions, outcome.labels)
    majority = majority_score(name, outcome.labels, train_labels, is_regression=task.is_regression)
    return Metric(outcome.scores[name], len(outcome.labels), error, majority, COMPUTED_BY)


def _mean(splits: list[Metric]) -> Metric:
    """Return the mean of independent sets."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(values) if len(known) == len(values) else None

    errors = [split.standard_error for split in splits]
    error = None if None in errors else math.hypot(*(e for e in errors if e is not None)) / len(splits)
    return Metric(
        mean([p.value for p in splits]), sum(p.n for p in splits), error, mean([p.majority_baseline for p in splits]), COMPUTED_BY
    )
