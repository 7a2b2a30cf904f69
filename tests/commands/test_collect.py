"""Runs copied into results/measured: complete, and never over another one."""

import errno
import json
import shutil

import pytest

from qgoft.commands import collect
from qgoft.errors import QgoftError
from qgoft.records import find_records

FILES = ("history.jsonl", "predictions.jsonl.gz")


def test_collect_numbers_equal_names(repository, tmp_path, capsys):
    """LoRA on synthetic Caltech-101 and on its real images: one task, method, variant, model and seed, but two keys."""
    name = "caltech101-lora-r8-pocket-vit-seed0"
    source, target = tmp_path / "runs", tmp_path / "kept"
    for directory in sorted((repository / "results" / "measured" / "pocket").glob(f"{name}*")):
        key = json.loads((directory / "record.json").read_text())["key"]
        shutil.copytree(directory, source / key)
        (source / key / "checkpoint").mkdir()
    assert len(list(source.iterdir())) == 2
    text = (repository / "results" / "measured" / "pocket" / "rte-lora-r8-pocket-deberta-seed0" / "record.json").read_text()
    for bad, content in (("corrupt", text[:300]), ("of-other-settings", json.dumps({**json.loads(text), "key": "0" * 64}))):
        (source / bad).mkdir()
        (source / bad / "record.json").write_text(content)
    assert collect.main([str(source), str(target)]) == 0
    told = capsys.readouterr()
    assert "corrupt" in told.err
    first, second = sorted(path.name for path in target.iterdir())
    assert first == name
    assert second.startswith(f"{name}-")
    found, kept = find_records(source), find_records(target)
    assert {record["key"] for record in kept.records} == {record["key"] for record in found.records} - {"0" * 64}
    assert not kept.problems
    assert all({path.name for path in directory.iterdir()} == {"record.json", *FILES} for directory in target.iterdir())
    assert collect.main([str(source), str(target)]) == 0
    assert "0 copied" in capsys.readouterr().out
    assert collect.main([str(source), str(tmp_path / "small"), "--protocol", "small"]) == 0
    assert not list((tmp_path / "small").iterdir())


def test_collect_repeats_an_interrupted_copy(repository, tmp_path, monkeypatch):
    name = "rte-lora-r8-pocket-deberta-seed0"
    shutil.copytree(repository / "results" / "measured" / "pocket" / name, tmp_path / "runs" / "run")
    copy = shutil.copyfile

    def copy_one(source, target):
        if list(target.parent.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_one)
    with pytest.raises(OSError, match="No space"):
        collect.main([str(tmp_path / "runs"), str(tmp_path / "kept")])
    assert not find_records(tmp_path / "kept").records
    monkeypatch.setattr(shutil, "copyfile", copy)
    assert collect.main([str(tmp_path / "runs"), str(tmp_path / "kept")]) == 0
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [name]
    assert {path.name for path in (tmp_path / "kept" / name).iterdir()} == {"record.json", *FILES}


def test_collect_missing_directory(tmp_path):
    with pytest.raises(QgoftError, match="not a directory; expected one with runs"):
        collect.main([str(tmp_path / "nowhere"), str(tmp_path / "kept")])
