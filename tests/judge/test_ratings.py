"""Ratings in judgments, and statistics of ratings."""

import pytest

from qgoft.judge.f1_judge import rate
from qgoft.judge.ratings import NoRating, bootstrap_interval, median_ratings, paired_interval, read_rating, win_tie_loss


def test_rating_in_double_or_single_brackets():
    assert read_rating("Good. Rating: [[7]]") == 7
    assert read_rating("Rating: [[8.5]]") == 8.5
    assert read_rating("Rating: [6]") == 6
    assert read_rating("[[5]] and again [[5]]") == 5
    assert read_rating("a list [1, 2], Rating: [[9]]") == 9
    assert read_rating("Rating: [[8/10]]") == 8
    assert read_rating("[[ 8 ]]") == 8
    assert read_rating("As in source [1], fine. Rating: 9/10") == 9
    assert read_rating("See [2]. **Rating**: [7]") == 7
    assert read_rating("<think> a draft, [[5]] </think> [[8]]") == 8


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot rate", "no rating"),
        ("", "no rating"),
        ("As in source [1], fine.", "no rating"),
        ("<think> [[5]] and so on", "thoughts without an end"),
        ("Rating: [[8/5]]", "no rating"),
        ("[[3]] or [[4]]", "several"),
        ("[[11]]", "outside"),
        ("[[0]]", "outside"),
        ("[[-3]]", "outside"),
    ],
)
def test_rating_missing(text, reason):
    with pytest.raises(NoRating, match=reason):
        read_rating(text)


def test_median_of_available_ratings():
    judgments = [
        {"question_id": 1, "rating": 2.0},
        {"question_id": 1, "rating": 9.0},
        {"question_id": 1, "rating": 8.0},
        {"question_id": 2, "rating": None},
        {"question_id": 3, "rating": 4.0},
    ]
    assert median_ratings(judgments) == {1: 8.0, 3: 4.0}


def test_wins_count_common_questions():
    assert win_tie_loss({1: 5, 2: 5, 3: 9, 4: 1}, {1: 4, 2: 5, 3: 10}) == (1, 1, 1)


def test_bootstrap_interval_contains_the_mean():
    low, high = bootstrap_interval([1.0, 10.0] * 40)
    assert low < 5.5 < high
    assert bootstrap_interval([3.0] * 5) == (3.0, 3.0)
    low, high = paired_interval({i: i + 1.0 for i in range(20)}, {i: float(i) for i in range(20)})
    assert (low, high) == (1.0, 1.0)


def test_rule_judge_is_exact():
    right = ["a dog", "an animal"]
    assert rate("an animal", right)[0] == 10
    assert rate("a cat", right) == (1 + round(8 * 0.5), "F1 0.50 with 'a dog'")
    assert rate("", right)[0] == 1
    # All words, but in another order: nearly right.
    assert rate("dog a", right)[0] == 9
