"""The official scores of one question of SQuAD v1.1 (Rajpurkar et al., 2016). Nothing but text, so that reports can score answers again."""

import re
import string
from collections import Counter

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces (the official rule of version 1.1, in its order)."""
    text = "".join(letter for letter in text.lower() if letter not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def question_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Exact match and F1 of one question, each the best over its answers, from 0 to 1."""
    ours = normalise_answer(prediction)
    references = [normalise_answer(answer) for answer in answers]
    return float(ours in references), max(_f1(ours.split(), reference.split()) for reference in references)


def _f1(ours: list[str], reference: list[str]) -> float:
    shared = sum((Counter(ours) & Counter(reference)).values())
    return 2 * shared / (len(ours) + len(reference)) if shared else 0.0
