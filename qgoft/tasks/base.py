"""Interface of a suite: the data, model head and metrics of its tasks."""

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel

from qgoft.config.settings import ModelSettings, RunSettings
from qgoft.errors import QgoftError
from qgoft.models import load_tokenizer
from qgoft.run_id import RunId
from qgoft.tasks.evaluate import Collate, LabelledRows, Metric, Predictions
from qgoft.tasks.model_files import tokenizer_sha256


class Suite(ABC):
    """Data, model and metrics of one task.

    Attributes:
        train: training rows; `collate` makes a batch of them, under the names that the model takes.
        splits: names of the splits that can be evaluated: `validation`, if the selection uses one, and `test:<set>` for each test set.
        rows: number of items of each split; `is_subset` is True if they differ from the official numbers.
        data_fixes: problems of the data and their counts; none is dropped silently.
        head_modules: names of the modules that are new for the task; None for those in the model's settings.
        train_lengths: tokens of every training row, if batches can be grouped by length.
        shared_training: checksum of the rows and prompts of a training that several tasks share; None if the task has its own.
        weights: checksum of the trained weights, set after training, so that no output of other weights is reused.
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
        """Read and check the rows, and prepare the model's inputs.

        Raises:
            QgoftError: the data are invalid.
        """

    @classmethod
    def model_settings(cls, settings: RunSettings) -> ModelSettings:
        """Return the model's settings with the head of this suite."""
        return settings.model if cls.head_modules is None else dataclasses.replace(settings.model, head_modules=cls.head_modules)

    @classmethod
    @abstractmethod
    def build_model(cls, settings: RunSettings, directory: Path) -> PreTrainedModel:
        """Load the backbone in `directory` with a new head for this task, drawn from torch's random state."""

    @abstractmethod
    def evaluate(self, split: str, model: nn.Module, accelerator: Accelerator) -> Predictions:
        """Predict one split, and compute its scores."""

    @abstractmethod
    def compute_metrics(self, outcomes: dict[str, Predictions]) -> dict[str, Metric]:
        """Compute the metrics of a record from the predictions of all test sets (set -> predictions)."""

    def labelled(self, split: str) -> LabelledRows:
        """Return inputs and labels of `train` or one of `splits`.

        Raises:
            QgoftError: the rows of this suite do not have one label each.
        """
        raise QgoftError(f"the rows of {self.settings.task.full_name} do not have one label each")

    def selection_score(self, outcome: Predictions) -> float | None:
        """Return the score that the selection rule compares; higher is better."""
        return outcome.scores[self.settings.task.primary]

    @property
    def test_sets(self) -> list[str]:
        """Names of the test sets; one empty name if there is one set."""
        return [split.removeprefix("test:") for split in self.splits if split.startswith("test:")]


class TextSuite(Suite):
    """Suite of texts, with the tokenizer of the model."""

    def __init__(self, settings: RunSettings, run_id: RunId):
        self.tokenizer = load_tokenizer(run_id.model.directory)
        self.tokenizer_sha256 = tokenizer_sha256(run_id.model.directory)
        self.collate = DataCollatorWithPadding(self.tokenizer)
        super().__init__(settings, run_id)
