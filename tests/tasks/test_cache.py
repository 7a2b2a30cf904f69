"""Cached rows are reused, except after a change of an input or of a byte."""

import pytest
from datasets import Dataset

from qgoft.errors import QgoftError
from qgoft.tasks.cache import cached_rows


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path))
    return tmp_path / "rows"


class Maker:
    def __init__(self):
        self.calls = 0

    def __call__(self, path):
        self.calls += 1
        made = Dataset.from_dict({"input_ids": [[1, 2], [3]], "labels": [0, self.calls]})
        made.map(lambda row: row, cache_file_name=str(path), new_fingerprint="made")


def test_cache_builds_rows_once(cache):
    make = Maker()
    first, second = (cached_rows({"rows": "a", "length": 3}, make) for _ in range(2))
    assert make.calls == 1
    assert first[:] == second[:] == {"input_ids": [[1, 2], [3]], "labels": [0, 1]}
    assert first.features == second.features
    assert [path.name for path in cache.iterdir()] == [next(cache.iterdir()).name], "nothing is left over"


def test_cache_rebuilds_after_changes(cache):
    make = Maker()
    cached_rows({"rows": "a", "length": 3}, make)
    cached_rows({"rows": "a", "length": 4}, make)
    cached_rows({"rows": "b", "length": 3}, make)
    assert make.calls == 3


@pytest.mark.parametrize("name", ["rows.arrow", "checksum.txt"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_cache_rebuilds_damaged_entries(cache, name, damage):
    make = Maker()
    cached_rows({"rows": "a"}, make)
    path = next(cache.iterdir()) / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    assert cached_rows({"rows": "a"}, make)["labels"][:] == [0, 2]
    assert cached_rows({"rows": "a"}, make)["labels"][:] == [0, 2], "and kept"
    assert make.calls == 2


def test_cache_concurrent_builds(cache):
    make = Maker()

    def later(path):
        make(path)
        if make.calls == 1:
            cached_rows({"rows": "a"}, make)  # it was first

    assert cached_rows({"rows": "a"}, later)["labels"][:] == [0, 2]
    assert len(list(cache.iterdir())) == 1


def test_cache_not_writable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(QgoftError, match="set QGOFT_CACHE to a directory with free space"):
        cached_rows({"rows": "a"}, Maker())


def test_cache_build_error_leaves_nothing(cache):
    def write(path):
        path.write_bytes(b"half")
        raise QgoftError("a picture is damaged")

    with pytest.raises(QgoftError, match="damaged"):
        cached_rows({"rows": "a"}, write)
    assert not list(cache.iterdir())
