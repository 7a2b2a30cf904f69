"""VTAB-1K: image classification."""

from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError
from qgoft.models import load_backbone
from qgoft.tasks.base import Suite
from qgoft.tasks.evaluate import LabelledRows, Metric, Predictions, forward_rows, score_labels
from qgoft.tasks.vtab.data import load_splits
from qgoft.tasks.vtab.images import DEFAULT_PRESET, PixelBatch


class Vtab(Suite):
    head_modules: ClassVar[list[str]] = ["classifier"]

    def load(self) -> None:
        directory = self.run_id.model.directory
        try:
            size = AutoConfig.from_pretrained(directory, trust_remote_code=False).image_size
        except (OSError, ValueError, AttributeError) as error:
            raise QgoftError(
                f"config.json in {directory} has no image_size ({error}); VTAB needs an image model such as ViT; change MODEL"
            ) from error
        splits = load_splits(self.settings, self.run_id.data, size)
        self.collate = PixelBatch(size, self.settings.task.options.get("image", DEFAULT_PRESET))
        self.train, self.eval_sets = splits.train, {"test:": splits.test}
        self.labels = {"test:": splits.test_labels}
        if splits.validation is not None:
            self.eval_sets["validation"], self.labels["validation"] = splits.validation, list(splits.validation["labels"])
        self.splits = list(self.eval_sets)
        self.train_labels = list(splits.train["labels"])
        self.rows, self.is_subset, self.data_fixes = splits.rows, splits.is_subset, splits.data_fixes

    @classmethod
    def build_model(cls, settings: RunSettings, directory: Path) -> PreTrainedModel:
        return load_backbone(
            settings, directory, AutoModelForImageClassification, cls.head_modules, num_labels=settings.task.options["classes"]
        )

    def labelled(self, split: str) -> LabelledRows:
        if split == "train":
            return LabelledRows(self.train, self.train_labels)
        return LabelledRows(self.eval_sets[split], self.labels[split])

    def evaluate(self, split: str, model: nn.Module, accelerator: Accelerator) -> Predictions:
        given, size = self.labelled(split), self.settings.train.eval_batch_size
        predictions = forward_rows(model, given.rows, self.collate, accelerator, size, _read_classes)
        return score_labels(self.settings.task, list(range(len(given.labels))), predictions, given.labels)

    def compute_metrics(self, outcomes: dict[str, Predictions]) -> dict[str, Metric]:
        from qgoft.tasks.metrics import majority_score, standard_error

        (outcome,) = outcomes.values()
        ours, labels = outcome.predictions, outcome.labels
        return {
            name: Metric(
                outcome.scores[name],
                len(labels),
                standard_error(name, ours, labels),
                majority_score(name, labels, self.train_labels, is_regression=False),
                "qgoft.tasks.metrics.compute_score",
            )
            for name in self.settings.task.metrics
        }


def _read_classes(output: Any, batch: dict[str, Tensor]) -> list[int]:
    return output.logits.float().argmax(-1).tolist()
