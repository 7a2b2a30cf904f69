"""SQuAD: windows, span search, official scores, and damaged rows."""

import gzip
import json
import string
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.models import load_tokenizer
from qgoft.pocket.weights import weights_directory
from qgoft.run_id import identify
from qgoft.tasks.sources import resolve_data, split_names
from qgoft.tasks.squad.data import ABSENT, AS_GIVEN, MOVED, answers_of, best_span, load_splits, place_answer, write_windows
from qgoft.tasks.squad.scoring import exact_match_and_f1, normalise_answer, question_scores


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(weights_directory("pocket-deberta"))


def make_windows(questions, tokenizer, length, stride, *, is_training):
    with tempfile.TemporaryDirectory() as directory:
        write_windows(questions, tokenizer, length, stride, Path(directory) / "rows.arrow", is_training=is_training)
        return Dataset.from_file(str(Path(directory) / "rows.arrow"))


def question(name="q0", context="the dog saw the cat .", text="the cat", start=12, asked="what did the dog see ?"):
    return {"id": name, "title": "t", "context": context, "question": asked, "answers": {"text": [text], "answer_start": [start]}}


def rows(*questions):
    return Dataset.from_list(list(questions))


def write(directory, train, validation):
    directory.mkdir(parents=True)
    rows(*train).to_parquet(directory / "train.parquet")
    rows(*validation).to_parquet(directory / "validation.parquet")


def settings(root, *words):
    return compose_settings(["protocol=small", "task=squad/v1", "method=qgoft", f"data.root={root}", *words])


def load(s, tokenizer):
    return load_splits(s, resolve_data(s.task, s.data, split_names(s.task, s.eval_scheme)), tokenizer, "pocket")


LONG = " ".join(
    f"the {adjective} dog saw the {animal} ." for adjective in ("red", "old", "small", "big") for animal in ("cat", "bird", "horse")
)


@pytest.mark.parametrize("length", [40, 64, 384])
def test_squad_windows_overlap(tokenizer, length):
    windows = make_windows(rows(question(context=LONG)), tokenizer, length, 8, is_training=False)
    covered = [list(zip(line["offsets"][::2], line["offsets"][1::2], strict=True)) for line in windows]
    assert len(windows) == (1 if length == 384 else len(windows)) >= 1
    assert all(len(line["input_ids"]) <= length for line in windows)
    seen = {i for part in covered for start, end in part for i in range(start, end)}
    assert {i for i, letter in enumerate(LONG) if not letter.isspace()} <= seen
    for one, two in pairwise(covered):
        assert one[-8:] == two[:8], "eight tokens are in both"
    for line in windows:
        ids = line["input_ids"]
        start, end = line["offsets"][0], line["offsets"][1]
        assert tokenizer.decode([ids[line["first"]]]).strip() == LONG[start:end].strip()


@pytest.mark.parametrize("text", ["the red dog", "horse", "dog saw the bird . the old"])
def test_squad_training_targets(tokenizer, text):
    start = LONG.rindex(text)
    windows = make_windows(rows(question(context=LONG, text=text, start=start)), tokenizer, 40, 12, is_training=True)
    found = 0
    for line in windows:
        first, last = line["start_positions"], line["end_positions"]
        if (first, last) != (0, 0):
            found += 1
            assert tokenizer.decode(line["input_ids"][first : last + 1]).split() == text.split()
    assert found >= 1
    assert len(windows) > found, "some window does not hold it"
    assert set(windows["repair"]) == {AS_GIVEN}


def test_squad_misplaced_answers(tokenizer):
    assert place_answer("a dog and a dog", "dog", 2) == (2, AS_GIVEN)
    assert place_answer("a dog and a dog", "dog", 11) == (12, MOVED)
    assert place_answer("a dog and a dog", "dog", -3) == (2, MOVED)
    assert place_answer("a dog", "cat", 2) == (-1, ABSENT)
    assert place_answer("", "cat", 0) == (-1, ABSENT)
    assert place_answer("a dog", "", 0) == (-1, ABSENT)


def test_squad_damaged_rows_are_counted(tmp_path, tokenizer):
    train = [question("a"), question("b", start=3), question("c", text="a horse"), question("d", context="")]
    write(tmp_path / "squad", train, [question("v"), question("w", context="  ", start=0)])
    parts = load(settings(tmp_path), tokenizer)
    assert parts.rows == {"train": 4, "validation": 2}
    assert set(parts.train["row"]) == {0, 1, 2, 3}
    assert sorted(parts.data_fixes.values()) == [1, 1, 1, 2]
    assert parts.is_subset
    logits = [(np.ones(len(ids)), np.ones(len(ids))) for ids in parts.windows["test:"]["input_ids"]]
    texts = answers_of(parts.questions["test:"], parts.windows["test:"], logits, n_best=20, max_tokens=30)
    assert texts[1] == "", "an empty passage has no answer"
    assert texts[0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"answers": {"text": [], "answer_start": []}}, "no answer"),
        ({"answers": {"text": ["x"], "answer_start": []}}, "not one start for each"),
        ({"question": None}, "without a value"),
        ({"id": "q0"}, "occurs twice"),
    ],
)
def test_squad_invalid_rows(tmp_path, tokenizer, broken, message):
    write(tmp_path / "squad", [question("a")], [question("q0"), {**question("q1"), **broken}])
    with pytest.raises(QgoftError, match=message):
        load(settings(tmp_path), tokenizer)


def test_squad_missing_column_and_directory(tmp_path, tokenizer):
    with pytest.raises(QgoftError, match="no squad/plain_text directory"):
        load(settings(tmp_path), tokenizer)
    write(tmp_path / "squad", [question("a")], [question("b")])
    rows(question("b")).remove_columns("answers").to_parquet(tmp_path / "squad" / "validation.parquet")
    with pytest.raises(QgoftError, match="no column answers"):
        load(settings(tmp_path), tokenizer)


def test_squad_directory_layouts(tmp_path):
    for place in ("a/squad/plain_text", "b/plain_text", "c/squad"):
        write(tmp_path / place, [question("a")], [question("b")])
    keys = {identify(settings(tmp_path / name, "model=pocket_deberta")).key for name in "abc"}
    assert len(keys) == 1
    other = identify(settings(tmp_path / "a", "model=pocket_deberta", "task.options.stride=64")).key
    assert other not in keys


def test_squad_stride_and_long_question(tokenizer):
    with pytest.raises(QgoftError, match="leave no room"):
        make_windows(rows(question()), tokenizer, 40, 30, is_training=True)
    long_question = " ".join(["what"] * 500)
    windows = make_windows(rows(question(asked=long_question, context=LONG)), tokenizer, 64, 16, is_training=False)
    assert all(len(line["offsets"]) >= 2 for line in windows), "the passage still has room"


def brute_force(start, end, n_best, max_tokens):
    starts, ends = (sorted(range(len(s)), key=lambda i: (-s[i], i))[:n_best] for s in (start, end))
    spans = [(start[i] + end[j], i, j) for i in starts for j in ends if i <= j < i + max_tokens]
    return max(spans, key=lambda span: span[0], default=None)


@pytest.mark.parametrize("seed", range(20))
def test_best_span_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    length, n_best, max_tokens = int(rng.integers(1, 60)), int(rng.integers(1, 25)), int(rng.integers(1, 12))
    start, end = rng.normal(size=length), rng.normal(size=length)
    expected = brute_force(start, end, n_best, max_tokens)
    found = best_span(start, end, n_best=n_best, max_tokens=max_tokens)
    assert (found is None) == (expected is None)
    if expected:
        assert found[0] == pytest.approx(expected[0])
        assert found[1:] == expected[1:]


def test_best_span_without_valid_pair():
    assert best_span(np.array([0.0, 9.0]), np.array([9.0, 0.0]), n_best=1, max_tokens=5) is None
    assert best_span(np.array([]), np.array([]), n_best=20, max_tokens=5) is None


def test_best_window_gives_the_answer(tokenizer):
    part = rows(question("a", context=LONG), question("b"))
    windows = make_windows(part, tokenizer, 40, 8, is_training=False)
    logits = []
    for i, line in enumerate(windows):
        start, end = (np.zeros(len(line["input_ids"])) for _ in range(2))
        start[line["first"] + 1], end[line["first"] + 2] = i + 1, i + 1
        start[0] = end[0] = 1e6  # the first token is not part of the passage: never an answer
        logits.append((start, end))
    texts = answers_of(part, windows, logits, n_best=20, max_tokens=30)
    last = [line for line in windows if line["row"] == 0][-1]
    assert texts[0] == LONG[last["offsets"][2] : last["offsets"][5]].strip()
    assert texts[1] == "dog saw"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat!", "cat"),
        ("an  apple, a day", "apple day"),
        ("Theatre of a-the", "theatre of athe"),
        ("U.S.", "us"),
        ("a", ""),
        ("\tÉcole\n", "école"),
        ("5'", "5"),
    ],
)
def test_squad_normalisation(text, normal):
    assert normalise_answer(text) == normal


def test_squad_scores_of_one_question():
    assert question_scores("the cat sat", ["cat sat", "dog"]) == (1.0, 1.0)
    assert question_scores("cat sat down", ["cat sat"]) == (0.0, pytest.approx(0.8))
    assert question_scores("", ["cat"]) == (0.0, 0.0)
    assert question_scores("cat cat", ["cat"]) == (0.0, pytest.approx(2 / 3)), "a repeated word counts once"


def test_squad_missing_and_unknown_ids():
    found = exact_match_and_f1({"a": "cat", "z": "cat"}, {"a": ["cat"], "b": ["dog"]})
    assert found == {"exact_match": 50.0, "f1": 50.0, "n": 2, "missing": 1, "unknown": 1}
    with pytest.raises(QgoftError, match="no reference"):
        exact_match_and_f1({"a": "cat"}, {"a": []})
    with pytest.raises(QgoftError, match="at least one"):
        exact_match_and_f1({}, {})


def test_pocket_squad_answers_are_in_passages(tokenizer):
    s = compose_settings(["task=squad/v1"])
    parts = load(s, tokenizer)
    assert parts.rows == {"train": 1000, "validation": 500, "test": 2000}
    assert not parts.data_fixes
    assert not parts.is_subset
    test = parts.questions["test:"]
    for row in test:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
    asked = {(row["context"], row["question"]) for row in test}
    assert len(asked) == 2000
    assert not asked & {(row["context"], row["question"]) for row in parts.questions["validation"]}
    unknown = tokenizer.unk_token_id
    assert not any(unknown in ids for ids in parts.train["input_ids"]), "every word is in the vocabulary"
    exact = [exact_match_and_f1({r["id"]: r["answers"]["text"][0] for r in test}, {r["id"]: r["answers"]["text"] for r in test})]
    assert exact[0]["exact_match"] == exact[0]["f1"] == 100
    # Most words of a passage are not an answer: guessing without understanding scores little.
    first_words = exact_match_and_f1(
        {r["id"]: " ".join(r["context"].split()[:2]) for r in test}, {r["id"]: r["answers"]["text"] for r in test}
    )
    assert first_words["exact_match"] < 15


@pytest.mark.parametrize(
    ("name", "exact", "f1"),
    [("bert_ensemble", 86.206, 92.196), ("rnet_plus_ensemble", 82.469, 88.478), ("logistic_regression", 40.142, 50.982)],
)
def test_squad_published_predictions(shared, name, exact, f1):
    validation = Dataset.from_parquet(str(shared / "data" / "squad" / "validation.parquet"))
    references = {row["id"]: row["answers"]["text"] for row in validation}
    with gzip.open(shared / "data" / "squad" / "predictions" / f"{name}.json.gz", "rt") as file:
        found = exact_match_and_f1(json.load(file), references)
    assert (round(found["exact_match"], 3), round(found["f1"], 3)) == (exact, f1)
    assert found["n"] == 10570
    assert (found["missing"] > 0) == (name == "logistic_regression")


def test_squad_real_questions(shared, tokenizer):
    s = compose_settings(["protocol=small", "task=squad/v1", "method=qgoft", f"data.root={shared / 'data'}"])
    files = resolve_data(s.task, s.data, split_names(s.task, s.eval_scheme))
    assert files.files["train"][0].name == "train.parquet", "without the further articles"
    assert [path.name for path in files.files["validation"]] == ["validation.parquet"]


def test_squad_ascii_punctuation():
    assert normalise_answer(string.punctuation) == ""
    assert normalise_answer("«x»") == "«x»"
