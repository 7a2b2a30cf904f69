"""Answers of finished runs as numbers, and the score of one item."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qgoft.records import Record, RunFiles
from qgoft.tasks.decoder.answer_parsing import same_formula
from qgoft.tasks.decoder.published_rules import is_equivalent
from qgoft.tasks.squad.scoring import question_scores

Array = np.ndarray[Any, Any]
# Prediction and label -> percent.
ItemScore = Callable[[Any, Any], float]
# Column of `AnswerColumns`, and the prefix of its values.
LineFilter = tuple[str, str]


@dataclass(frozen=True)
class Answers:
    """Answers of one run in the order of its file.

    Attributes:
        items: checksum of the answered items.
        predictions: [items].
        labels: [items].
    """

    items: str
    predictions: Array
    labels: Array


def read_answers(files: RunFiles, score: ItemScore | None = None, keep: LineFilter | None = None) -> Answers | None:
    """Return the answers of a run as numbers, or None if they are missing, corrupt or of another kind.

    Args:
        score: replaces each prediction by the item's score. Without it, texts are numbered.
        keep: filter of the answers; None for all.
    """
    columns = files.answers()
    if columns is None:
        return None
    sets, items, predictions, labels = columns.sets, columns.items, columns.predictions, columns.labels
    if keep is not None:
        kept = [place for place, value in enumerate(getattr(columns, keep[0])) if value.startswith(keep[1])]
        sets, items, predictions, labels = ([column[place] for place in kept] for column in (sets, items, predictions, labels))
    if not items:
        return None
    checksum = hashlib.sha256(json.dumps([sets, items]).encode()).hexdigest()
    if score is None:
        return Answers(checksum, *_as_numbers(predictions, labels))
    try:
        return Answers(checksum, np.array([score(*pair) for pair in zip(predictions, labels, strict=True)]), np.full(len(items), np.nan))
    except (TypeError, ValueError, AttributeError):
        return None


def _as_numbers(predictions: list[Any], labels: list[Any]) -> tuple[Array, Array]:
    """Number the distinct texts. A missing answer gets -1, which no label has."""
    if all(isinstance(value, int | float) for value in predictions):
        is_numeric = all(isinstance(value, int | float) for value in labels)
        return np.asarray(predictions, float), np.asarray(labels, float) if is_numeric else np.full(len(labels), np.nan)
    numbers: dict[str, int] = {}
    texts = [[None if v is None else str(v) for v in values] for values in (predictions, labels)]
    p, r = ([-1 if v is None else numbers.setdefault(v, len(numbers)) for v in values] for values in texts)
    return np.asarray(p, float), np.asarray(r, float)


def _question(number: int) -> ItemScore:
    return lambda prediction, answers: 100 * question_scores(prediction, answers)[number]


def _formula(prediction: Any, label: Any) -> float:
    return 100.0 * (prediction is not None and same_formula(prediction, label))


def _published_formula(prediction: Any, label: Any) -> float:
    return 100.0 * (prediction is not None and is_equivalent(prediction, label))


# (suite, task, metric) -> score of an item, if it is more than the equality of two texts.
ITEM_SCORES: dict[tuple[str, str, str], ItemScore] = {
    ("squad", "v1", "exact_match"): _question(0),
    ("squad", "v1", "f1"): _question(1),
    ("math", "math", "accuracy"): _formula,
}


def item_score(record: Record, metric: str) -> ItemScore | None:
    """Return the score of an item, or None for the equality of two texts and for a metric that is not a mean over items."""
    place = (record["suite"], record["task"], metric)
    if place == ("math", "math", "accuracy") and record["settings"]["task"]["options"].get("scoring") == "published":
        return _published_formula
    return ITEM_SCORES.get(place)
