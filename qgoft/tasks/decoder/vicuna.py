"""Vicuna-Eval after instruction tuning: generate, judge, score. Answers and judgments are kept in the run's directory, and a rerun
completes them.
"""

import hashlib
import json
import math
import statistics
from collections import Counter
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from qgoft.console import say
from qgoft.errors import QgoftError
from qgoft.judge import openai
from qgoft.judge.ratings import median_ratings
from qgoft.judge.vicuna import JudgmentFile, Question, judge_answers, read_prompts, unanswered
from qgoft.tasks.decoder.suite import Decoder
from qgoft.tasks.evaluate import Metric, Predictions
from qgoft.tasks.read import read_json


class Vicuna(Decoder):
    def load_task(self) -> None:
        files, judge = self.run_id.data.files, self.settings.judge
        self.judge_prompts = None
        if "judge_prompts" in files:
            self.judge_prompts = read_prompts(files["judge_prompts"][0])
            self.questions = self._fastchat_questions()
            if judge.kind == "rule":
                raise QgoftError(
                    "judge.kind=rule compares with known answers, which the 80 questions of Vicuna-Eval do not have; use judge.kind=openai"
                )
            openai.read_key(judge)  # before the training, not after it
        else:
            rows = self.read_part("question", ["question_id", "category", "instruction", "input", "answers"])
            self.questions = [Question(r["question_id"], r["category"], r["instruction"], r["input"], tuple(r["answers"])) for r in rows]
            if judge.kind == "openai":
                raise QgoftError("the embedded questions have no judge prompt; use judge.kind=rule, or another PROTOCOL or DATA")
        self._check_numbers()
        self.rows["question"] = len(self.questions)
        self.prompts = [self.template.prompt(question.instruction, question.input) for question in self.questions]

    def _fastchat_questions(self) -> list[Question]:
        where, files = self.settings.task.full_name, self.run_id.data.files
        references = {}
        for line, row in read_json(files["references"][0], f"{where}, references part"):
            try:
                references[row["question_id"]] = str(row["choices"][0]["turns"][0])
            except (KeyError, IndexError, TypeError) as error:
                raise QgoftError(
                    f"{where}: {files['references'][0].name}, line {line}: expected question_id and choices[0].turns[0] ({type(error).__name__}: "
                    f"{error}); correct the data"
                ) from error
        questions = []
        for line, row in read_json(files["question"][0], f"{where}, question part"):
            turns = row.get("turns")
            is_whole = isinstance(row.get("question_id"), int) and isinstance(row.get("category"), str)
            if not is_whole or not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0].strip():
                raise QgoftError(
                    f"{where}: {files['question'][0].name}, line {line}: expected question_id (a number), category (a text) and turns (a list "
                    "of texts, the first of which is asked); correct the data"
                )
            right = tuple(filter(None, [references.get(row["question_id"])]))
            questions.append(Question(row["question_id"], row["category"], turns[0], "", right))
        return questions

    def _check_numbers(self) -> None:
        """Check that question numbers are unique.

        Raises:
            QgoftError: a number is repeated, so that both questions would get the rating of the last.
        """
        twice = [number for number, count in Counter(question.number for question in self.questions).items() if count > 1]
        if twice:
            raise QgoftError(
                f"{self.settings.task.full_name}: question_id {twice[0]} occurs twice ({len(twice)} such), and ratings are stored by it; correct the data"
            )

    def score(self, model: nn.Module, accelerator: Accelerator) -> Predictions:
        texts = self.generate(self.prompts, model, accelerator)
        box: list[Any] = [None, None]
        if accelerator.is_main_process:
            directory, settings = self.run_id.directory, self.settings
            judge = {"kind": settings.judge.kind, "model": settings.judge.model, "num_ratings": settings.judge.num_ratings}
            tag = {"answers": hashlib.sha256(json.dumps(texts).encode()).hexdigest(), "judge": judge}
            file = JudgmentFile(directory / "judgments.jsonl", tag)
            box[0] = judge_answers(self.questions, texts, settings.judge, file, self.judge_prompts, say)
            box[1] = file.count()
        if accelerator.num_processes > 1:
            broadcast_object_list(box)
        missing = unanswered(self.questions, box[0])
        if missing:
            raise QgoftError(
                f"{len(missing)} of {len(self.questions)} answers have no rating (questions {', '.join(map(str, missing[:5]))}"
                f"{' ...' if len(missing) > 5 else ''}); judgments.jsonl states the reasons; repeat the command to request the missing ratings"
            )
        ratings = median_ratings(box[0])
        rated = [question for question in self.questions if question.number in ratings]
        if not rated:
            raise QgoftError("the judge has rated no answer; judgments.jsonl contains its output")
        numbers = [question.number for question in rated]
        self.asked, self.failed = box[1]
        return Predictions(numbers, [ratings[number] for number in numbers], [question.category for question in rated], {"score": None})

    def compute_metrics(self, outcomes: dict[str, Predictions]) -> dict[str, Metric]:
        """Return the mean rating, the mean of each category, and the share of judgments without a rating among all requested."""
        (outcome,) = outcomes.values()
        by_category: dict[str, list[float]] = {}
        for category, rating in zip(outcome.labels, outcome.predictions, strict=True):
            by_category.setdefault(category, []).append(rating)
        measured = {"score": _mean(outcome.predictions)}
        measured |= {f"score_{category}": _mean(ratings) for category, ratings in by_category.items()}
        measured["unrated"] = Metric(100 * self.failed / self.asked, self.asked, None, None, "qgoft.judge.vicuna.judge_answers")
        return measured


def _mean(ratings: list[float]) -> Metric:
    error = statistics.stdev(ratings) / math.sqrt(len(ratings)) if len(ratings) > 1 else None
    return Metric(statistics.fmean(ratings), len(ratings), error, None, "qgoft.judge.ratings.median_ratings")
