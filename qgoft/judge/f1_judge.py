"""Judge without a model: word F1 against reference answers. Exact, with a reason for every rating."""

from collections import Counter

from qgoft.judge.ratings import HIGHEST, LOWEST


def rate(answer: str, right: list[str]) -> tuple[float, str]:
    """Return 10 for a reference answer, otherwise 1 to 9 by the best word F1 with one of them, rounded; and the reason."""
    words = answer.split()
    best, nearest = max(((_f1(words, one.split()), one) for one in right), key=lambda pair: pair[0])
    if words in [one.split() for one in right]:
        return HIGHEST, f"right: {answer}"
    return LOWEST + round(8 * best), f"F1 {best:.2f} with {nearest!r}"


def _f1(ours: list[str], theirs: list[str]) -> float:
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0
