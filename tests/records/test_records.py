"""The record: validated, written last and atomically, found again by its key."""

import copy
import dataclasses
import json
import os
import subprocess

import pytest

from qgoft import records
from qgoft.config.compose import compose_settings
from qgoft.records import RecordError
from qgoft.run_id import key_from_record

SETTINGS = dataclasses.asdict(compose_settings(["task=glue/cola", "method=qgoft"]))
RECORD = {
    "schema": 1, "key": "a" * 64, "protocol": "pocket", "suite": "glue", "task": "cola", "task_version": SETTINGS["task"]["version"],
    "method": "qgoft", "variant": "qgoft", "model": "pocket-deberta", "seed": 0, "status": "done", "reason": None, "primary": "matthews",
    "metrics": {"matthews": {"value": 66.3, "higher_is_better": True, "n": 2000, "standard_error": 1.5, "majority_baseline": 0.0, "computed_by": "qgoft.tasks.metrics.compute_score"}},
    "selection": "best_validation", "params": {"trainable": 10296, "head": 9506, "total": 415612},
    "cost": {"seconds": 11.9, "steps": 300, "seconds_per_step": 0.034, "examples_per_second": 941, "peak_memory_bytes": None},
    "orthogonality": {"max_error": 0.03, "penalty": 0.0004}, "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:12+00:00",
    "settings": SETTINGS, "provenance": {
        "commit": None, "dirty": None, "packages": {"torch": "2.13.0"},
        "hardware": {
            "device": "cpu", "processor": None, "cores": 2, "memory_bytes": 8, "system": "Linux x86_64", "threads": 1, "processes": 1},
        "data": {"source": "pocket", "revision": None, "fingerprint": "f", "rows": {"train": 1000}, "subset": False},
        "model": {"source": "pocket", "revision": None, "sha256": "s"}},
}  # fmt: skip


def changed(path, value):
    record = copy.deepcopy(RECORD)
    *names, last = path.split(".")
    node = record
    for name in names:
        node = node[name]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return record


def test_record_complete_is_valid():
    assert records.validate(copy.deepcopy(RECORD)) == RECORD


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", "0", "seed is '0'"),
        ("seed", True, "seed is True"),
        ("seed", KeyError, "seed is missing"),
        ("extra", 1, "extra is unknown"),
        ("status", "cancelled", "allowed are done, oom"),
        ("status", "oom", "a reason is needed"),
        ("schema", 2, "this version reads 1"),
        ("key", "xyz", "SHA-256"),
        ("cost.seconds", float("nan"), "write null"),
        ("cost.seconds", KeyError, "cost.seconds is missing"),
        ("metrics.matthews.value", None, "no value"),
        ("metrics.matthews.n", None, "metrics.matthews.n"),
        ("primary", "accuracy", "settings.task.primary is 'matthews'"),
        ("started", "yesterday", "ISO 8601"),
        ("started", "2026-01-01T00:00:00", "with its zone"),
        ("selection", "best", "allowed are last, best_validation, best_reported"),
        ("task", "../../X", r"task is '../../X'; letters, digits"),
        ("task", "rte", r"task is 'rte', and settings.task.name is 'cola'; they must be equal"),
        ("method", "\x1b[31mlora", "method is"),
        ("seed", 1, "settings.seed is 0"),
        ("provenance.hardware.processes", "1", "provenance.hardware.processes is '1'"),
        ("provenance.packages.torch", 2, "provenance.packages.torch is 2"),
        ("provenance.data.rows.train", "many", "provenance.data.rows.train is 'many'"),
        ("provenance.resumed", [3], "provenance.resumed. is 3"),
        ("provenance.data.subset", None, "provenance.data.subset"),
        ("provenance.model.sha256", None, "provenance.model.sha256"),
    ],
)
def test_record_incomplete_is_refused(path, value, message):
    with pytest.raises(RecordError, match=message):
        records.validate(changed(path, value))


def test_record_round_trip(tmp_path):
    path = records.write_record(tmp_path / "run", copy.deepcopy(RECORD))
    assert path.name == "record.json"
    assert records.read_record(path) == RECORD
    assert os.listdir(tmp_path / "run") == ["record.json"]


def test_record_changed_value_is_detected(tmp_path):
    path = records.write_record(tmp_path / "run", copy.deepcopy(RECORD))
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RecordError, match=r"record.json: its checksum does not match"):
        records.read_record(path)
    path.write_text(json.dumps(json.loads(text)))  # another spelling of the same value
    assert records.read_record(path) == RECORD
    bare = json.loads(text)
    del bare["checksum"]  # as the first versions wrote it
    path.write_text(json.dumps(bare))
    assert records.read_record(path) == RECORD


def test_changed_curve_is_not_used(tmp_path):
    assert records.file_checksums(tmp_path) == {}
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    records.write_record(tmp_path, {**copy.deepcopy(RECORD), "files": records.file_checksums(tmp_path)})
    assert records.find_records(tmp_path).files == {RECORD["key"]: records.RunDirectory(tmp_path, RECORD["key"])}
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    found = records.find_records(tmp_path)
    assert found.records
    assert found.files == {}
    assert found.problems == [
        f"{tmp_path / 'history.jsonl'}: it differs from its checksum in the record; the run's curve and answers are not used"
    ]
    (tmp_path / "history.jsonl").unlink()  # not every committed directory has them
    assert records.find_records(tmp_path).problems == []


def test_record_invalid_is_not_written(tmp_path):
    with pytest.raises(RecordError):
        records.write_record(tmp_path / "run", changed("seed", None))
    assert not (tmp_path / "run").exists()


def test_record_write_error_leaves_no_file(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        records.write_record(tmp_path / "run", copy.deepcopy(RECORD))
    assert os.listdir(tmp_path / "run") == []


def test_broken_record_is_named_by_file(tmp_path):
    records.write_record(tmp_path / "one", copy.deepcopy(RECORD))
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "record.json").write_text("{")
    with pytest.raises(RecordError, match=r"two/record.json"):
        records.read_records(tmp_path)


def test_latest_finished_record_of_a_key_counts(tmp_path):
    later = changed("finished", "2026-01-02T00:00:00+00:00")
    records.write_record(tmp_path / "b", later)
    records.write_record(tmp_path / "c", copy.deepcopy(RECORD))
    assert records.find_records(tmp_path).problems == []  # the same scores at another time
    later["metrics"][later["primary"]]["value"] += 1.0
    records.write_record(tmp_path / "b", later)
    found = records.find_records(tmp_path)
    (only,) = found.records
    assert only["finished"].startswith("2026-01-02")
    place = f"{tmp_path / 'c' / 'record.json'}: another result of run {RECORD['key'][:16]} than in {tmp_path / 'b' / 'record.json'}"
    assert found.problems == [f"{place}; the one that finished last is used"]


def test_key_depends_on_results_only():
    base = {"settings": {"seed": 0, "lr": 0.001}, "world_size": 1, "data_fingerprint": "d", "model_sha256": "m"}
    key = records.compute_key(**base)
    assert key == records.compute_key(**{**base, "settings": {"lr": 0.001, "seed": 0}})
    others = [
        {**base, "settings": {"seed": 1, "lr": 0.001}},
        {**base, "world_size": 2},
        {**base, "data_fingerprint": "e"},
        {**base, "model_sha256": "n"},
    ]
    assert len({key, *(records.compute_key(**other) for other in others)}) == 5
    assert len(key) == 64


def test_key_includes_results_version(monkeypatch):
    from qgoft.records import key as keys

    base = {"settings": {}, "world_size": 1, "data_fingerprint": "d", "model_sha256": "m"}
    before = keys.compute_key(**base)
    monkeypatch.setattr(keys, "RESULTS_VERSION", keys.RESULTS_VERSION + 1)
    assert keys.compute_key(**base) != before


def test_committed_records_have_current_keys(repository):
    """Detects a change of the rules that was not meant to affect records."""
    for record in records.read_records(repository / "results" / "measured"):
        assert key_from_record(record) == record["key"], (record["task"], record["method"])


def test_provenance_outside_a_repository(tmp_path, repository):
    assert records.code_provenance(tmp_path) == {"commit": None, "dirty": None}
    assert len(records.code_provenance(repository)["commit"]) == 40


def test_committed_records_are_valid(repository):
    found = records.read_records(repository / "results" / "measured")
    assert found, "results/measured holds the records that the documents quote"
    for record in found:
        assert record["status"] == "done"
        assert record["provenance"]["dirty"] is False
        assert "/" not in json.dumps(record["settings"]["data"]).replace("pocket/", "")


def test_record_file_permissions(tmp_path):
    other = tmp_path / "other"
    other.write_text("")
    path = records.write_atomically(tmp_path / "one", "text")
    assert path.stat().st_mode == other.stat().st_mode


def test_record_states_the_loaded_code(tmp_path):
    """Not the state of the repository at the end of the run."""

    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)

    (tmp_path / "qgoft").mkdir()
    git("init")
    git("commit", "--allow-empty", "-m", "one")
    before = dict(records.code_provenance(tmp_path))
    (tmp_path / "qgoft" / "new.py").write_text("")
    git("add", "-A")
    git("commit", "-m", "two")
    assert records.code_provenance(tmp_path) == before
    records.code_provenance.cache_clear()
    assert records.code_provenance(tmp_path) != before
