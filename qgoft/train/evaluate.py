"""Predictions and scores of a classifier on tokenised rows."""

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from qgoft.errors import Diverged
from qgoft.settings import TaskSettings
from qgoft.tasks.metrics import Scores, majority_score, standard_error

Rows = list[dict[str, list[int]]]


@dataclass
class Outcome:
    """Predictions and labels in the order of the rows, and the scores."""

    predictions: list[float]
    labels: list[float]
    scores: dict[str, float | None]


@torch.no_grad()
def predict(
    model: nn.Module, rows: Rows, collate: DataCollatorWithPadding, accelerator: Accelerator, batch_size: int, *, is_regression: bool
) -> list[float]:
    """Class numbers, or scores of a regression, in the order of the rows. Batches hold rows of like length; the order does not matter
    to a score, and padding is masked."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    share = order[accelerator.process_index :: accelerator.num_processes]
    was_training = model.training
    model.eval()
    mine: list[float] = []
    loader = DataLoader([rows[i] for i in share], batch_size=batch_size, collate_fn=collate)
    for batch in loader:
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items() if name != "labels"}
        logits = model(**batch).logits.float()
        if not logits.isfinite().all():
            raise Diverged("the model's predictions are not finite")
        mine += (logits[:, 0] if is_regression else logits.argmax(-1)).tolist()
    model.train(was_training)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        pairs = gather_object(list(zip(share, mine, strict=True)))
    else:
        pairs = list(zip(share, mine, strict=True))
    return [value for _, value in sorted(pairs)]


def score(task: TaskSettings, predictions: list[float], labels: list[float]) -> Outcome:
    """All metrics of a task on one set of rows, in percent."""
    metric = Scores(task.metrics, is_regression=task.is_regression)
    return Outcome(predictions, labels, metric.compute(predictions=predictions, references=labels))


@dataclass(frozen=True)
class Measured:
    """One metric over all reported items. The control is the score of always answering the commonest training label."""

    value: float | None
    n: int
    standard_error: float | None
    majority: float | None


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
