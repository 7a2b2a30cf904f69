"""Retention of finished runs: the file next to the record, its reuse, and what cannot be measured."""

import dataclasses
import json
import shutil

import pytest

from qgoft.commands import retention as command
from qgoft.config.compose import compose_settings
from qgoft.config.retention import retention_settings
from qgoft.errors import QgoftError
from qgoft.lease import Lease, LeaseHeld
from qgoft.records import RecordError, find_records, read_record, write_record
from qgoft.records.retention import RETENTION, read_retention, retention_of, step_at
from qgoft.retention import measure
from qgoft.retention.measure import measure_retention
from qgoft.run_id import identify
from qgoft.train.rescore import Sources, open_run
from qgoft.train.run import run

SMALL = ["retention.tasks=[glue/qqp,glue/sst2]", "retention.train_rows=200", "retention.test_rows=100"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = {}
    for name, words in {
        "qgoft": ["task=glue/rte"],
        "random": ["task=glue/rte", "model=pocket_deberta_random"],
        "gsm8k": ["task=math/gsm8k"],
    }.items():
        s = compose_settings([f"results.root={root}", "method=qgoft", *words, "train.max_steps=10", "selection=last"])
        assert run(s)["status"] == "done"
        made[name] = identify(s).directory
    return made


@pytest.fixture
def copy(finished, tmp_path):
    """Return a function that copies the directory of a run."""
    return lambda name="qgoft": shutil.copytree(
        finished[name], tmp_path / "runs" / finished[name].name, ignore=shutil.ignore_patterns(RETENTION)
    )


def asked(*words, suite="glue"):
    return retention_settings("pocket", suite, [*(SMALL if suite == "glue" else []), *words])


def opened(directory):
    return open_run(directory, Sources())


@pytest.mark.parametrize("name", ["qgoft", "random"])
def test_measures_a_run(copy, name):
    """At t = 0 the probes are those of the untouched backbone, at t = 1 the target is the run's own score."""
    directory = copy(name)
    found = measure_retention(opened(directory), asked())
    record = read_record(directory / "record.json")
    assert read_retention(directory, record["key"]) == found
    assert found["run"] == record["key"]
    assert [step["t"] for step in found["steps"]] == [0, 0.25, 0.5, 0.75, 1]
    assert step_at(found, 0)["probes"] == found["pretrained"]
    assert retention_of(found, 0.0) == pytest.approx(100)
    assert step_at(found, 1)["target"]["value"] == pytest.approx(record["metrics"]["accuracy"]["value"], abs=0.1)
    assert list(found["pretrained"]) == ["transfer/qqp", "transfer/sst2"]
    assert found["path"] == "angles or blocks"
    assert len(found["geometry"]["layers"]) == 18
    assert found["provenance"]["packages"]["torch"]
    assert set(found["provenance"]["probes"]) == {"transfer/qqp", "transfer/sst2"}
    assert not (directory / "retention").exists()


def test_finished_measurement_is_not_repeated(copy, monkeypatch):
    directory = copy()
    first = measure_retention(opened(directory), asked("retention.steps=0,1"))
    monkeypatch.setattr(measure, "_measure", lambda *_: pytest.fail("measured again"))
    assert measure_retention(opened(directory), asked("retention.steps=0,1")) == first
    monkeypatch.undo()
    other = measure_retention(opened(directory), asked("retention.steps=1"))
    assert other["key"] != first["key"]
    assert read_retention(directory, other["run"]) == other


def test_pretrained_values_are_measured_once(copy, monkeypatch, tmp_path):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "cache"))
    directory = copy()
    calls = []
    monkeypatch.setattr(measure.Transfer, "measure", (lambda own: lambda *given: calls.append(1) or own(*given))(measure.Transfer.measure))
    first = measure_retention(opened(directory), asked("retention.steps=1"))
    again = measure_retention(opened(directory), asked("retention.steps=0,1"))
    assert len(calls) == 3, "the pretrained backbone once, the tuned one twice"
    assert again["pretrained"] == first["pretrained"]
    for path in (tmp_path / "cache" / "retention").iterdir():
        path.write_text("{")
    (directory / RETENTION).unlink()
    assert measure_retention(opened(directory), asked("retention.steps=1"))["pretrained"] == first["pretrained"]


def test_decoder(copy):
    directory = copy("gsm8k")
    found = measure_retention(opened(directory), asked("retention.steps=0,1", "retention.text_tokens=2000", suite="math"))
    assert list(found["pretrained"]) == ["language", "knowledge"]
    assert not found["pretrained"]["language"]["higher_is_better"]
    assert 0 < retention_of(found) < 150
    assert not list(directory.glob("answers*.jsonl.part"))


def test_run_without_adapter_says_how_to_make_it_again(copy):
    directory = copy()
    shutil.rmtree(directory / "adapter")
    with pytest.raises(
        QgoftError, match=r"has no adapter.*delete it and run: python scripts/train.py protocol=pocket task=glue/rte method=qgoft"
    ):
        measure_retention(opened(directory), asked())
    assert not (directory / RETENTION).exists()


def test_changed_adapter_is_refused(copy):
    directory = copy()
    with open(directory / "adapter" / "adapter_model.safetensors", "ab") as file:
        file.write(b" ")
    with pytest.raises(QgoftError, match="it was changed after the run finished"):
        measure_retention(opened(directory), asked())


def test_other_base_is_refused(copy, tmp_path):
    directory = copy()
    record = read_record(directory / "record.json")
    record["provenance"]["model"]["sha256"] = "0" * 64
    write_record(directory, record)
    with pytest.raises(QgoftError, match="an adapter belongs to its base"):
        opened(directory)


def test_other_score_is_refused(copy):
    """A record whose adapter gives another score here is not measured."""
    directory = copy()
    record = read_record(directory / "record.json")
    record["metrics"]["accuracy"]["value"] -= 3
    write_record(directory, record)
    with pytest.raises(QgoftError, match="its saved adapter scores"):
        measure_retention(opened(directory), asked("retention.steps=1"))
    assert not (directory / RETENTION).exists()


def test_judge_is_not_asked_without_consent(copy):
    run = opened(copy())
    judge = dataclasses.replace(run.settings.judge, kind="openai", model="a-judge")
    rated = dataclasses.replace(run, settings=dataclasses.replace(run.settings, judge=judge))
    with pytest.raises(QgoftError, match=r"rated by a-judge, which would be asked at every t; set retention.ask_judge=true"):
        measure_retention(rated, asked())


def test_measurement_by_another_process(copy):
    directory = copy()
    with Lease(directory / "retention"), pytest.raises(LeaseHeld):
        measure_retention(opened(directory), asked())


def test_corrupt_file_is_named(copy):
    directory = copy()
    found = measure_retention(opened(directory), asked("retention.steps=1"))
    content = json.loads((directory / RETENTION).read_text())
    content["steps"][0]["target"]["value"] = 99.0
    (directory / RETENTION).write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"retention.json: its checksum does not match"):
        read_retention(directory, found["run"])
    records = find_records(directory.parent)
    assert records.files[found["run"]].retention() is None
    assert "the retention of this run is not used" in records.problems[0]
    (directory / RETENTION).write_text("{")
    with pytest.raises(RecordError, match=r"retention\.json"):
        read_retention(directory, found["run"])
    again = measure_retention(opened(directory), asked("retention.steps=1"))
    assert again["steps"] == found["steps"]


def test_retention_of_another_run_is_refused(copy):
    directory = copy()
    measure_retention(opened(directory), asked("retention.steps=1"))
    with pytest.raises(RecordError, match=r"a copy\?"):
        read_retention(directory, "0" * 64)


def test_undefined_retention(copy, monkeypatch):
    """A pretrained backbone that is not better than chance has nothing to retain."""
    directory = copy()
    found = measure_retention(opened(directory), asked("retention.steps=1"))
    for value in found["pretrained"].values():
        value["value"] = value["chance"]
    assert retention_of(found) is None


def test_command_for_directories(copy, capsys):
    directory = copy()
    assert command.main([str(directory), "retention.steps=0,1", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "glue/rte qgoft@qgoft seed 0, path: angles or blocks"
    assert lines[1].split() == ["t", "accuracy", "transfer/qqp", "transfer/sst2", "retained", "%"]
    assert lines[2].split()[-1] == "100.00"
    with Lease(directory / "retention"), pytest.raises(QgoftError, match="is being measured by"):
        command.main([str(directory), "retention.steps=1", *SMALL])
    with pytest.raises(QgoftError, match=r"has no record\.json"):
        command.main([str(directory / "adapter")])


def test_command_for_a_suite(tmp_path, capsys):
    """Pending runs are executed, then measured; repeated, nothing is left to do. The table has a row a method."""
    words = [
        "glue",
        "--tasks",
        "rte",
        "--method",
        "qgoft,lora",
        "--jobs",
        "1",
        f"results.root={tmp_path}",
        "train.max_steps=4",
        "selection=last",
    ]
    words += ["retention.steps=0,1", *SMALL]
    assert command.main(words) == 0
    out = capsys.readouterr().out
    assert "retention of 2 runs, 0 measured" in out
    assert "qGOFT" in out
    assert "LoRA r=8" in out
    assert (tmp_path / "tables" / "retention-glue.csv").is_file()
    assert (tmp_path / "figures" / "retention-glue.svg").is_file()
    assert command.main(words) == 0
    assert "retention of 2 runs, 2 measured" in capsys.readouterr().out
    assert command.main([*words, "--action", "status"]) == 0
    assert "retention: 2 of 2 finished runs measured" in capsys.readouterr().out
    assert command.main([*words, "--action", "table"]) == 0
    for path in (tmp_path / "runs").glob("*/adapter"):
        shutil.rmtree(path)
    for path in (tmp_path / "runs").glob(f"*/{RETENTION}"):
        path.unlink()
    assert command.main(words) == 1
    assert "has no adapter" in capsys.readouterr().err
