"""Math and commonsense: one training, then free answers out of which a result or a label is read."""

from accelerate import Accelerator
from torch import nn

from qgoft.errors import QgoftError
from qgoft.tasks import answers
from qgoft.train.evaluate import Measured, Outcome
from qgoft.train.suites.decoder import Decoder, measure_right


class Math(Decoder):
    """GSM8K (numbers after ####) and MATH (boxed formulas), after tuning on MetaMathQA."""

    def load_task(self) -> None:
        task = self.settings.task
        question, solution = task.columns
        rows = self.read_part("test", [question, solution])
        self.rows["test"] = len(rows)
        self.prompts = [self.template.prompt(text) for text in rows[question]]
        read = _reference_formula if task.options["form"] == "formula" else answers.reference_number
        self.references = [read(text) for text in rows[solution]]
        lost = sum(reference is None for reference in self.references)
        if lost:
            raise QgoftError(f"{task.full_name}: {lost} of {len(rows)} reference answers hold no result; correct the data")

    def score(self, model: nn.Module, accelerator: Accelerator) -> Outcome:
        texts = self.write(self.prompts, model, accelerator)
        is_formula = self.settings.task.options["form"] == "formula"
        found = [(answers.read_formula if is_formula else answers.read_number)(text) for text in texts]
        labels = [str(reference) for reference in self.references]
        return Outcome(list(range(len(texts))), [None if value is None else str(value) for value in found], labels, {"accuracy": None})

    def measure(self, outcomes: dict[str, Outcome]) -> dict[str, Measured]:
        (outcome,) = outcomes.values()
        is_formula = self.settings.task.options["form"] == "formula"
        pairs = list(zip(outcome.predictions, outcome.labels, strict=True))
        right = [ours is not None and (answers.same_formula(ours, label) if is_formula else ours == label) for ours, label in pairs]
        return measure_right(outcome, right, [ours is not None for ours in outcome.predictions])


def _reference_formula(solution: str) -> str | None:
    return answers.boxed(solution)


class Commonsense(Decoder):
    """One of the eight test sets, after tuning on their mixture."""

    def load_task(self) -> None:
        task = self.settings.task
        rows = self.read_part("test", ["instruction", "input", "answer"])
        self.rows["test"] = len(rows)
        self.prompts = [self.template.prompt(row["instruction"], row["input"]) for row in rows]
        self.references = [str(answer).strip().lower() for answer in rows["answer"]]
        strange = [(i, label) for i, label in enumerate(self.references) if label not in task.labels]
        if strange:
            raise QgoftError(
                f"{task.full_name}: row {strange[0][0]} has the answer {strange[0][1]!r} ({len(strange)} such rows); allowed are "
                f"{', '.join(task.labels)}; correct the data"
            )

    def score(self, model: nn.Module, accelerator: Accelerator) -> Outcome:
        texts = self.write(self.prompts, model, accelerator)
        found = [answers.read_choice(text, self.settings.task.labels) for text in texts]
        return Outcome(list(range(len(texts))), found, self.references, {"accuracy": None})

    def measure(self, outcomes: dict[str, Outcome]) -> dict[str, Measured]:
        (outcome,) = outcomes.values()
        right = [ours == label for ours, label in zip(outcome.predictions, outcome.labels, strict=True)]
        return measure_right(outcome, right, [ours is not None for ours in outcome.predictions])
