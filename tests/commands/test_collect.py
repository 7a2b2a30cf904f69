"""Runs added to an archive: complete, and never in place of another one."""

import copy
import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qgoft import load_results
from qgoft.commands import collect
from qgoft.errors import QgoftError
from qgoft.records import RecordError, file_checksums, find_records, read_record, write_record
from qgoft.records.retention import write_retention
from tests.committed import committed, select, write_run


@pytest.fixture
def runs(tmp_path):
    """Directories of four runs: two on Caltech-101 that differ in their images only, one of a decoder, one of SQuAD."""
    chosen = select("caltech101", method="lora", variant="r8", model="pocket-vit", seed=0)
    assert len({record["key"] for record in chosen}) == 2
    chosen += [*select("gsm8k", method="qgoft", seed=0)[:1], *select("v1", method="goft", seed=0)[:1]]
    for record in chosen:
        write_run(record, tmp_path / "runs" / record["key"])
    return tmp_path / "runs"


def test_collect_adds_complete_runs(runs, tmp_path, capsys):
    target = tmp_path / "kept"
    assert collect.main([str(runs), str(target)]) == 0
    assert "4 added" in capsys.readouterr().out
    source, kept = find_records(runs), find_records(target)
    assert not kept.problems
    assert {r["key"]: r for r in kept.records} == {r["key"]: r for r in source.records}
    for key, files in source.files.items():
        assert kept.files[key].answers() == files.answers() == committed().files[key].answers()
        for name in ("loss", "score", "penalty", "orthogonality", "lr"):
            assert kept.files[key].curve(name) == files.curve(name)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert set(before) == {"records.parquet", "curves.parquet", "predictions.parquet"}
    assert collect.main([str(runs), str(target)]) == 0
    assert "0 added" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert collect.main([str(runs), str(tmp_path / "small"), "--protocol", "small"]) == 0
    assert not (tmp_path / "small").exists()


def test_archive_does_not_depend_on_the_order_of_additions(runs, tmp_path):
    collect.main([str(runs), str(tmp_path / "at once")])
    for directory in sorted(runs.iterdir(), reverse=True):
        collect.main([str(directory), str(tmp_path / "one by one")])
    for name in ("records.parquet", "curves.parquet", "predictions.parquet"):
        assert (tmp_path / "at once" / name).read_bytes() == (tmp_path / "one by one" / name).read_bytes()


def test_collect_names_what_it_leaves(runs, tmp_path, capsys):
    target = tmp_path / "kept"
    torn, repeated, modified, foreign = sorted(runs.iterdir())
    collect.main([str(repeated), str(target)])
    (torn / "record.json").write_text((torn / "record.json").read_text()[:300])
    again = copy.deepcopy(read_record(repeated / "record.json"))
    again["metrics"][again["primary"]]["value"] += 1.0
    write_record(repeated, again)
    (modified / "history.jsonl").write_text("")
    other = copy.deepcopy(read_record(foreign / "record.json"))
    other["key"] = "0" * 64
    write_record(runs / "foreign", {**other, "files": file_checksums(foreign)})
    for name in ("history.jsonl", "predictions.jsonl.gz"):
        os.link(foreign / name, runs / "foreign" / name)
    before = find_records(target).records
    capsys.readouterr()
    assert collect.main([str(runs), str(target)]) == 0
    told = capsys.readouterr()
    assert "1 added" in told.out
    left = [line for line in told.err.splitlines() if line.startswith("qgoft: left: ")]
    assert len(left) == 4
    for part in (f"{torn}/record.json: ", "another result of this run", f"{modified}/history.jsonl: it differs", "gives it another key"):
        assert any(part in line for line in left), told.err
    assert [r for r in find_records(target).records if r["key"] == repeated.name] == before


def test_collect_repeats_an_interrupted_write(runs, tmp_path, monkeypatch):
    """Whatever file could not be written, the runs of before are still complete, and the next command adds the others."""
    first, *_ = sorted(runs.iterdir())
    for number, name in enumerate(("curves.parquet", "predictions.parquet", "records.parquet")):
        target, replace = tmp_path / f"kept{number}", os.replace
        collect.main([str(first), str(target)])

        def full(source, destination, name=name, replace=replace):
            if str(destination).endswith(name):
                raise OSError(28, "No space left on device")
            return replace(source, destination)

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            collect.main([str(runs), str(target)])
        monkeypatch.setattr(os, "replace", replace)
        found = find_records(target)
        assert ([r["key"] for r in found.records], list(found.files), found.problems) == ([first.name], [first.name], [])
        collect.main([str(runs), str(target)])
        assert len(find_records(target).files) == 4


def test_collect_refuses_a_damaged_archive(runs, tmp_path):
    collect.main([str(runs), str(tmp_path / "kept")])
    path = tmp_path / "kept" / "curves.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="nothing was added"):
        collect.main([str(runs), str(tmp_path / "kept")])
    assert len(path.read_bytes()) == len(whole) // 2


def test_collect_refuses_values_that_are_not_numbers(runs, tmp_path):
    directory, *_ = sorted(runs.iterdir())
    (directory / "history.jsonl").write_text(json.dumps({"step": 1, "loss": "low"}) + "\n")
    record = read_record(directory / "record.json")
    write_record(directory, {**record, "files": file_checksums(directory)})
    with pytest.raises(RecordError, match=f"run {directory.name[:16]}"):
        collect.main([str(runs), str(tmp_path / "kept")])
    assert not (tmp_path / "kept").exists()


def test_collect_missing_directory(tmp_path):
    with pytest.raises(QgoftError, match="not a directory; expected one with runs"):
        collect.main([str(tmp_path / "nowhere"), str(tmp_path / "kept")])


def test_collect_leaves_incomplete_runs(runs, tmp_path, capsys):
    """A run is never replaced, so one without its curve would stay without it."""
    first, *_ = sorted(runs.iterdir())
    history = (first / "history.jsonl").read_bytes()
    (first / "history.jsonl").unlink()
    target = tmp_path / "kept"
    assert collect.main([str(runs), str(target)]) == 0
    told = capsys.readouterr()
    assert "3 added" in told.out
    assert "history.jsonl is missing in" in told.err
    (first / "history.jsonl").write_bytes(history)
    assert collect.main([str(runs), str(target)]) == 0
    assert "1 added" in capsys.readouterr().out
    assert not find_records(target).problems


def test_collect_reads_archives(runs, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    collect.main([str(runs), str(one)])
    capsys.readouterr()
    assert collect.main([str(one), str(two)]) == 0
    assert "4 added" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {path.name: path.read_bytes() for path in two.iterdir()}


def measured(key, percent):
    """Return a measurement of a run with one probe."""
    value = {"value": 80.0, "n": 100, "standard_error": 4.0, "chance": 50.0, "higher_is_better": True}
    probes = {"transfer/rte": value}
    step = {"t": 1.0, "target": value, "probes": {"transfer/rte": {**value, "value": 50 + 0.3 * percent}}}
    times = {"started": "2026-11-29T00:00:00+00:00", "finished": "2026-11-29T00:01:00+00:00"}
    content = {"schema": 1, "key": "0" * 64, "run": key, "settings": {}, "path": "linear", "pretrained": probes, "steps": [step]}
    return {**content, "geometry": {"layers": {}, "summary": {}}, **times, "provenance": {}}


def test_collect_adds_retention_with_a_run_or_later(runs, tmp_path, capsys):
    target = tmp_path / "kept"
    first, second, *_ = sorted(runs.iterdir())
    write_retention(first, measured(first.name, 90))
    assert collect.main([str(runs), str(target)]) == 0
    write_retention(second, measured(second.name, 70))
    assert collect.main([str(runs), str(target)]) == 0
    assert "0 added" in capsys.readouterr().out.splitlines()[-1]
    found = find_records(target)
    assert not found.problems
    assert {key: files.retention() for key, files in found.files.items() if files.retention()} == {
        first.name: measured(first.name, 90),
        second.name: measured(second.name, 70),
    }
    frame = load_results(target).set_index("key")
    assert frame.retention[first.name] == pytest.approx(90)
    assert frame.retention.notna().sum() == 2
    table = pd.read_parquet(target / "records.parquet").set_index("key")
    assert table.retention[second.name] == pytest.approx(70)
    write_retention(second, measured(second.name, 60))
    assert collect.main([str(runs), str(target)]) == 0
    assert "the archive has another retention of this run" in capsys.readouterr().err
    assert find_records(target).files[second.name].retention() == measured(second.name, 70)


def test_corrupt_retention_in_an_archive_is_named(runs, tmp_path):
    target = tmp_path / "kept"
    first, second, *_ = sorted(runs.iterdir())
    for directory in (first, second):
        write_retention(directory, measured(directory.name, 90))
    collect.main([str(runs), str(target)])
    table = pq.read_table(target / "retention.parquet")
    texts = table["retention"].to_pylist()
    changed = table.set_column(1, "retention", pa.array([texts[0].replace("80.0", "81.0"), texts[1]]))
    pq.write_table(changed, target / "retention.parquet")
    found = find_records(target)
    assert f"run {first.name[:16]}: its checksum does not match" in found.problems[0]
    assert found.files[first.name].retention() is None
    assert found.files[second.name].retention() is not None
    (target / "retention.parquet").write_bytes(b"PAR1")
    assert "the retention of these runs is not used" in find_records(target).problems[0]
    with pytest.raises(RecordError, match="nothing was added"):
        collect.main([str(runs), str(target)])
