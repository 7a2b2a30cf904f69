"""Math and commonsense: one training, then generated answers from which a result or a label is parsed."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import nn

from qgoft.errors import QgoftError, check_choice
from qgoft.tasks.decoder import answer_parsing as answers
from qgoft.tasks.decoder import published_rules
from qgoft.tasks.decoder.suite import Decoder
from qgoft.tasks.evaluate import Metric, Predictions


class Rule(NamedTuple):
    """A scoring rule: parsers of an answer and of a reference solution, and their comparison."""

    metric: str
    read: Callable[[str], str | None]
    reference: Callable[[str], str | None]
    computed_by: str  # dotted name of the function that parses or compares
    is_right: Callable[[str, str], bool] = str.__eq__


def _text(value: object) -> str | None:
    return None if value is None else str(value)


# Form of the answers -> the rule of the published code and this project's own, each with the name of its metric.
RULES = {
    "number": {
        "published": Rule(
            "accuracy",
            lambda text: _text(published_rules.read_metamath_number(text)),
            lambda solution: _text(answers.reference_number(solution)),
            "qgoft.tasks.decoder.published_rules.read_metamath_number",
        ),
        "own": Rule(
            "number_equivalent",
            lambda text: _text(answers.read_number(text)),
            lambda solution: _text(answers.reference_number(solution)),
            "qgoft.tasks.decoder.answer_parsing.read_number",
        ),
    },
    "formula": {
        "published": Rule(
            "accuracy",
            published_rules.read_metamath_formula,
            published_rules.read_boxed_reference,
            "qgoft.tasks.decoder.published_rules.is_equivalent",
            published_rules.is_equivalent,
        ),
        "own": Rule(
            "math_equivalent",
            answers.read_formula,
            answers.boxed,
            "qgoft.tasks.decoder.answer_parsing.same_formula",
            answers.same_formula,
        ),
    },
}


class Solving(Decoder):
    """Generated answers scored by one rule, and under a paper's protocol by this project's rule as well.

    task.options.scoring: `own` (default), or `published`, the rule of the code behind the papers' scores.
    """

    def known_rules(self) -> dict[str, Rule]:
        """Return the `published` rule of the task and this project's `own`."""
        raise NotImplementedError

    def rules(self) -> list[Rule]:
        """Return the rules to apply, the one of `accuracy` first."""
        rules = self.known_rules()
        return [rules["own"]] if self.scoring == "own" else [rules["published"], rules["own"]]

    @property
    def scoring(self) -> str:
        scoring = str(self.settings.task.options.get("scoring", "own"))
        check_choice("task.options.scoring", scoring, ["own", "published"], "change task.options.scoring")
        return scoring

    def read_references(self, solutions: list[str]) -> None:
        """Parse every reference solution by every rule. Those that a rule cannot parse count as wrong by it, and are counted.

        Raises:
            QgoftError: no rule parses one of them.
        """
        self.references = [[rule.reference(text) for text in solutions] for rule in self.rules()]
        unread = sum(reference is None for reference in self.references[0])
        if unread:
            self.data_fixes |= {"references that the published rule cannot read": unread}
        lost = sum(all(reference is None for reference in found) for found in zip(*self.references, strict=True))
        if lost:
            name = self.settings.task.full_name
            raise QgoftError(f"{name}: {lost} of {len(solutions)} reference answers have no result; correct the data")

    prompts: list[Any]

    def score(self, model: nn.Module, accelerator: Accelerator) -> Predictions:
        texts = self.generate(self.prompts, model, accelerator)
        (first, labels), *others = zip(self.rules(), self.references, strict=True)
        also = {rule.metric: _right(rule, [rule.read(text) for text in texts], references) for rule, references in others}
        return Predictions(list(range(len(texts))), [first.read(text) for text in texts], labels, {"accuracy": None}, also)

    def compute_metrics(self, outcomes: dict[str, Predictions]) -> dict[str, Metric]:
        """Return the accuracy by each rule, and the share of answers without a result (`no_answer`), in percent."""
        (outcome,) = outcomes.values()
        first, *others = self.rules()
        count = len(outcome.predictions)
        right = {"accuracy": _right(first, outcome.predictions, outcome.labels), **outcome.also}
        computed_by = {"accuracy": first.computed_by, **{rule.metric: rule.computed_by for rule in others}}
        metrics = {name: _share(sum(items) / count, count, computed_by[name]) for name, items in right.items()}
        answered = sum(found is not None for found in outcome.predictions)
        return {**metrics, "no_answer": _share(1 - answered / count, count, "qgoft.tasks.decoder.solvers.Solving.compute_metrics")}


def _share(p: float, n: int, computed_by: str) -> Metric:
    """Return a share of n items in percent, with its binomial standard error."""
    return Metric(100 * p, n, 100 * math.sqrt(p * (1 - p) / n), None, computed_by)


def _right(rule: Rule, found: list[str | None], references: list[str | None]) -> list[bool]:
    pairs = zip(found, references, strict=True)
    return [ours is not None and theirs is not None and rule.is_right(ours, theirs) for ours, theirs in pairs]


class Math(Solving):
    """GSM8K (numbers after ####) and MATH (boxed formulas), after training on MetaMathQA.

    task.options.prompt_suffix is appended to the test prompts.
    """

    def known_rules(self) -> dict[str, Rule]:
        return RULES[self.settings.task.options["form"]]

    def load_task(self) -> None:
        task = self.settings.task
        question, solution = task.columns
        rows = self.read_part("test", [question, solution])
        self.rows["test"] = len(rows)
        suffix = task.options.get("prompt_suffix", "")
        self.prompts = [self.template.test_prompt(text) + suffix for text in rows[question]]
        self.read_references(list(rows[solution]))


class Commonsense(Solving):
    """One of the eight test sets, after training on their mixture."""

    def known_rules(self) -> dict[str, Rule]:
        labels = self.settings.task.labels
        own = Rule(
            "label_named",
            lambda text: answers.read_choice(text, labels),
            lambda answer: answer,
            "qgoft.tasks.decoder.answer_parsing.read_choice",
        )
        published = Rule(
            "accuracy",
            lambda text: published_rules.read_first_label(text, labels),
            lambda answer: answer,
            "qgoft.tasks.decoder.published_rules.read_first_label",
        )
        return {"published": published, "own": own}

    def load_task(self) -> None:
        task = self.settings.task
        rows = self.read_part("test", ["instruction", "input", "answer"])
        self.rows["test"] = len(rows)
        self.prompts = [self.template.prompt(row["instruction"], row["input"]) for row in rows]
        found = [str(answer).strip().lower() for answer in rows["answer"]]
        strange = [(i, label) for i, label in enumerate(found) if label not in task.labels]
        if strange:
            raise QgoftError(
                f"{task.full_name}: row {strange[0][0]} has the answer {strange[0][1]!r} ({len(strange)} such rows); allowed are "
                f"{', '.join(task.labels)}; correct the data"
            )
        self.read_references(found)
