"""MMLU after instruction tuning, zero-shot and five-shot: the most likely of the four letters is the answer.

task.options.prompt: `lm_eval` (default), lm-eval's prompt and scorer with the first examples of the dev split, or `llama_factory`, which
shuffles the dev examples for each question and ends in "Answer: " (LLaMA-Factory until June 2024; GOFT, appendix E.1).
"""

import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn

from qgoft.errors import QgoftError, check_choice
from qgoft.pocket.language.choices import LETTERS
from qgoft.pocket.language.knowledge import question_words
from qgoft.run_id import world_size
from qgoft.tasks.decoder.lm_eval import find_tasks, harness_answers, read_descriptions
from qgoft.tasks.decoder.mmlu_groups import GROUP_OF, group_accuracies
from qgoft.tasks.decoder.suite import Decoder
from qgoft.tasks.evaluate import Metric, Predictions, evaluating

SHOTS = (0, 5)
DRAW_SEED = 42  # LLaMA-Factory's
HARNESS_ROWS = 8
COLUMNS = ["question", "subject", "choices", "answer"]


class Mmlu(Decoder):
    def load_task(self) -> None:
        self.prompt = str(self.settings.task.options.get("prompt", "lm_eval"))
        check_choice("task.options.prompt", self.prompt, ["lm_eval", "llama_factory"], "change task.options.prompt")
        if world_size() > 1 and self.is_real and self.prompt == "lm_eval":
            raise QgoftError(
                f"{self.settings.task.full_name} is scored by lm-eval, which runs in one process, and this run has {world_size()}; set NPROC=1 for it "
                "(the training of several processes is another run)"
            )
        if self.is_real:
            find_tasks()  # before the training, not after it
        self.questions = self._checked("test")
        self.examples: dict[str, Any] = {}
        self.rows["test"] = len(self.questions)
        for row in self._checked("dev"):
            self.examples.setdefault(row["subject"], []).append(row)
        short = [subject for subject in dict.fromkeys(self.questions["subject"]) if len(self.examples.get(subject, [])) < max(SHOTS)]
        if short:
            raise QgoftError(
                f"{self.settings.task.full_name}: the dev split has fewer than {max(SHOTS)} examples of {short[0]}; complete the data"
            )

    @property
    def is_real(self) -> bool:
        """True for a real decoder, which is asked in the words of MMLU."""
        return "template" in self.run_id.data.files

    def _checked(self, split: str) -> Dataset:
        rows = self.read_part(split, COLUMNS)
        where = f"{self.settings.task.full_name}, {split} part"
        for i, row in enumerate(rows):
            if row["subject"] not in GROUP_OF:
                raise QgoftError(f"{where}: row {i} has the subject {row['subject']!r}, which MMLU does not have; correct the data")
            if len(row["choices"]) != len(LETTERS) or row["answer"] not in range(len(LETTERS)):
                raise QgoftError(f"{where}: row {i} needs four choices and an answer from 0 to 3; correct the data")
        return rows

    def score(self, model: nn.Module, accelerator: Accelerator) -> Predictions:
        if self.is_real and self.prompt == "llama_factory":
            letters = [self.tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in LETTERS]
            found = {shots: self._letters(self._drawn_prompts(shots), letters, model, accelerator) for shots in SHOTS}
        elif self.is_real:
            # The logits of 128 whole five-shot prompts take 40 GB and more; the answers do not depend on the batch size.
            size = min(self.settings.train.eval_batch_size, HARNESS_ROWS)
            found = {shots: harness_answers(self.questions, self.examples, shots, model, self.tokenizer, size) for shots in SHOTS}
        else:
            letters = [self.tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS]
            prompts = {shots: [self._prompt(row, shots) for row in self.questions] for shots in SHOTS}
            found = {shots: self._letters(prompts[shots], letters, model, accelerator) for shots in SHOTS}
        labels = list(self.questions["answer"])
        ids = [f"{shots}-{i}" for shots in SHOTS for i in range(len(labels))]
        return Predictions(ids, [number for shots in SHOTS for number in found[shots]], labels * len(SHOTS), {"accuracy": None})

    def _prompt(self, row: dict[str, Any], shots: int) -> str:
        """Return examples with their letters, then the question up to its letter, in the words of the embedded corpus."""
        words = []
        for example in self.examples[row["subject"]][:shots]:
            words += [*_words(example), LETTERS[example["answer"]], "."]
        return " ".join([*words, *_words(row)])

    def _drawn_prompts(self, shots: int) -> list[str]:
        descriptions = read_descriptions(dict.fromkeys(self.questions["subject"]))
        prompts = []
        for number, row in enumerate(self.questions):
            examples = self.examples[row["subject"]]
            order = np.random.default_rng([DRAW_SEED, number]).permutation(len(examples))[:shots]
            asked = [f"{_question(examples[i])}{LETTERS[examples[i]['answer']]}\n\n" for i in order]
            prompts.append("".join([descriptions[row["subject"]], *asked, _question(row)]))
        return prompts

    def _letters(self, prompts: list[str], letter_ids: list[int], model: nn.Module, accelerator: Accelerator) -> list[int]:
        letters = torch.tensor(letter_ids)
        ids = [torch.tensor(one) for one in self.tokenizer(prompts)["input_ids"]]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))[accelerator.process_index :: accelerator.num_processes]
        # The answers do not depend on the batch size; prompts of five real questions are long.
        size = self.settings.train.eval_batch_size
        mine: list[Any] = []
        size = min(size, HARNESS_ROWS) if self.is_real else size
        with torch.no_grad(), evaluating(model):
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                batch = nn.utils.rnn.pad_sequence([ids[i] for i in chosen], batch_first=True, padding_value=self.tokenizer.pad_token_id)
                last = torch.tensor([len(ids[i]) - 1 for i in chosen])
                attention = (torch.arange(batch.shape[1])[None] <= last[:, None]).long()
                logits = model(input_ids=batch.to(accelerator.device), attention_mask=attention.to(accelerator.device)).logits
                best = logits[torch.arange(len(chosen)), last].cpu()[:, letters].argmax(-1)
                mine += zip(chosen, best.tolist(), strict=True)
        if accelerator.num_processes > 1:
            mine = gather_object(mine)
        return [number for _, number in sorted(mine)]

    def compute_metrics(self, outcomes: dict[str, Predictions]) -> dict[str, Metric]:
        """Return mmlu<shots>_<group>, and the average over all questions."""
        (outcome,) = outcomes.values()
        subjects, count = list(self.questions["subject"]), len(self.questions)
        measured = {}
        examples = [row["answer"] for rows in self.examples.values() for row in rows]
        constant = max(range(len(LETTERS)), key=examples.count)  # the most frequent letter among the examples
        for number, shots in enumerate(SHOTS):
            split = slice(number * count, (number + 1) * count)
            labels = outcome.labels[split]
            right = [ours == label for ours, label in zip(outcome.predictions[split], labels, strict=True)]
            always = group_accuracies(subjects, [label == constant for label in labels])
            for group, (value, n) in group_accuracies(subjects, right).items():
                error = 100 * math.sqrt(value / 100 * (1 - value / 100) / n)
                measured[f"mmlu{shots}_{group}"] = Metric(
                    value, n, error, always[group][0], "qgoft.tasks.decoder.mmlu_groups.group_accuracies"
                )
        return measured


def _question(row: dict[str, Any]) -> str:
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question']}{choices}\nAnswer: "


def _words(row: dict[str, Any]) -> list[str]:
    return question_words(row["question"].split(), [choice.split() for choice in row["choices"]], LETTERS)
