"""Vicuna-Eval: the 80 questions, FastChat's prompts, and a resumable file of judgments.

Questions and prompts are those of the pinned files (tasks/pinned_files.py): `single-v1`, and `single-math-v1` with the reference answer
for the questions of NEED_REFERENCE that have one.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft.config.settings import JudgeSettings
from qgoft.errors import QgoftError
from qgoft.judge import f1_judge as rule
from qgoft.judge import openai
from qgoft.judge.ratings import NoRating, median_ratings, read_rating
from qgoft.records import TaggedLines, read_tagged

# Categories whose answers are judged with a reference answer (FastChat, llm_judge).
NEED_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")
# Consecutive questions without an answer after which judging stops. Each is retried for half a minute to many minutes.
MAX_CONSECUTIVE_FAILURES = 3
Judgment = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A question with its category and its references (rule: all correct answers; openai: a reference, if there is one)."""

    number: int
    category: str
    instruction: str
    input: str
    references: tuple[str, ...]


def read_prompts(path: Path) -> dict[str, dict[str, str]]:
    """Return name -> prompt of FastChat's judge_prompts.jsonl.

    Raises:
        QgoftError: one of the two required prompts is missing.
    """
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
        prompts = {line["name"]: {"system": str(line["system_prompt"]), "user": str(line["prompt_template"])} for line in lines}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise QgoftError(f"{path} has no judge prompts ({type(error).__name__}: {error}); fetch it again") from error
    missing = {"single-v1", "single-math-v1"} - set(prompts)
    if missing:
        raise QgoftError(f"{path} lacks the judge prompt {sorted(missing)[0]}; fetch it again")
    return prompts


def messages_for(question: Question, answer: str, prompts: dict[str, dict[str, str]]) -> openai.Messages:
    """Return the filled prompt. Braces in the prompt, question and answer are kept."""
    has_reference = question.category in NEED_REFERENCE and bool(question.references)
    prompt = prompts["single-math-v1" if has_reference else "single-v1"]
    fields = {"question": question.instruction, "answer": answer, "ref_answer_1": question.references[0] if has_reference else ""}
    return openai.Messages(prompt["system"], re.sub(r"\{(question|answer|ref_answer_1)\}", lambda field: fields[field[1]], prompt["user"]))


class JudgmentFile:
    """judgments.jsonl: all judgments of these answers by this judge, including failures. Rated answers are not judged again."""

    def __init__(self, path: Path, tag: dict[str, Any]):
        self.tag, self.lines = tag, TaggedLines(path, tag)

    def read(self) -> list[Judgment]:
        """Return the last judgment of every (question, repeat)."""
        newest = {(line["question_id"], line["repeat"]): line for line in read_tagged(self.lines.path, self.tag) or []}
        return list(newest.values())

    def count(self) -> tuple[int, int]:
        """Return the number of requested judgments, including retries, and the number without a rating."""
        every = read_tagged(self.lines.path, self.tag) or []
        return len(every), sum(line["rating"] is None for line in every)

    def append(self, judgment: Judgment) -> None:
        self.lines.append([judgment])


def judge_answers(
    questions: list[Question],
    answers: list[str],
    settings: JudgeSettings,
    file: JudgmentFile,
    prompts: dict[str, dict[str, str]] | None,
    say: Callable[[str], None],
) -> list[Judgment]:
    """Request every missing rating, and return all judgments. Failures are stored with their reason, and counted.

    Raises:
        QgoftError: `MAX_CONSECUTIVE_FAILURES` consecutive questions got no answer after all retries, or were refused for the same reason.
    """
    known = {(judgment["question_id"], judgment["repeat"]) for judgment in file.read() if judgment["rating"] is not None}
    wanted = [
        (question, answer, repeat)
        for repeat in range(settings.num_ratings)
        for question, answer in zip(questions, answers, strict=True)
        if (question.number, repeat) not in known
    ]
    if settings.kind == "openai" and wanted:
        assert prompts is not None
        say(openai.estimate([messages_for(question, answer, prompts) for question, answer, _ in wanted], settings))
    unreachable: set[int] = set()  # questions since the last answer
    refusals: dict[int, str] = {}
    for question, answer, repeat in wanted:
        judgment: Judgment = {"question_id": question.number, "repeat": repeat, "judge": settings.model}
        if settings.kind == "rule":
            rating, reason = rule.rate(answer, list(question.references))
            file.append({**judgment, "rating": rating, "error": None, "text": reason})
            continue
        assert prompts is not None
        text: str | None = None
        try:
            text = openai.ask(messages_for(question, answer, prompts), settings)
            file.append({**judgment, "rating": read_rating(text), "error": None, "text": text})
            unreachable.clear()
            refusals.clear()
        except (NoRating, openai.NoAnswer) as error:
            file.append({**judgment, "rating": None, "error": str(error), "text": text})
            unreachable = {*unreachable, question.number} if isinstance(error, openai.NoEndpoint) else set()
            refusals = {**refusals, question.number: str(error)} if isinstance(error, openai.Refused) else {}
            if len(refusals) >= MAX_CONSECUTIVE_FAILURES and len(set([*refusals.values()][-MAX_CONSECUTIVE_FAILURES:])) == 1:
                raise QgoftError(
                    f"the judge at {settings.url} refused {MAX_CONSECUTIVE_FAILURES} questions in a row ({error}); servers accept different fields; try "
                    "judge.token_field, judge.max_tokens, judge.temperature (null: not sent) or judge.system_role"
                ) from None
            if len(unreachable) == MAX_CONSECUTIVE_FAILURES:
                raise QgoftError(
                    f"the judge at {settings.url} gave no answer to {MAX_CONSECUTIVE_FAILURES} questions in a row ({error}); what it has rated is kept, "
                    "repeat the command to resume"
                ) from None
    judgments = file.read()
    lost = Counter(judgment["error"] for judgment in judgments if judgment["rating"] is None)
    if lost:
        say(f"judge {settings.model}: unrated: " + ", ".join(f"{count} x {reason}" for reason, count in lost.items()))
    return judgments


def unrated(questions: list[Question], judgments: list[Judgment]) -> list[int]:
    """Return the numbers of the questions that have no rating."""
    rated = median_ratings(judgments)
    return [question.number for question in questions if question.number not in rated]


def unanswered(questions: list[Question], judgments: list[Judgment]) -> list[int]:
    """Return the unrated questions that the judge has not answered, which make a run fail. An answer without a rating is only left out of
    the mean, since at temperature 0 a repetition gives the same one.
    """
    answered = {judgment["question_id"] for judgment in judgments if judgment["text"] is not None}
    return [number for number in unrated(questions, judgments) if number not in answered]
