"""Parsing of judgments, and scores from ratings. Free of torch, since reports use it too.

A judgment is one line of judgments.jsonl: {"question_id", "repeat", "judge", "rating" or null, "error" or null, "text"}.
"""

import random
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

LOWEST, HIGHEST = 1.0, 10.0
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?"
# The judge is asked for its rating in double brackets. Single brackets count only after "Rating:", because [1] may be a citation.
_DOUBLE = re.compile(rf"\[\[{_NUMBER}\]\]")
_NAMED = re.compile(rf"\brating\W{{0,4}}:\W{{0,4}}?(?:\[{_NUMBER}\]|(-?\d+(?:\.\d+)?)\s*/\s*10\b)", re.IGNORECASE)


class NoRating(ValueError):
    """The text holds no valid rating; the message gives a reason that can be counted."""


def read_rating(text: str) -> float:
    """Return the rating in a judgment, after the reasoning of models that write it down. Repeated equal ratings count as one.

    Raises:
        NoRating: there is none, there are different ones, or it is outside 1 to 10.
    """
    _, mark, answer = text.rpartition("</think>")
    if not mark and "<think>" in text:
        raise NoRating("thoughts without an end")
    numbers = _DOUBLE.findall(answer) or [one or other for one, other in _NAMED.findall(answer)]
    found = {float(number) for number in numbers}
    if not found:
        raise NoRating("no rating")
    if len(found) > 1:
        raise NoRating("several ratings")
    (rating,) = found
    if not LOWEST <= rating <= HIGHEST:
        raise NoRating("rating outside 1 to 10")
    return rating


def median_ratings(judgments: Iterable[Mapping[str, Any]]) -> dict[Any, float]:
    """Return the median rating per question. Questions without a rating are missing."""
    found: dict[Any, list[float]] = {}
    for judgment in judgments:
        if judgment["rating"] is not None:
            found.setdefault(judgment["question_id"], []).append(judgment["rating"])
    return {question: statistics.median(ratings) for question, ratings in found.items()}


def win_tie_loss(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> tuple[int, int, int]:
    """Return on how many common questions ours is rated higher, equal and lower (GOFT, figure 3)."""
    shared = [question for question in ours if question in theirs]
    won = sum(ours[question] > theirs[question] for question in shared)
    lost = sum(ours[question] < theirs[question] for question in shared)
    return won, len(shared) - won - lost, lost


def bootstrap_interval(values: list[float], *, draws: int = 2000, share: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval of the mean by resampling items; a single value is its own interval."""
    drawn = random.Random(seed)
    means = sorted(statistics.fmean(drawn.choices(values, k=len(values))) for _ in range(draws))
    outside = (1 - share) / 2
    return means[int(outside * (draws - 1))], means[round((1 - outside) * (draws - 1))]


def paired_interval(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> tuple[float, float]:
    """Return the bootstrap interval of the mean difference over the common questions."""
    return bootstrap_interval([ours[question] - theirs[question] for question in ours if question in theirs])
