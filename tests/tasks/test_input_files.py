"""Input files of all shapes: unambiguous ones are read; for others, one line has the value and the expectation."""

import decimal
import gzip
import json
import os
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.tasks import read as parts
from qgoft.tasks import sources
from qgoft.tasks.decoder.vicuna import Vicuna
from qgoft.tasks.glue.data import _read, count_data_fixes
from qgoft.tasks.read import read_json, read_parquet, read_rows
from qgoft.tasks.sources import DataFiles
from qgoft.tasks.squad.data import read_rows as read_questions
from qgoft.tasks.vtab.data import count_listed_twice
from qgoft.tasks.vtab.files import list_checksum

RTE, STSB = (compose_settings([f"task=glue/{name}"]).task for name in ("rte", "stsb"))
SQUAD = compose_settings(["task=squad/v1"]).task


def glue_file(directory, labels, task=RTE, **columns):
    rows = {name: ["a text"] * len(labels) for name in task.columns} | {"label": labels} | columns
    pa.parquet.write_table(pa.table(rows), directory / "train.parquet")
    return _read(task, "train", [directory / "train.parquet"])


@pytest.mark.parametrize(
    "labels",
    [[0, 1], [0.0, 1.0], [False, True], ["0", "1"], ["entailment", "not_entailment"], [decimal.Decimal(0), decimal.Decimal(1)]],
)
def test_labels_in_accepted_formats(tmp_path, labels):
    assert glue_file(tmp_path, labels)["label"][:] == [0, 1]


@pytest.mark.parametrize("labels", [[1.5, 5.0], ["1.5", "5"], [decimal.Decimal("1.5"), decimal.Decimal(5)]])
def test_scores_in_accepted_formats(tmp_path, labels):
    assert glue_file(tmp_path, labels, STSB)["label"][:] == [1.5, 5.0]


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (RTE, [0, 2], r"label 2 in row 1 \(1 such rows\); allowed are 0 to 1, or entailment, not_entailment"),
        (RTE, ["yes", "no"], r"label 'yes' in row 0 \(2 such rows\)"),
        (RTE, [0.5, 1.0], r"label 0\.5 in row 0"),
        (RTE, [0, None], "column label of train.parquet has 1 rows without a value"),
        (STSB, ["much", "1"], r"label 'much' in row 0 .*numbers from 0 to 5"),
        (STSB, [float("nan"), 1.0], "label nan in row 0"),
    ],
)
def test_labels_ambiguous(tmp_path, task, labels, message):
    with pytest.raises(QgoftError, match=message):
        glue_file(tmp_path, labels, task)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1, 2]), "column sentence1 of train.parquet has type int64; expected text"),
        (pa.array([["a"], ["b"]]), "has type list<"),
        (pa.array(["a", None]), "1 rows without a value"),
    ],
)
def test_text_columns_of_other_types(tmp_path, column, message):
    with pytest.raises(QgoftError, match=message):
        glue_file(tmp_path, [0, 1], sentence1=column)


def test_text_in_other_arrow_types(tmp_path):
    views = glue_file(
        tmp_path, [0, 1], sentence1=pa.array(["a", "b"], pa.string_view()), sentence2=pa.array(["c", "d"]).dictionary_encode()
    )
    assert (views["sentence1"][:], views["sentence2"][:]) == (["a", "b"], ["c", "d"])


def test_split_files_invalid(tmp_path):
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(QgoftError, match=r"folder\.parquet is a directory; expected a parquet file"):
        read_parquet([tmp_path / "folder.parquet"], "here")
    for name, columns in (("one", {"a": [1]}), ("two", {"b": [1]}), ("three", {"a": ["x"]})):
        pa.parquet.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    with pytest.raises(QgoftError, match=r"two\.parquet and the other parts have different columns"):
        read_parquet([tmp_path / "one.parquet", tmp_path / "two.parquet"], "here")
    with pytest.raises(QgoftError, match="the other parts have columns of different types"):
        read_parquet([tmp_path / "one.parquet", tmp_path / "three.parquet"], "here")
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pa.parquet.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(QgoftError, match="has the column a twice"):
        read_parquet([tmp_path / "twice.parquet"], "here")
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    pa.parquet.write_table(pa.table({"a": text}), tmp_path / "text.parquet")
    with pytest.raises(QgoftError, match="such as text that is not UTF-8"):
        read_parquet([tmp_path / "text.parquet"], "here")


def test_parquet_page_corrupt(tmp_path):
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"a": list(range(1000))}), path, compression="NONE", write_page_checksum=True, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(QgoftError, match=r"cannot be read .*it is damaged"):
        read_parquet([path], "here")


@pytest.mark.parametrize("name", ["br[1]", "a::b", "dollar$HOME", "run?", "with space", "star*", "~", "a=b", "{x}"])
def test_data_paths_are_literal(tmp_path, name):
    directory = tmp_path / name
    directory.mkdir()
    (tmp_path / "runA").mkdir(exist_ok=True)
    for place, text in ((directory, "here"), (tmp_path / "runA", "elsewhere")):
        pa.parquet.write_table(pa.table({"question": [text]}), place / "t.parquet")
    assert read_rows(directory / "t.parquet", "here", ["question"])["question"][:] == ["here"]


@pytest.mark.parametrize("content", [b'[{"question": "q"}]', b'{"question": "q"}\n'])
@pytest.mark.parametrize("packed", [True, False])
def test_byte_order_mark_is_removed(tmp_path, content, packed):
    path = tmp_path / ("t.json.gz" if packed else "t.json")
    content = b"\xef\xbb\xbf" + content
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read_rows(path, "here", ["question"])["question"][:] == ["q"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": 3}', "has type int64; expected text"),
        ('{"question": ["a"]}', "has type list"),
        ('{"question": NaN}', "has type double"),
        ('{"question": "a"}\n{"question": 3}', "have inconsistent columns"),
        ("[" * 100_000, "line 1: RecursionError"),
        ('{"question": "a"}\n3', "line 2: got a int, expected an object"),
    ],
)
def test_json_lines_malformed(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text(line + "\n")
    with pytest.raises(QgoftError, match=message):
        read_rows(tmp_path / "t.jsonl", "here", ["question"])


def test_gzip_bomb_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MOST_BYTES", 10_000)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b" " * 10_001))
    with pytest.raises(QgoftError, match="unpacks to more than"):
        read_json(tmp_path / "t.jsonl.gz", "here")


def squad_file(directory, answers):
    rows = {name: ["a text"] * len(answers) for name in ("context", "question")} | {"id": [str(i) for i in range(len(answers))]}
    pa.parquet.write_table(pa.table({**rows, "answers": answers}), directory / "train.parquet")
    files = DataFiles("directory", None, "f", {"train": (directory / "train.parquet",)})
    return read_questions(SQUAD, "train", files)["answers"][:]


@pytest.mark.parametrize(
    "answer",
    [
        {"text": ["text"], "answer_start": [2]},
        {"text": ["text"], "answer_start": [2.0]},
        [{"text": "text", "answer_start": 2}],
    ],
)
def test_squad_answers_in_accepted_formats(tmp_path, answer):
    assert squad_file(tmp_path, [answer]) == [{"text": ["text"], "answer_start": [2]}]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"text": ["text"], "answer_start": [None]}, "not one start for each"),
        ({"text": [None], "answer_start": [2]}, "has no answer"),
        ({"text": ["text"], "answer_start": [2.5]}, "whole numbers"),
        ({"text": [], "answer_start": []}, "has no answer"),
        (None, "1 rows without a value"),
        (3, "needed are a list text"),
    ],
)
def test_squad_answers_ambiguous(tmp_path, answer, message):
    whole = {"text": ["text"], "answer_start": [2]}
    answers = [answer] if answer == 3 else [whole, answer]
    with pytest.raises(QgoftError, match=message):
        squad_file(tmp_path, answers)


def test_odd_rows_are_counted():
    data = {
        "train": Dataset.from_dict({"input_ids": [[1, 2], [3]], "labels": [0, 1]}),
        "test": Dataset.from_dict({"input_ids": [[3], [4], [3]], "labels": [1, 1, 1], "idx": [0, 1, 1]}),
        "validation": Dataset.from_dict({"input_ids": [[5], [6]], "labels": [0, 1], "idx": [0, 1]}),
    }
    assert count_data_fixes(RTE, data) == {
        "rows of test that are in train": 2,
        "rows of test with an idx that comes twice": 1,
        "classes that test does not have": 1,
    }


def test_json_and_parquet_are_equal(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"question": "q"}]))
    Dataset.from_list([{"question": "q"}]).to_parquet(tmp_path / "t.parquet")
    one, two = (read_rows(tmp_path / f"t.{ending}", "here", ["question"]).to_list() for ending in ("json", "parquet"))
    assert one == two


def test_vtab_duplicate_images(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "train800.txt").write_text("a.jpg 0\nb.jpg 1\na.jpg 0\n")
    (tmp_path / "test.txt").write_text("b.jpg 1\nc.jpg 0\n")
    files = DataFiles("directory", None, "f", {split: (tmp_path / f"{split}.txt",) for split in ("train800", "test")})
    assert count_listed_twice(files) == {"images that the list train800 names twice": 1, "images of test that are in train": 1}


QUESTION = {"question_id": 1, "category": "math", "turns": ["How much?", "And then?"]}


def vicuna(directory, questions, references=()):
    (directory / "question.jsonl").write_text("".join(f"{json.dumps(line) if isinstance(line, dict) else line}\n" for line in questions))
    (directory / "references.jsonl").write_text("".join(f"{json.dumps(line) if isinstance(line, dict) else line}\n" for line in references))
    files = {name: (directory / f"{name}.jsonl",) for name in ("question", "references")}
    task = compose_settings(["task=instruct/vicuna"]).task
    suite = SimpleNamespace(settings=SimpleNamespace(task=task), run_id=SimpleNamespace(data=SimpleNamespace(files=files)))
    suite.questions = Vicuna._fastchat_questions(suite)
    Vicuna._check_numbers(suite)
    return suite.questions


def test_vicuna_questions_with_references(tmp_path):
    (question,) = vicuna(tmp_path, [QUESTION], [{"question_id": 1, "choices": [{"turns": ["Seven."]}]}])
    assert (question.number, question.instruction, question.references) == (1, "How much?", ("Seven.",))


@pytest.mark.parametrize(
    ("questions", "references", "message"),
    [
        ([QUESTION, {**QUESTION, "turns": None}], [], r"question\.jsonl, line 2: expected question_id"),
        ([{**QUESTION, "turns": []}], [], "line 1: expected question_id"),
        ([{**QUESTION, "turns": [3]}], [], "line 1: expected question_id"),
        ([{**QUESTION, "question_id": "1"}], [], "line 1: expected question_id"),
        ([{"question_id": 1}], [], "line 1: expected question_id"),
        ([QUESTION, QUESTION], [], "question_id 1 occurs twice"),
        (["[1]"], [], "line 1: got a int, expected an object"),
        ([QUESTION], ['{"question_id": 1, "cho'], r"references\.jsonl, line 1: "),
        ([QUESTION], [{"question_id": 1}], r"references\.jsonl, line 1: expected question_id and choices"),
        ([QUESTION], [{"question_id": 1, "choices": []}], "expected question_id and choices"),
        ([QUESTION], ["3"], "line 1: got a int"),
    ],
)
def test_vicuna_invalid_questions(tmp_path, questions, references, message):
    with pytest.raises(QgoftError, match=message):
        vicuna(tmp_path, questions, references)


def test_hub_error_hides_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert sources.redacted_message(OSError("Bearer hf_secret is not valid")) == "OSError: Bearer [HF_TOKEN] is not valid"


def test_vtab_replaced_image_changes_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "cache"))
    image, listed = tmp_path / "a.jpg", tmp_path / "train800.txt"
    image.write_bytes(b"one")
    os.utime(image, (1_000_000_000, 1_000_000_000))
    listed.write_text("a.jpg 0\n")
    before = list_checksum(listed)
    assert list_checksum(listed) == before
    image.write_bytes(b"two")
    os.utime(image, (1_000_000_000, 1_000_000_000))
    assert list_checksum(listed) != before
