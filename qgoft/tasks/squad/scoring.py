"""Official metrics of SQuAD v1.1 (Rajpurkar et al., 2016). Text processing only, so that reports can use it."""

import functools
import re
import string
from collections import Counter
from typing import Any

from qgoft.errors import QgoftError

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.lru_cache(100_000)  # tables score the answers of many runs on the same questions
def normalise_answer(text: str) -> str:
    """Return the text in lower case, without punctuation, articles and extra spaces (the official rule of version 1.1, in its order)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def question_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Return exact match and F1 of one question, each the best over its answers, from 0 to 1."""
    return _question_scores(prediction, tuple(answers))


@functools.lru_cache(200_000)
def _question_scores(prediction: str, answers: tuple[str, ...]) -> tuple[float, float]:
    ours = normalise_answer(prediction)
    references = [normalise_answer(answer) for answer in answers]
    return float(ours in references), max(_f1(ours.split(), reference.split()) for reference in references)


def _f1(ours: list[str], reference: list[str]) -> float:
    shared = sum((Counter(ours) & Counter(reference)).values())
    return 2 * shared / (len(ours) + len(reference)) if shared else 0.0


def exact_match_and_f1(predictions: dict[str, str], references: dict[str, list[str]]) -> dict[str, Any]:
    """Compute the official metrics of SQuAD v1.1 (Rajpurkar et al., 2016), in percent.

    Args:
        predictions: id -> text. A missing id scores 0 whatever its references, as in the official script; unknown ids are ignored and
            counted.
        references: id -> texts of the answers, at least one.

    Returns:
        exact_match and f1 over all references, and the numbers of questions n, missing and unknown.

    Raises:
        QgoftError: there is no reference, or one without an answer.
    """
    if not references:
        raise QgoftError("no reference answers; expected at least one question")
    for name, answers in references.items():
        if not answers:
            raise QgoftError(f"question {name} has no reference answer; version 1.1 has one to six; correct the references")
    missing = (0.0, 0.0)  # an empty text would match a reference that consists of articles and punctuation
    scores = [question_scores(predictions[name], answers) if name in predictions else missing for name, answers in references.items()]
    exact, f1 = (100 * sum(column) / len(scores) for column in zip(*scores, strict=True))
    return {
        "exact_match": exact,
        "f1": f1,
        "n": len(references),
        "missing": sum(name not in predictions for name in references),
        "unknown": sum(name not in references for name in predictions),
    }
