"""Published pairwise reviews of Vicuna-Eval (2023): two scores a question, tabulated as our own ratings are."""

import gzip
import json
from pathlib import Path
from typing import Any


def read_reviews(path: Path) -> tuple[dict[Any, float], dict[Any, float]]:
    """Question -> score, of the first and of the second model. What counts is the field `score`: in three of eighty reviews of a file the
    first line of the text, where the judge was to put the two numbers, holds something else.

    Raises:
        ValueError: a review has not two scores, or a question comes twice.
    """
    first: dict[Any, float] = {}
    second: dict[Any, float] = {}
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for number, line in enumerate(content.splitlines(), start=1):
        review = json.loads(line)
        question, scores = review["question_id"], review["score"]
        if len(scores) != 2 or question in first:
            raise ValueError(
                f"{path.name}, line {number}: {len(scores)} scores of question {question}; needed are two, and each question once"
            )
        first[question], second[question] = map(float, scores)
    return first, second
