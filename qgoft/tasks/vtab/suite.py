"""VTAB-1K: classification of pictures."""

from pathlib import Path
from typing import ClassVar

from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.utils import ModelOutput

from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError
from qgoft.models import load_backbone
from qgoft.tasks.base import Suite
from qgoft.tasks.evaluate import Measured, Outcome, forward_rows
from qgoft.tasks.vtab.data import load_parts
from qgoft.tasks.vtab.images import DEFAULT_PRESET, PixelBatch


class Vtab(Suite):
    head: ClassVar[list[str]] = ["classifier"]

    def load(self) -> None:
        folder = self.identity.model.folder
        try:
            size = AutoConfig.from_pretrained(folder, trust_remote_code=False).image_size
        except (OSError, ValueError, AttributeError) as error:
            raise QgoftError(
                f"config.json in {folder} names no image_size ({error}); VTAB needs an image model such as ViT; change MODEL"
            ) from error
        parts = load_parts(self.settings, self.identity.data, size)
        self.collate = PixelBatch(size, self.settings.task.options.get("image", DEFAULT_PRESET))
        self.train, self.scored = parts.train, {"report:": parts.report}
        self.labels = {"report:": parts.report_labels}
        if parts.choose is not None:
            self.scored["choose"], self.labels["choose"] = parts.choose, list(parts.choose["labels"])
        self.parts = list(self.scored)
        self.train_labels = list(parts.train["labels"])
        self.rows, self.is_subset, self.repairs = parts.rows, parts.is_subset, parts.repairs

    @classmethod
    def build_model(cls, settings: RunSettings, folder: Path) -> PreTrainedModel:
        return load_backbone(settings, folder, AutoModelForImageClassification, cls.head, num_labels=settings.task.options["classes"])

    def evaluate(self, part: str, model: nn.Module, accelerator: Accelerator) -> Outcome:
        rows, labels, task = self.scored[part], self.labels[part], self.settings.task
        predictions = forward_rows(model, rows, self.collate, accelerator, self.settings.train.eval_batch_size, _read_classes)
        from qgoft.tasks.metrics import Scores  # its libraries take half a second to import, which training need not wait for

        metric = Scores(task.metrics)
        return Outcome(list(range(len(labels))), predictions, labels, metric.compute(predictions=predictions, references=labels))

    def measure(self, outcomes: dict[str, Outcome]) -> dict[str, Measured]:
        from qgoft.tasks.metrics import majority_score, standard_error

        (outcome,) = outcomes.values()
        ours, labels = outcome.predictions, outcome.labels
        return {
            name: Measured(
                outcome.scores[name],
                len(labels),
                standard_error(name, ours, labels),
                majority_score(name, labels, self.train_labels, is_regression=False),
            )
            for name in self.settings.task.metrics
        }


def _read_classes(output: ModelOutput, batch: dict[str, Tensor]) -> list[int]:
    return output.logits.float().argmax(-1).tolist()
