"""Evaluation of a model on rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

import pyarrow.compute
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset
from transformers.utils import ModelOutput

from qgoft.config.settings import TaskSettings
from qgoft.errors import Diverged

LOWER_IS_BETTER = ("loss", "no_answer", "unrated")  # among all metrics of all suites
T = TypeVar("T")
Read = Callable[[ModelOutput, dict[str, Tensor]], list[T]]
Rows: TypeAlias = Dataset | TorchDataset | list[dict[str, Any]]
Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


@dataclass
class Predictions:
    """Predictions and labels of one split in the order of its items, and scores in percent. `ids` identify the items.

    `also` states for further metrics whether each item is correct by another rule.
    """

    ids: list[Any]
    predictions: list[Any]
    labels: list[Any]
    scores: dict[str, float | None]
    also: dict[str, list[bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """One metric over all test items, in percent except `loss` (nats per token) and `score` (ratings from 1 to 10).

    Attributes:
        standard_error: over the items, in the unit of `value`.
        majority_baseline: the same metric for always predicting the most frequent training label.
        computed_by: dotted name of the function that computed it.
    """

    value: float | None
    n: int
    standard_error: float | None
    majority_baseline: float | None
    computed_by: str


@dataclass(frozen=True)
class LabelledRows:
    """Model inputs of one split with one label each.

    Attributes:
        lengths: tokens of each row; None for images.
    """

    rows: Rows
    labels: list[Any]
    lengths: list[int] | None = None


def score_labels(task: TaskSettings, ids: list[Any], predictions: list[Any], labels: list[Any]) -> Predictions:
    """Return predictions of labels with their scores by the metrics of a task."""
    from qgoft.tasks.metrics import Scores  # imported late: its libraries take half a second, and training does not need them

    scores = Scores(task.metrics, is_regression=task.is_regression)
    return Predictions(ids, predictions, labels, scores.compute(predictions=predictions, references=labels))


def token_lengths(rows: Dataset) -> list[int]:
    return pyarrow.compute.list_value_length(rows.with_format("arrow")["input_ids"][:]).to_pylist()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch the model to evaluation inside the block, and restore its mode however the block ends: training may continue after a signal."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _check_finite(output: ModelOutput) -> None:
    """Raise if an output of a model is not finite.

    Raises:
        Diverged: a logit is not finite, so that argmax would return the first class.
    """
    for name in ("logits", "start_logits", "end_logits"):
        logits = output.get(name)
        if logits is not None and not torch.isfinite(logits).all():
            raise Diverged("the model's predictions are not finite")


@torch.no_grad()
def forward_rows(
    model: nn.Module,
    rows: Rows,
    collate: Collate,
    accelerator: Accelerator,
    batch_size: int,
    read: Read[T],
    lengths: list[int] | None = None,
) -> list[T]:
    """Return what `read` extracts from the model's output for every row, in the order of the rows, which are divided among the processes.

    Args:
        read: takes the output and the batch (without labels) and returns one value per row.
        lengths: lengths of the rows, to batch rows of similar length. Padding is masked, so the order does not affect predictions.
    """
    count = len(cast(list[Any], rows))  # map-style datasets have a length
    order = sorted(range(count), key=lambda i: -lengths[i]) if lengths else list(range(count))
    share = order[accelerator.process_index :: accelerator.num_processes]
    mine: list[T] = []
    with evaluating(model):
        for batch in DataLoader(Subset(cast(TorchDataset, rows), share), batch_size=batch_size, collate_fn=collate):
            batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items() if name != "labels"}
            output = model(**batch)
            _check_finite(output)
            mine += read(output, batch)
    pairs = list(zip(share, mine, strict=True))
    if accelerator.num_processes > 1:
        pairs = gather_object(pairs)
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]
