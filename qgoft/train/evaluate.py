"""Predictions and scores of a classifier on tokenised rows."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from qgoft.settings import TaskSettings
from qgoft.tasks.metrics import Scores

Rows = list[dict[str, list[int]]]


@dataclass
class Outcome:
    """Predictions and labels in the order of the rows, and the scores."""

    predictions: list[float]
    labels: list[float]
    scores: dict[str, float | None]


@torch.no_grad()
def predict(model: nn.Module, rows: Rows, collate: DataCollatorWithPadding, accelerator: Accelerator, batch_size: int, *, is_regression: bool) -> list[float]:
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


def combine(task: TaskSettings, outcomes: dict[str, Outcome]) -> dict[str, tuple[float | None, int]]:
    """Metric -> (value, number of items). With several sets (MNLI) each has its own, `<metric>_<set>`, beside the mean of the sets."""
    if len(outcomes) == 1 and "" in outcomes:
        only = outcomes[""]
        return {name: (value, len(only.labels)) for name, value in only.scores.items()}
    values: dict[str, tuple[float | None, int]] = {}
    for name in task.metrics:
        parts = [(outcome.scores[name], len(outcome.labels)) for outcome in outcomes.values()]
        known = [value for value, _ in parts if value is not None]
        values[name] = (sum(known) / len(known) if len(known) == len(parts) else None, sum(n for _, n in parts))
        for label, outcome in outcomes.items():
            values[f"{name}_{label}"] = (outcome.scores[name], len(outcome.labels))
    return values
