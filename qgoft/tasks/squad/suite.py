"""SQuAD: extractive question answering."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

from qgoft.config.settings import RunSettings
from qgoft.models import load_backbone
from qgoft.tasks.base import TextSuite
from qgoft.tasks.evaluate import Metric, Predictions, forward_rows, token_lengths
from qgoft.tasks.squad.data import MODEL_INPUT, answers_of, load_splits
from qgoft.tasks.squad.scoring import exact_match_and_f1, question_scores


class Squad(TextSuite):
    head_modules: ClassVar[list[str]] = ["qa_outputs"]

    def load(self) -> None:
        splits = load_splits(self.settings, self.run_id.data, self.tokenizer, self.tokenizer_sha256)
        self.questions, self.windows = splits.questions, splits.windows
        self.train = splits.train.select_columns([name for name in splits.train.column_names if name not in ("row", "repair")])
        self.train_lengths = token_lengths(self.train)
        self.splits = list(splits.questions)
        self.rows, self.is_subset, self.data_fixes = splits.rows, splits.is_subset, splits.data_fixes

    @classmethod
    def build_model(cls, settings: RunSettings, directory: Path) -> PreTrainedModel:
        return load_backbone(settings, directory, AutoModelForQuestionAnswering, cls.head_modules, num_labels=2)

    def evaluate(self, split: str, model: nn.Module, accelerator: Accelerator) -> Predictions:
        questions, windows, options = self.questions[split], self.windows[split], self.settings.task.options
        rows = windows.select_columns([name for name in windows.column_names if name in MODEL_INPUT])
        logits = forward_rows(model, rows, self.collate, accelerator, self.settings.train.eval_batch_size, _read_spans, token_lengths(rows))
        texts = answers_of(questions, windows, logits, n_best=options["n_best"], max_tokens=options["max_answer_tokens"])
        ids, labels = list(questions["id"]), [answers["text"] for answers in questions["answers"]]
        scores = exact_match_and_f1(dict(zip(ids, texts, strict=True)), dict(zip(ids, labels, strict=True)))
        return Predictions(ids, texts, labels, {name: scores[name] for name in self.settings.task.metrics})

    def compute_metrics(self, outcomes: dict[str, Predictions]) -> dict[str, Metric]:
        (outcome,) = outcomes.values()
        items = np.array([question_scores(text, answers) for text, answers in zip(outcome.predictions, outcome.labels, strict=True)])
        count = len(items)
        errors = 100 * items.std(0, ddof=1) / np.sqrt(count) if count > 1 else [None, None]
        names = ("exact_match", "f1")
        return {
            name: Metric(
                outcome.scores[name], count, None if error is None else float(error), None, "qgoft.tasks.squad.scoring.question_scores"
            )
            for name, error in zip(names, errors, strict=True)
        }


def _read_spans(output: Any, batch: dict[str, Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the scores of every token as start and end of the answer, without padding."""
    both = [scores.float() for scores in (output.start_logits, output.end_logits)]
    lengths = batch["attention_mask"].sum(1).tolist()
    start, end = (scores.cpu().numpy() for scores in both)
    return [(start[i, :length].copy(), end[i, :length].copy()) for i, length in enumerate(lengths)]
