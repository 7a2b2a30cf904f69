"""Archives and `load_results`: nothing is lost, and what is damaged is named."""

import copy
import hashlib
import json
import re
import shutil
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import qgoft
from qgoft.commands import collect
from qgoft.errors import QgoftError
from qgoft.records import find_records, read_record, write_record
from qgoft.records.archive import pack_run, write_archive
from qgoft.records.flat import flat_row
from qgoft.report.charts import curves_chart
from qgoft.report.items import ITEMS
from qgoft.report.library import RecordLibrary
from qgoft.report.paired_table import build_paired
from qgoft.report.row import Row
from qgoft.report.score_table import build_table
from tests.committed import ARCHIVE, committed, select, write_run

NAMES = ("records.parquet", "curves.parquet", "predictions.parquet")
# Columns of records.parquet that are not results.
INTERNAL = ["curve_sha256", "predictions_sha256", "record"]


@pytest.fixture
def archive(tmp_path):
    for record in select("rte", method="lora", variant="r8", model="pocket-deberta"):
        write_run(record, tmp_path / "runs" / record["key"])
    collect.main([str(tmp_path / "runs"), str(tmp_path / "kept")])
    return tmp_path / "kept"


def rewrite(path, change):
    """Replace a table by a changed one that has the same metadata."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def replaced(table, name, values):
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def test_read_archive_names_damage(archive):
    keys = sorted(committed_keys := [record["key"] for record in find_records(archive).records])
    assert len(keys) == len(committed_keys) == 3
    original = {name: (archive / name).read_bytes() for name in NAMES}
    one = keys[1]

    def changes(name, change):
        for each, content in original.items():
            (archive / each).write_bytes(content)
        change(archive / name)
        return find_records(archive)

    unreadable = {
        "not readable as a Parquet file": lambda path: path.write_bytes(original[path.name][:-20]),
        "not a file of `python scripts/collect.py`": lambda path: pq.write_table(pa.table({"key": ["a"]}), path),
        "archive version 2; this version of qgoft reads 1": lambda path: pq.write_table(
            pq.read_table(path).replace_schema_metadata({b"qgoft.archive": b"2"}), path
        ),
        "columns are missing: key": lambda path: rewrite(path, lambda table: table.drop_columns(["key"])),
        "columns of another type: key (int64)": lambda path: rewrite(
            path, lambda table: table.drop_columns(["key"]).append_column("key", pa.array(range(len(table))))
        ),
    }
    for reason, change in unreadable.items():
        for name in NAMES:
            found = changes(name, change)
            (problem,) = found.problems
            assert problem.startswith(f"{archive / name}: {reason}")
            assert len(found.records) == (0 if name == "records.parquet" else 3)
            assert not found.files
    found = changes(
        "records.parquet",
        lambda path: rewrite(path, lambda t: replaced(t, "record", [r.replace('"seed": 1', '"seed": 7') for r in t["record"].to_pylist()])),
    )
    assert len(found.records) == 2
    assert "its checksum does not match: it was modified" in found.problems[0]
    for name, column in (("curves.parquet", "loss"), ("predictions.parquet", "prediction")):

        def modify(table, column=column):
            mine = [key == one for key in table["key"].to_pylist()]
            return replaced(
                table,
                column,
                [None if value is None else value + is_mine for value, is_mine in zip(table[column].to_pylist(), mine, strict=True)],
            )

        found = changes(name, lambda path, modify=modify: rewrite(path, modify))
        assert len(found.records) == 3
        assert sorted(found.files) == [key for key in keys if key != one]
        assert f"1 runs differ from their checksums in records.parquet ({one[:16]})" in found.problems[0]
        found = changes(name, lambda path: rewrite(path, lambda table: table.slice(0, len(table) - 1)))
        assert sorted(found.files) == keys[:-1]
        found = changes(name, lambda path: path.unlink())
        assert len(found.records) == 3
        assert not found.files


def test_two_records_of_one_key(archive, tmp_path):
    """In an archive and in directories: equal ones are one run, otherwise the one that finished last counts, and both are named."""
    found = find_records(tmp_path)
    assert len(found.records) == 3
    assert not found.problems
    directory, *_ = (tmp_path / "runs").iterdir()
    record = read_record(directory / "record.json")
    record["metrics"][record["primary"]]["value"] += 1.0
    write_record(directory, {**record, "finished": "2030-01-01T00:00:00+00:00"})
    found = find_records(tmp_path)
    assert "2030-01-01T00:00:00+00:00" in {record["finished"] for record in found.records}
    (problem,) = found.problems
    assert f"another result of run {record['key'][:16]}" in problem
    assert str(directory) in problem
    assert str(archive / "records.parquet") in problem
    rewrite(archive / "records.parquet", lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    found = find_records(archive)
    assert len(found.records) == 3
    assert not found.problems, "a row that comes twice is one run"


def test_conversion_lost_nothing():
    """converted.json has what the directories of runs held before they became archives; runs added since are left out."""
    for protocol, before in json.loads((Path(__file__).parent / "converted.json").read_text()).items():
        found = find_records(ARCHIVE / protocol)
        old = [record for record in found.records if record["finished"] < "2026-11-29T16:00:00"]
        files = [found.files[record["key"]] for record in old]
        scores = sorted(f"{record['key']} {record['metrics'][record['primary']]['value']!r}" for record in old)
        assert before == {
            "records": len(old),
            "suites": {suite: sum(record["suite"] == suite for record in old) for suite in before["suites"]},
            "files": len(files),
            "answers": sum(len(answers.items) for run in files if (answers := run.answers())),
            "losses": sum(len(run.curve("loss")) for run in files),
            "scores": hashlib.sha256("\n".join(scores).encode()).hexdigest(),
        }


def test_load_results_agrees_with_parquet():
    frame = qgoft.load_results(ARCHIVE)
    stored = pandas.concat([pandas.read_parquet(path) for path in sorted(ARCHIVE.glob("*/records.parquet"))])
    stored = stored.drop(columns=INTERNAL).set_index("key").loc[frame["key"]].reset_index()[list(frame.columns)]
    assert len(frame) == len(stored) > 1500
    for name in frame.columns:
        pandas.testing.assert_series_equal(frame[name], stored[name], check_dtype=False)
    record = next(record for record in committed().records if record["task"] == "rte")
    row = frame[frame["key"] == record["key"]].iloc[0]
    assert {name: row[name] for name in ("task", "score", "params", "label")} == {
        name: flat_row(record)[name] for name in ("task", "score", "params", "label")
    }


def test_query_of_the_readme(repository):
    """It selects one run per method, task and seed, and its means are those of README's table."""
    readme = (repository / "README.md").read_text()
    results = qgoft.load_results(ARCHIVE)
    chosen = results.query(re.search(r'results\.query\("(.+)"\)', readme)[1])
    assert not chosen.duplicated(["label", "task", "seed"]).any()
    assert chosen["label"].nunique() > 20
    means = chosen.pivot_table("score", "label", "task")
    (printed,) = re.findall(r"^\| LoRA r=8 \| [\d,]+ \| ([\d.]+) ±[\d.]+ \| ([\d.]+) ±", readme, re.MULTILINE)
    assert tuple(f"{means.loc['lora@r8', task]:.1f}" for task in ("cola", "rte")) == printed


def test_load_results_of_runs_and_archives(archive, tmp_path):
    both = qgoft.load_results([archive, tmp_path / "runs"])
    assert len(both) == 3
    pandas.testing.assert_frame_equal(both, qgoft.load_results(archive / "records.parquet"))
    with pytest.raises(QgoftError, match="no such file or directory"):
        qgoft.load_results(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(QgoftError, match="no record"):
        qgoft.load_results(tmp_path / "empty")
    (archive / "records.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match="not readable as a Parquet file"):
        assert len(qgoft.load_results([archive, tmp_path / "runs"])) == 3


def test_archive_without_any_curve_or_answer(tmp_path):
    """As of a method that trains nothing."""
    record = select("cola", method="lora", seed=0)[0]
    write_archive(tmp_path, [pack_run(record, [], None)])
    found = find_records(tmp_path)
    assert found.problems == []
    assert found.records == [record]
    assert found.files[record["key"]].curve("loss") == []
    assert found.files[record["key"]].answers() is None


@pytest.mark.parametrize("metadata", [{b"qgoft.archive": b"\xff"}, {b"qgoft.archive": b"2"}, {}])
def test_foreign_version(archive, tmp_path, metadata):
    shutil.copytree(archive, tmp_path / "copy")
    path = tmp_path / "copy" / "records.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    found = find_records(tmp_path / "copy")
    assert found.records == []
    assert len(found.problems) == 1


def test_load_results_of_two_results_of_one_run(archive, tmp_path):
    (record, *_) = find_records(archive).records
    later = copy.deepcopy(record)
    later["metrics"][later["primary"]]["value"] += 1.0
    later["finished"] = "2099-01-01T00:00:00+00:00"
    write_archive(tmp_path / "later", [pack_run(later, [], None)])
    for paths in ([archive, tmp_path / "later"], [tmp_path / "later", archive]):
        with pytest.warns(UserWarning, match="the one that finished last is used"):
            frame = qgoft.load_results(paths)
        assert frame.set_index("key").loc[record["key"], "score"] == later["metrics"][later["primary"]]["value"]


def test_tables_of_archives_are_those_of_directories(tmp_path):
    chosen = [
        r for method in ("lora", "goft") for r in select("rte", method=method, model="pocket-deberta") if r["variant"] in ("r8", "goft")
    ]
    for record in chosen:
        write_run(record, tmp_path / "runs" / record["key"])
    collect.main([str(tmp_path / "runs"), str(tmp_path / "kept")])
    shown = []
    for root in (tmp_path / "runs", tmp_path / "kept"):
        library = RecordLibrary.read(root)
        by_method = {name: [r for r in library.index.records if r["method"] == name] for name in ("lora", "goft")}
        rows = [Row(name, {"rte": sorted(some, key=lambda r: (r["seed"], r["key"]))[:3]}) for name, some in by_method.items()]
        item = ITEMS["flexibility"]
        table, paired = (build("flexibility", rows, item, library.bootstrap) for build in (score_table, build_paired))
        curves = curves_chart(rows, "rte", library.files)
        shown.append((table.markdown(), table.sources, paired.markdown(), curves))
    assert shown[0] == shown[1]
    assert "(" in shown[0][2], "the answers of both forms give intervals"


def score_table(_, rows, item, bootstrap):
    return build_table("glue", "pocket", rows, item=item, bootstrap=bootstrap)
