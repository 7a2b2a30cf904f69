"""From what a judge wrote to a rating, and from ratings to scores. No torch: reports use it too.

A judgment is one line of judgments.jsonl: {"question_id", "repeat", "judge", "rating" or null, "error" or null, "text"}.
"""

import random
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

LOWEST, HIGHEST = 1.0, 10.0
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?"
# The judge is asked to write its rating in double brackets. Single ones count behind "Rating:" only: [1] may be a source.
_DOUBLE = re.compile(rf"\[\[{_NUMBER}\]\]")
_NAMED = re.compile(rf"\brating\W{{0,4}}:\W{{0,4}}?(?:\[{_NUMBER}\]|(-?\d+(?:\.\d+)?)\s*/\s*10\b)", re.IGNORECASE)


class NoRating(ValueError):
    """The text holds no rating that counts; the message says why, in words that can be counted."""


def read_rating(text: str) -> float:
    """Return the rating in a judgment, read after the thoughts of a model that writes them down. The same rating twice is one.

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
    """Question -> median of its ratings. Questions without one are missing."""
    found: dict[Any, list[float]] = {}
    for judgment in judgments:
        if judgment["rating"] is not None:
            found.setdefault(judgment["question_id"], []).append(judgment["rating"])
    return {question: statistics.median(ratings) for question, ratings in found.items()}


def win_tie_loss(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> tuple[int, int, int]:
    """Questions on which ours is rated higher, alike, lower; those that both have (GOFT, figure 3)."""
    shared = [question for question in ours if question in theirs]
    won = sum(ours[question] > theirs[question] for question in shared)
    lost = sum(ours[question] < theirs[question] for question in shared)
    return won, len(shared) - won - lost, lost


def bootstrap_interval(values: list[float], *, draws: int = 2000, share: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean, resampling items; a single value is its own interval."""
    drawn = random.Random(seed)
    means = sorted(statistics.fmean(drawn.choices(values, k=len(values))) for _ in range(draws))
    outside = (1 - share) / 2
    return means[int(outside * (draws - 1))], means[round((1 - outside) * (draws - 1))]


def paired_interval(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> tuple[float, float]:
    """Bootstrap interval of the mean difference over the questions that both have."""
    return bootstrap_interval([ours[question] - theirs[question] for question in ours if question in theirs])
