"""Transfer: a ridge classifier on the frozen features of the backbone, for tasks that it was not trained on.

Features are the mean of the last hidden states over the tokens of a text, or the class token of an image. Nothing is trained by gradient.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from qgoft.config.keys import settings_in_key
from qgoft.errors import QgoftError
from qgoft.retention.composed import compose_task, locate
from qgoft.retention.probes import Probe, ProbeContext, ProbeValue, backbone_of
from qgoft.tasks.base import Suite
from qgoft.tasks.evaluate import LabelledRows, forward_rows, score_labels
from qgoft.tasks.registry import suite_class

# Ridge strengths relative to the number of training rows.
STRENGTHS = torch.logspace(-5, 3, 33, dtype=torch.float64)
BATCH = 128


class Transfer(Probe):
    """Probe `transfer/<task>` for each task.

    Raises:
        QgoftError: no task is named, or a task's rows are missing or do not have one label each.
    """

    def __init__(self, context: ProbeContext):
        asked, own = context.asked, context.settings.task.full_name
        names = [name for name in asked.tasks if name != own]
        if not names:
            raise QgoftError(f"probe transfer needs tasks other than {own}; name them with retention.tasks=[glue/rte,...]")
        self.context = context
        self.tasks = [_Task(context, name) for name in names]
        self.depends_on = {
            task.value_name: {
                "rows": task.suite.run_id.data.fingerprint,
                "settings": settings_in_key(task.suite.settings)["task"],
                "length": task.suite.settings.train.max_length,
                "splits": task.suite.settings.eval_scheme,
                "train_rows": asked.train_rows,
                "test_rows": asked.test_rows,
            }
            for task in self.tasks
        }

    def measure(self, model: nn.Module, names: Collection[str]) -> dict[str, ProbeValue]:
        backbone = backbone_of(model)
        return {task.value_name: self._measure(task, backbone) for task in self.tasks if task.value_name in names}

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield reported rows of every task in turn."""
        loaders: list[Any] = [
            iter(DataLoader(cast(Any, next(iter(t.tests.values())).rows), 16, collate_fn=t.suite.collate)) for t in self.tasks
        ]
        while loaders:
            for loader in list(loaders):
                batch = next(loader, None)
                if batch is None:
                    loaders.remove(loader)
                else:
                    yield {name: tensor for name, tensor in batch.items() if name != "labels"}

    def _measure(self, one: "_Task", backbone: nn.Module) -> ProbeValue:
        task = one.suite.settings.task
        fit = RidgeFit(self._features(one.train, one.suite, backbone), one.targets)
        outcomes = {}
        for name, test in one.tests.items():
            scores = fit.predict(self._features(test, one.suite, backbone))
            predictions: list[Any] = scores[:, 0].tolist() if task.is_regression else scores.argmax(1).tolist()
            outcomes[name] = score_labels(task, list(range(len(predictions))), predictions, test.labels)
        metric = one.suite.compute_metrics(outcomes)[task.primary]
        return ProbeValue(metric.value, metric.n, metric.standard_error, metric.majority_baseline)

    def _features(self, given: LabelledRows, suite: Suite, backbone: nn.Module) -> Tensor:
        """Return features [rows, width] in float64."""
        accelerator = self.context.accelerator
        return torch.stack(forward_rows(backbone, given.rows, suite.collate, accelerator, BATCH, pool_features, given.lengths)).double()


class _Task:
    """A task with its sampled rows.

    Attributes:
        value_name: transfer/<task>.
        train: training rows.
        targets: of the ridge [rows, outputs] in float64.
        tests: test set -> reported rows.
    """

    def __init__(self, context: ProbeContext, name: str):
        self.value_name = f"transfer/{name.partition('/')[2]}"
        settings = compose_task(context, name)
        self.suite = suite_class(settings)(settings, locate(context, settings))
        train = self.suite.labelled("train")
        self.train = _sample(train, context.asked.train_rows)
        self.targets = _targets(self.train.labels, None if settings.task.is_regression else 1 + max(train.labels))
        tests = [split for split in self.suite.splits if split.startswith("test:")]
        self.tests = {split.removeprefix("test:"): _sample(self.suite.labelled(split), context.asked.test_rows) for split in tests}


def pool_features(output: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """Return the features of each row of a batch, on the CPU: the mean over its tokens, or its class token."""
    states = output.last_hidden_state.float()
    if "attention_mask" not in batch:
        return list(states[:, 0].cpu())
    mask = batch["attention_mask"][..., None].to(states.dtype)
    return list(((states * mask).sum(1) / mask.sum(1)).cpu())


def _sample(given: LabelledRows, most: int) -> LabelledRows:
    """Return at most some rows, chosen by a fixed seed; rows of text in memory."""
    count = len(given.labels)
    numbers = sorted(random.Random(0).sample(range(count), most)) if count > most else list(range(count))
    rows: Any = Subset(cast(Any, given.rows), numbers)
    labels = [given.labels[i] for i in numbers]
    if given.lengths is None:
        return LabelledRows(rows, labels)
    return LabelledRows([rows[i] for i in range(len(rows))], labels, [given.lengths[i] for i in numbers])


def _targets(labels: Sequence[Any], classes: int | None) -> Tensor:
    """Return targets [rows, outputs] in float64: one-hot, or the labels of a regression."""
    if classes is None:
        return torch.tensor(labels, dtype=torch.float64)[:, None]
    return nn.functional.one_hot(torch.tensor(labels), classes).double()


class RidgeFit:
    """Ridge regression on standardised features with an intercept, its strength chosen by generalised cross-validation (Golub, Heath and
    Wahba, 1979): the minimum over STRENGTHS of the mean squared residual / (1 - degrees of freedom / rows)^2.

    Args:
        features: [rows, width], float64.
        targets: [rows, outputs], float64.
    """

    def __init__(self, features: Tensor, targets: Tensor):
        count = len(features)
        self.mean, spread = features.mean(0), features.std(0)
        self.scale = torch.where(spread > 1e-9, spread, torch.ones_like(spread))
        self.offset = targets.mean(0)
        u, s, vh = torch.linalg.svd((features - self.mean) / self.scale, full_matrices=False)
        projected = u.T @ (targets - self.offset)
        shrink = s**2 / (s**2 + STRENGTHS[:, None] * count)  # [strengths, rank]
        rest = ((targets - self.offset) ** 2).sum() - (projected**2).sum()
        residual = rest + ((1 - shrink) ** 2 @ (projected**2).sum(1))
        freedom = 1 + shrink.sum(1)
        scores = residual / (1 - freedom / count).clamp_min(1e-6) ** 2
        best = int(scores.argmin())
        self.strength = float(STRENGTHS[best]) * count
        self.weights = vh.T @ ((s / (s**2 + self.strength))[:, None] * projected)

    def predict(self, features: Tensor) -> Tensor:
        """Return outputs [rows, outputs]."""
        return ((features - self.mean) / self.scale) @ self.weights + self.offset
