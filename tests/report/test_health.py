"""Benchmark health: the differences of each task of protocol pocket, and their marks."""

from qgoft.commands.report import Report
from qgoft.report import health
from qgoft.report.health import build_health
from qgoft.report.library import RecordLibrary
from qgoft.report.row import Row


def record(value, majority=50.0):
    metric = {"value": value, "majority_baseline": majority}
    return {"key": f"run-{value}", "primary": "accuracy", "metrics": {"accuracy": metric}}


def row(label, **scores):
    return Row(label, {task: [record(value) for value in values] for task, values in scores.items()})


def cells(table):
    return {name: dict(zip(table.columns[1:], values, strict=True)) for name, *values in table.rows}


def test_health_marks_small_differences_and_large_deviations(monkeypatch):
    controls = [row("linear", rte=[56.0], sst2=[65.0]), row("random + lora@r8", rte=[69.0], sst2=[55.0])]
    monkeypatch.setattr(health, "control_rows", lambda *_: controls)
    rows = [row("full", rte=[70.0, 72.0, 74.0], sst2=[70.0]), row("lora@r8", rte=[60.0, 70.0, 80.0], sst2=[90.0]), Row("goft", {})]
    table = build_health({"glue": rows}, 1)
    found = cells(table)
    assert list(found) == ["SST-2", "RTE"], "only the tasks with a record"
    assert found["RTE"] == {
        "Full FT": "72.0",
        "LoRA": "70.0",
        "random + LoRA": "69.0",
        "untuned": "56.0",
        "majority": "50.0",
        "LoRA - random": "+1.0†",
        "full - untuned": "+16.0",
        "SD over seeds": "6.0†",
    }
    assert found["SST-2"]["LoRA - random"] == "+35.0"
    assert found["SST-2"]["full - untuned"] == "+5.0†"
    assert found["SST-2"]["SD over seeds"] == "-", "fewer than three seeds"
    assert table.sources[1, 1] == ["run-70.0", "run-72.0", "run-74.0"]


def test_health_gives_the_reason_of_a_small_difference(monkeypatch):
    monkeypatch.setattr(health, "control_rows", lambda *_: [row("linear", dtd=[70.0], svhn=[50.0])])
    table = build_health({"vtab": [row("full", dtd=[75.0], svhn=[55.0])]}, 1)
    assert table.notes[-1].endswith("differ in: DTD patterns"), "SVHN has no reason"


def test_health_without_controls_has_dashes(monkeypatch):
    monkeypatch.setattr(health, "control_rows", lambda *_: [])
    (found,) = cells(build_health({"glue": [row("full", rte=[70.0])]}, 1)).values()
    assert (found["LoRA"], found["LoRA - random"], found["full - untuned"]) == ("-", "-", "-")
    assert build_health({"glue": []}, 1) is None


def test_report_collects_the_tables_of_pocket(tmp_path):
    """The rows of the suites' own tables only: others of the same suite have other settings."""
    report = Report(RecordLibrary.read(tmp_path), tmp_path, 1)
    report.add_protocol("pocket")
    assert set(report.pocket_rows) == {"glue", "squad", "vtab", "instruct", "math", "commonsense"}
