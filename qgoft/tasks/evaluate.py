"""Running a model over rows, and what comes of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow.compute
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset
from transformers.utils import ModelOutput

from qgoft.errors import Diverged

LOWER_IS_BETTER = ("loss", "no_answer", "unrated")  # of all metrics that a suite measures
T = TypeVar("T")
Read = Callable[[ModelOutput, dict[str, Tensor]], list[T]]
Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


@dataclass
class Predictions:
    """Predictions and labels of one part in the order of its items, and the scores in percent. `ids` tell the items apart.

    `also` has, for further metrics, whether each item is right by another rule.
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


def token_lengths(rows: Dataset) -> list[int]:
    return pyarrow.compute.list_value_length(rows.with_format("arrow")["input_ids"][:]).to_pylist()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation for the time of the block, whatever ends it: a signal may, and the training then goes on."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _check_finite(output: ModelOutput) -> None:
    """Assert that the outputs of a model are numbers.

    Raises:
        Diverged: a logit is not finite: its arg max would be the first class.
    """
    for name in ("logits", "start_logits", "end_logits"):
        logits = output.get(name)
        if logits is not None and not torch.isfinite(logits).all():
            raise Diverged("the model's predictions are not finite")


@torch.no_grad()
def forward_rows(
    model: nn.Module,
    rows: Dataset | TorchDataset,
    collate: Collate,
    accelerator: Accelerator,
    batch_size: int,
    read: Read[T],
    lengths: list[int] | None = None,
) -> list[T]:
    """What `read` takes from the model's output for every row, in the order of the rows. Several processes share the rows.

    Args:
        read: gets the output and the batch (without labels) and returns one thing per row.
        lengths: of the rows, where they differ: batches then hold rows of like length. The order does not matter to a prediction, and
            padding is masked.
    """
    order = sorted(range(len(rows)), key=lambda i: -lengths[i]) if lengths else list(range(len(rows)))
    share = order[accelerator.process_index :: accelerator.num_processes]
    mine: list[T] = []
    with evaluating(model):
        for batch in DataLoader(Subset(rows, share), batch_size=batch_size, collate_fn=collate):
            batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items() if name != "labels"}
            output = model(**batch)
            _check_finite(output)
            mine += read(output, batch)
    pairs = list(zip(share, mine, strict=True))
    if accelerator.num_processes > 1:
        pairs = gather_object(pairs)
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]
