"""The published reviews give the sums that are stated for them."""

import json

import pytest

from qgoft.judge.ratings import win_tie_loss
from qgoft.judge.reviews import read_reviews


@pytest.mark.parametrize(
    ("model", "sums"), [("alpaca-13b", (583, 704)), ("bard", (664, 655.5)), ("gpt35", (693, 638)), ("llama-13b", (513, 694))]
)
def test_published_sums(shared, model, sums):
    ours, theirs = read_reviews(shared / "data" / "vicuna" / "gpt4_review_2023" / f"review_{model}_vicuna-13b.jsonl.gz")
    assert (sum(ours.values()), sum(theirs.values())) == sums
    assert sum(win_tie_loss(ours, theirs)) == 80


def test_a_question_that_comes_twice(tmp_path):
    line = json.dumps({"question_id": 1, "score": [5, 6]})
    (tmp_path / "r.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_reviews(tmp_path / "r.jsonl")
