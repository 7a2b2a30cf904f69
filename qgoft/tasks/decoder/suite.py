"""Decoders: trained once on instructions and answers, and evaluated on any of the tasks that share this training."""

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from qgoft.config.settings import RunSettings
from qgoft.errors import Diverged, QgoftError
from qgoft.models import load_decoder
from qgoft.tasks.base import TextSuite
from qgoft.tasks.decoder.generate import AnswerFile, GenerationSettings, write_answers
from qgoft.tasks.decoder.prompts import DAMAGES, IGNORE_INDEX, NO_ROOM, prompt_rules, read_template, training_rows
from qgoft.tasks.evaluate import Metric, Predictions, evaluating
from qgoft.tasks.part_files import checksum
from qgoft.tasks.read import read_rows
from qgoft.tasks.splits import holdout_split

TRAINING_PARTS = ("train", "validation", "template")


class Decoder(TextSuite):
    """Training rows and the validation loss; subclasses generate and score the answers to their prompts."""

    head_modules: ClassVar[list[str]] = []

    def load(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise QgoftError(
                f"the tokenizer of model={self.settings.model.name} has no eos_token, which is needed to end answers; set it in tokenizer_config.json"
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        settings, files = self.settings, self.run_id.data
        template = files.files["template"][0] if "template" in files.files else None
        self.template = read_template(template, prompt_rules(settings.task.options))
        self.shared_training = checksum(files.parts, [name for name in TRAINING_PARTS if name in files.parts])
        self.whole: dict[str, int] = {}  # rows of a split, including those without room for an answer
        rows, validation = self._tokens("train"), None
        if "validation" in files.files:
            if settings.train.holdout_rows:
                raise QgoftError(
                    f"train.holdout_rows={settings.train.holdout_rows}, but {settings.task.full_name} already has a validation split for selection; "
                    "set train.holdout_rows=0"
                )
            validation = self._tokens("validation")
        elif settings.train.holdout_rows:
            rows, validation = holdout_split(rows, settings.train.holdout_rows)
        elif settings.selection == "best_validation":
            raise QgoftError(
                f"selection=best_validation needs validation rows, and {settings.task.full_name} has no validation split; set train.holdout_rows to a "
                "number of rows, or selection=last"
            )
        self.train, self.train_lengths = _inputs(rows), [len(ids) for ids in rows["input_ids"]]
        self.validation = validation
        self.rows = {"train": len(rows), **({} if validation is None else {"validation": len(validation)})}
        self.load_task()
        self.splits = [*(["validation"] if validation is not None else []), "test:"]
        # Rows that are held out or have no room count towards the official number.
        found = {**self.rows, **self.whole}
        self.is_subset = any(found[name] != count for name, count in settings.task.rows.items() if name in found)
        self.collate = self._collate

    def load_task(self) -> None:
        """Read the test set, and enter its number of items in `rows`."""

    def _tokens(self, split: str) -> Dataset:
        options = self.settings.task.options
        columns = {name: str(column) for name, column in options["train_columns"].items()}
        where = f"{self.settings.task.full_name}, {split} part"
        rows = read_rows(self.run_id.data.files[split][0], where, list(columns.values()))
        depends_on = {"rows": self.run_id.data.parts[split], "tokenizer": self.tokenizer_sha256}
        made, damage = training_rows(rows, columns, self.template, self.tokenizer, self.settings.train.max_length, depends_on)
        self.data_fixes |= {f"{split}: {what}": count for what, count in damage.items()}
        self.whole[split] = len(made) + damage.get(DAMAGES[NO_ROOM], 0)
        return made

    def read_part(self, split: str, columns: list[str]) -> Dataset:
        return read_rows(self.run_id.data.files[split][0], f"{self.settings.task.full_name}, {split} part", columns)

    @classmethod
    def build_model(cls, settings: RunSettings, directory: Path) -> PreTrainedModel:
        return load_decoder(settings, directory)

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad on the right; the loss covers the answer and the end-of-text token, or with train.loss_on=all the prompt too."""
        is_all = self.settings.train.loss_on == "all"
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), longest), IGNORE_INDEX)
        attention = torch.zeros((len(rows), longest), dtype=torch.long)
        for i, row in enumerate(rows):
            length, prompt = len(row["input_ids"]), 0 if is_all else row["prompt"]
            ids[i, :length] = torch.tensor(row["input_ids"])
            labels[i, prompt:length] = ids[i, prompt:length]
            attention[i, :length] = 1
        return {"input_ids": ids, "attention_mask": attention, "labels": labels}

    def evaluate(self, split: str, model: nn.Module, accelerator: Accelerator) -> Predictions:
        if split == "validation":
            assert self.validation is not None
            losses = self.losses(self.validation, model, accelerator)
            return Predictions(list(range(len(losses))), losses, losses, {"loss": sum(losses) / len(losses)})
        return self.score(model, accelerator)

    def selection_score(self, outcome: Predictions) -> float | None:
        """Return the negative validation loss."""
        loss = outcome.scores["loss"]
        return None if loss is None else -loss

    def score(self, model: nn.Module, accelerator: Accelerator) -> Predictions:
        """Generate and score the answers of the task."""
        raise NotImplementedError

    def losses(self, rows: Dataset, model: nn.Module, accelerator: Accelerator) -> list[float]:
        """Return the mean loss of every row over the tokens that training counts, in nats per token."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))[accelerator.process_index :: accelerator.num_processes]
        size = self.settings.train.eval_batch_size
        mine: list[Any] = []
        with torch.no_grad(), evaluating(model):
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                batch = {name: tensor.to(accelerator.device) for name, tensor in self._collate([rows[i] for i in chosen]).items()}
                labels = batch.pop("labels")[:, 1:]
                logits = model(**batch).logits[:, :-1].float()
                each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none").sum(1)
                mine += zip(chosen, (each / (labels != IGNORE_INDEX).sum(1).clamp(min=1)).tolist(), strict=True)
        if accelerator.num_processes > 1:
            mine = gather_object(mine)
        found = [loss for _, loss in sorted(mine)]
        if not all(map(math.isfinite, found)):
            raise Diverged("the evaluation loss is not finite")
        return found

    def generate(self, prompts: list[str], model: nn.Module, accelerator: Accelerator) -> list[str]:
        """Generate answers to prompts, stored in the run's directory as they are produced."""
        options, settings = self.settings.task.options, self.settings
        generation = GenerationSettings(
            max_new_tokens=int(options["new_tokens"]),
            temperature=float(options.get("temperature", 0.0)),
            top_p=float(options.get("top_p", 1.0)),
            batch_size=settings.train.eval_batch_size,
            seed=settings.seed,
            top_k=int(options.get("top_k", 0)),
            num_beams=int(options.get("num_beams", 1)),
            stop=tuple(options.get("stop", ())),
        )
        sampled = generation.batch_size if generation.temperature else None
        file = AnswerFile(self.run_id.directory, "answers", self.weights, accelerator.process_index, sampled)
        accelerator.wait_for_everyone()
        return write_answers(model, prompts, self.tokenizer, accelerator, generation, file)


def _inputs(rows: Dataset) -> Dataset:
    return rows.select_columns(["input_ids", "prompt"])


class Alpaca(Decoder):
    """Instruction tuning without a judge: the loss on answers that training has not seen."""

    def load_task(self) -> None:
        if "test" in self.run_id.data.files:
            self.reported_rows = self._tokens("test")
        elif self.validation is not None and self.settings.selection == "last":
            self.reported_rows = self.validation
        else:
            raise QgoftError(
                "instruct/alpaca reports the loss on rows held out of training: set train.holdout_rows to their number and selection=last, or "
                "choose instruct/vicuna or instruct/mmlu"
            )
        self.rows["test"] = len(self.reported_rows)

    def score(self, model: nn.Module, accelerator: Accelerator) -> Predictions:
        losses = self.losses(self.reported_rows, model, accelerator)
        return Predictions(list(range(len(losses))), losses, [None] * len(losses), {"loss": sum(losses) / len(losses)})

    def compute_metrics(self, outcomes: dict[str, Predictions]) -> dict[str, Metric]:
        (outcome,) = outcomes.values()
        return {
            "loss": Metric(
                outcome.scores["loss"],
                len(outcome.ids),
                _error_of_mean(outcome.predictions),
                None,
                "qgoft.tasks.decoder.suite.Decoder.losses",
            )
        }


def _error_of_mean(values: list[float]) -> float | None:
    """Return the standard error of a mean over items."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
