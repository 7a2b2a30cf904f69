"""GLUE: classification, and one regression, of sentences and pairs."""

import math
from pathlib import Path

from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from qgoft.config.settings import RunSettings, TaskSettings
from qgoft.models import load_classifier
from qgoft.tasks.base import TextSuite
from qgoft.tasks.evaluate import Measured, Outcome, forward_rows, token_lengths
from qgoft.tasks.glue.data import load_parts


class Glue(TextSuite):
    def load(self) -> None:
        parts = load_parts(self.settings, self.identity.data, self.tokenizer, self.tokenizer_sha256)
        self.scored = {} if parts.choose is None else {"choose": parts.choose}
        self.scored |= {f"report:{name}": part for name, part in parts.report.items()}
        self.train, self.parts = _model_input(parts.train), list(self.scored)
        self.train_lengths = token_lengths(parts.train)
        self.train_labels = list(parts.train["labels"])
        self.rows, self.is_subset, self.repairs = parts.rows, parts.is_subset, parts.repairs

    @classmethod
    def build_model(cls, settings: RunSettings, folder: Path) -> PreTrainedModel:
        return load_classifier(settings, folder)

    def evaluate(self, part: str, model: nn.Module, accelerator: Accelerator) -> Outcome:
        task, rows = self.settings.task, self.scored[part]
        read = _read_scores if task.is_regression else _read_classes
        size = self.settings.train.eval_batch_size
        predictions = forward_rows(model, _model_input(rows), self.collate, accelerator, size, read, token_lengths(rows))
        labels = list(rows["labels"])
        ids = list(rows["idx"]) if "idx" in rows.column_names else list(range(len(rows)))
        from qgoft.tasks.metrics import Scores  # its libraries take half a second to import, which training need not wait for

        metric = Scores(task.metrics, is_regression=task.is_regression)
        return Outcome(ids, predictions, labels, metric.compute(predictions=predictions, references=labels))

    def measure(self, outcomes: dict[str, Outcome]) -> dict[str, Measured]:
        return combine(self.settings.task, outcomes, self.train_labels)

    def choosing_score(self, outcome: Outcome) -> float | None:
        # The choosing part of MNLI is one set, which its accuracy scores, whatever the reported metric is called.
        task = self.settings.task
        return outcome.scores[task.primary if task.primary in task.metrics else task.metrics[0]]


def _model_input(rows: Dataset) -> Dataset:
    """Every column but the number of the row."""
    return rows.select_columns([name for name in rows.column_names if name != "idx"])


def _read_classes(output: ModelOutput, batch: dict[str, Tensor]) -> list[int]:
    return output.logits.float().argmax(-1).tolist()


def _read_scores(output: ModelOutput, batch: dict[str, Tensor]) -> list[float]:
    return output.logits.float()[:, 0].tolist()


def combine(task: TaskSettings, outcomes: dict[str, Outcome], train_labels: list[float]) -> dict[str, Measured]:
    """Metric -> what was measured. With several sets (MNLI) each has its own, `<metric>_<set>`, beside the mean of the sets."""
    found: dict[str, Measured] = {}
    for name in task.metrics:
        parts = [_measure(task, name, outcome, train_labels) for outcome in outcomes.values()]
        for label, part in zip(outcomes, parts, strict=True):
            if label:
                found[f"{name}_{label}"] = part
        found[name] = parts[0] if len(parts) == 1 else _mean(parts)
    return found


def _measure(task: TaskSettings, name: str, outcome: Outcome, train_labels: list[float]) -> Measured:
    from qgoft.tasks.metrics import majority_score, standard_error

    error = standard_error(name, outcome.predictions, outcome.labels)
    majority = majority_score(name, outcome.labels, train_labels, is_regression=task.is_regression)
    return Measured(outcome.scores[name], len(outcome.labels), error, majority)


def _mean(parts: list[Measured]) -> Measured:
    """Mean of independent sets."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(values) if len(known) == len(values) else None

    errors = [part.standard_error for part in parts]
    error = None if None in errors else math.hypot(*(e for e in errors if e is not None)) / len(parts)
    return Measured(mean([p.value for p in parts]), sum(p.n for p in parts), error, mean([p.majority for p in parts]))
