"""What a run must know about its task, whatever the suite."""

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel

from qgoft.config.settings import ModelSettings, RunSettings
from qgoft.models import load_tokenizer
from qgoft.run_id import RunId
from qgoft.tasks.evaluate import Collate, Metric, Predictions
from qgoft.tasks.model_files import tokenizer_sha256


class Suite(ABC):
    """Rows, model and scores of one task.

    Attributes:
        train: rows for training, and `collate`, which makes a batch of some of them, under the names that the model takes.
        parts: names of the parts that can be scored: choose, where something chooses, and report:<set> for each reported set.
        rows: number of items of each split, and `is_subset`, whether they are others than the official numbers.
        repairs: what was wrong with the data and how often; nothing is left out in silence.
        head_modules: names of the modules that are new for the task; None for those that the model's settings name.
        train_lengths: tokens of every training row, where batches may be grouped by length.
        shared_training: checksum of the rows and prompts that training reads, where other tasks are scored with the same training.
        weights: checksum of what was trained, set when training is done: what is written with other weights is never reused.
    """

    head_modules: ClassVar[list[str] | None] = None
    collate: Collate

    def __init__(self, settings: RunSettings, run_id: RunId):
        self.settings, self.run_id = settings, run_id
        self.train: Dataset
        self.splits: list[str]
        self.rows: dict[str, int]
        self.is_subset: bool
        self.data_fixes: dict[str, int] = {}
        self.train_lengths: list[int] | None = None
        self.shared_training: str | None = None
        self.weights = ""
        self.load()

    @abstractmethod
    def load(self) -> None:
        """Read and check the rows, and make what the model takes of them.

        Raises:
            QgoftError: something is wrong with them.
        """

    @classmethod
    def model_settings(cls, settings: RunSettings) -> ModelSettings:
        """The model's settings with the head of this suite."""
        return settings.model if cls.head_modules is None else dataclasses.replace(settings.model, head_modules=cls.head_modules)

    @classmethod
    @abstractmethod
    def build_model(cls, settings: RunSettings, folder: Path) -> PreTrainedModel:
        """The backbone in `folder` with a new head for this task. The head is drawn from torch's random state."""

    @abstractmethod
    def evaluate(self, split: str, model: nn.Module, accelerator: Accelerator) -> Predictions:
        """Predictions of a model on one part, and their scores."""

    @abstractmethod
    def compute_metrics(self, outcomes: dict[str, Predictions]) -> dict[str, Metric]:
        """Metrics of a record from the outcomes of all reported sets (set -> outcome)."""

    def selection_score(self, outcome: Predictions) -> float | None:
        """What the selection rule compares."""
        return outcome.scores[self.settings.task.primary]

    @property
    def test_sets(self) -> list[str]:
        """Names of the reported sets; one empty name where there is one set."""
        return [split.removeprefix("test:") for split in self.splits if split.startswith("test:")]


class TextSuite(Suite):
    """A suite of texts, with the tokenizer of the model."""

    def __init__(self, settings: RunSettings, run_id: RunId):
        self.tokenizer = load_tokenizer(run_id.model.folder)
        self.tokenizer_sha256 = tokenizer_sha256(run_id.model.folder)
        self.collate = DataCollatorWithPadding(self.tokenizer)
        super().__init__(settings, run_id)
