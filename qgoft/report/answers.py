"""Answers of finished runs (predictions.jsonl.gz), and the score of one item."""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qgoft.records import Record
from qgoft.tasks.decoder.answer_parsing import same_formula
from qgoft.tasks.decoder.published_rules import is_equivalent
from qgoft.tasks.squad.scoring import question_scores

Array = np.ndarray[Any, Any]
# Prediction and label -> percent.
ItemScore = Callable[[Any, Any], float]
# Field of a line, and the prefix of its value.
LineFilter = tuple[str, str]
# A line with numeric prediction and label, as it is written; all other lines are parsed as JSON.
_NUMERIC_LINE = re.compile(rb'\{("set": "[^"]*", "idx": (?:\d+|"[^"\\]*")), "prediction": (-?[\d.e+-]+), "label": (-?[\d.e+-]+)\}\n')


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


def read_lines(directory: Path) -> list[dict[str, Any]] | None:
    """Return the lines of predictions.jsonl.gz, or None if the file is missing, empty or corrupt."""
    text = _read(directory)
    try:
        # One array is parsed three times as fast as its lines.
        lines: list[dict[str, Any]] = json.loads(b"[" + text.strip().replace(b"\n", b",") + b"]")
        return lines if lines and all({"set", "idx", "prediction", "label"} <= set(line) for line in lines) else None
    except (ValueError, TypeError):
        return None


def read_answers(directory: Path, score: ItemScore | None = None, keep: LineFilter | None = None) -> Answers | None:
    """Return the answers of a run as numbers, or None if they are missing, corrupt or of another kind.

    Args:
        score: replaces each prediction by the item's score. Without it, texts are numbered.
        keep: filter of the lines; None for all.
    """
    if score is not None:
        lines = read_lines(directory)
        try:
            return None if lines is None else Answers(_checksum(lines), _score_lines(lines, score), np.full(len(lines), np.nan))
        except (TypeError, ValueError, AttributeError):
            return None
    text = _read(directory)
    found = [] if keep else _NUMERIC_LINE.findall(text)
    if found and len(found) == text.count(b"\n"):
        items = hashlib.sha256(b"\n".join(item for item, _, _ in found)).hexdigest()
        return Answers(items, np.array([p for _, p, _ in found], "S").astype(float), np.array([r for _, _, r in found], "S").astype(float))
    lines = [line for line in read_lines(directory) or () if keep is None or str(line[keep[0]]).startswith(keep[1])]
    if not lines:
        return None
    return Answers(_checksum(lines), *_as_numbers([line["prediction"] for line in lines], [line["label"] for line in lines]))


def _score_lines(lines: Sequence[Mapping[str, Any]], score: ItemScore) -> Array:
    return np.array([score(line["prediction"], line["label"]) for line in lines])


def _checksum(lines: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([[line["set"], line["idx"]] for line in lines]).encode()).hexdigest()


def _read(directory: Path) -> bytes:
    try:
        return gzip.decompress((directory / "predictions.jsonl.gz").read_bytes())
    except (OSError, EOFError, zlib.error):
        return b""


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
