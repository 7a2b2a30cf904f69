"""Tasks of several splits: formats, damage, and locations."""

import gzip
import json
import os
from types import SimpleNamespace

import pytest
from datasets import Dataset

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.records import store
from qgoft.tasks import sources
from qgoft.tasks.model_files import WEIGHT_PATTERNS
from qgoft.tasks.part_files import checksum
from qgoft.tasks.read import read_rows
from qgoft.tasks.sources import remote_size, repositories, resolve_files

ROWS = [{"question": "q1", "answer": "#### 1"}, {"question": "q2", "answer": "#### 2"}]
LINES = "\n".join(map(json.dumps, ROWS)) + "\n"


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.jsonl.gz", "t.json", "t.json.gz"])
def test_formats_give_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        Dataset.from_list(ROWS).to_parquet(path)
    else:
        content = (LINES if "jsonl" in name else json.dumps(ROWS)).encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert list(read_rows(path, "here", ["question", "answer"])) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", LINES.encode()[:-20], "line 2: Expecting property name"),
        ("t.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12], "cannot be read"),  # a time stamp would be in the name of the test
        ("t.parquet", b"PAR1 and no more", "cannot be read"),
        ("t.json", b"[1, 2]", "line 1: got a int, expected an object"),
        ("t.json", b"[]", "has no"),
        ("t.jsonl", b'{"question": "q"}\n', "no column answer"),
        ("t.jsonl", b'{"question": "q", "answer": null}\n{"question": "q", "answer": "a"}\n', "1 rows without a value"),
        ("t.jsonl", b"\xff\xfe\x00", "is not text in UTF-8"),
    ],
)
def test_read_damaged_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QgoftError, match=message) as caught:
        read_rows(tmp_path / name, "math/gsm8k, test part", ["question", "answer"])
    assert "math/gsm8k, test part" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_split_missing_on_the_hub(tmp_path):
    s = compose_settings(["protocol=psoft_iclr26", "task=commonsense/boolq", "method=psoft"])
    with pytest.raises(QgoftError, match=r"split train of commonsense/boolq has no known hub .* commonsense/commonsense_15k/train"):
        resolve_files(s.task, s.data)


def test_split_missing_in_directory(tmp_path):
    s = compose_settings(["protocol=psoft_iclr26", "task=commonsense/boolq", "method=psoft", f"data.root={tmp_path}"])
    with pytest.raises(QgoftError, match="no split train of commonsense/boolq; expected <root>/commonsense/commonsense_15k/train"):
        resolve_files(s.task, s.data)


def test_hub_repositories_of_a_task():
    s = compose_settings(["protocol=goft_icml24", "task=instruct/mmlu"])
    assert set(repositories(s.task)) == {"yahma/alpaca-cleaned", "cais/mmlu"}
    assert "all/test-*.parquet" in repositories(s.task)["cais/mmlu"]


def test_checksum_of_selected_splits():
    parts = {"train": "a", "test": "b"}
    assert checksum(parts) != checksum(parts, ["train"])
    assert checksum(parts, ["train"]) == checksum({"train": "a", "test": "other"}, ["train"])


def test_replaced_file_is_read_again(tmp_path, monkeypatch):
    """As rsync and tar do. The library's own cache is keyed by path and time."""
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "t.parquet"
    for answer in ("old", "new"):
        Dataset.from_list([{"answer": answer}]).to_parquet(path)
        os.utime(path, (1_000_000_000, 1_000_000_000))
        store._file_sha256.cache_clear()  # in another process
        assert read_rows(path, "here", ["answer"])["answer"][:] == [answer]


def test_json_lines_end_with_newlines(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "a\u2028b\x85c"}\r\n{"question": "d"}\n', encoding="utf-8", newline="")
    assert read_rows(path, "here", ["question"])["question"][:] == ["a\u2028b\x85c", "d"]


@pytest.mark.parametrize(
    ("listed", "size"),
    [
        ({"config.json": 1, "model.safetensors": 20, "pytorch_model.bin": 300}, 21),
        ({"config.json": 1, "pytorch_model.bin": 300, "training.bin": 4000}, 301),
        ({"config.json": 1, "pytorch_model.bin": None}, None),
        ({"README.md": 1}, None),
    ],
)
def test_announced_size_is_the_download(monkeypatch, listed, size):
    """DeBERTaV3-base has no safetensors file."""
    files = [SimpleNamespace(rfilename=name, size=bytes_) for name, bytes_ in listed.items()]
    monkeypatch.setattr(sources, "_repo_info", lambda *_, **__: SimpleNamespace(siblings=files))
    assert remote_size("here/there", "model", "main", ["*.json"], WEIGHT_PATTERNS) == size
