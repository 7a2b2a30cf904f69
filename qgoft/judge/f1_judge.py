"""A judge without a model: the share of right words. Exact, and every rating says what it was made of."""

from collections import Counter

from qgoft.judge.ratings import HIGHEST, LOWEST


def rate(answer: str, right: list[str]) -> tuple[float, str]:
    """10 for one of the right answers; else 1 to 9 by the best F1 of its words with one of them, rounded. Also the reason, in words."""
    words = answer.split()
    best, nearest = max(((_f1(words, one.split()), one) for one in right), key=lambda pair: pair[0])
    if words in [one.split() for one in right]:
        return HIGHEST, f"right: {answer}"
    return LOWEST + round(8 * best), f"F1 {best:.2f} with {nearest!r}"


def _f1(ours: list[str], theirs: list[str]) -> float:
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0
