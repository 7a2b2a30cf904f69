"""Published pairwise reviews of Vicuna-Eval (2023): two scores per question."""

import gzip
import json
from pathlib import Path
from typing import Any


def read_reviews(path: Path) -> tuple[dict[Any, float], dict[Any, float]]:
    """Return question -> score of the first and of the second model, from the field `score`. In three of eighty reviews of a file the first
    line of the text, where the judge should write the two numbers, holds something else.

    Raises:
        ValueError: a review does not have two scores, or a question is repeated.
    """
    first: dict[Any, float] = {}
    second: dict[Any, float] = {}
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for number, line in enumerate(content.splitlines(), start=1):
        review = json.loads(line)
        question, scores = review["question_id"], review["score"]
        if len(scores) != 2 or question in first:
            raise ValueError(
                f"{path.name}, line {number}: {len(scores)} scores of question {question}; expected two, and each question once"
            )
        first[question], second[question] = map(float, scores)
    return first, second
