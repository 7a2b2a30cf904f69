"""The orthogonality error during training: read from real runs, tabulated and drawn."""

import statistics

import pytest

from qgoft.commands import orthogonality as script
from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.records import RunDirectory, find_records
from qgoft.report.charts import traces_chart
from qgoft.report.figures import Figure
from qgoft.report.orthogonality import Trace, build_trace_table, read_traces
from qgoft.train.run import run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    for words in (
        ["method=goft"],
        ["method=goft", "seed=1"],
        ["method=psoft"],
        ["method=lora"],
        ["method=qgoft", "method.penalty=0"],
        ["method=qgoft", "method.penalty=0.5"],
        ["method=goft", "model=pocket_deberta_random"],
    ):
        run(compose_settings([*words, "task=glue/rte", "train.max_steps=4", "train.num_evals=2", "selection=last", f"results.root={root}"]))
    return root


def test_traces_need_rotation_and_pretraining(root):
    traces = read_traces(find_records(root / "runs"), "pocket", "glue")
    assert {label: len(runs) for label, runs in traces.items()} == {
        "goft": 2,
        "psoft@r46": 1,
        "qgoft": 2,
        "qgoft, rte, λ=0": 1,
        "qgoft, rte, λ=0.5": 1,
    }
    kept = [statistics.median(run.error for run in runs) for runs in traces.values()]
    assert kept == sorted(kept)  # from the nearest to the farthest
    assert all(run.error == run.points[-1][1] for run in traces["goft"]), "the last step was kept"
    for runs in traces.values():
        assert all([share for share, _ in trace.points] == [0.5, 1.0] for trace in runs)
    table = build_trace_table(traces, "pocket", "glue")
    assert table.rows[0][:2] == ["goft", "2"]
    assert float(table.rows[0][4]) < 1e-5 < float(table.rows[1][2])
    penalties = {row[0]: row[5] for row in table.rows}
    assert (penalties["goft"], penalties["psoft@r46"]) == ("-", "-")
    assert 0 < float(penalties["qgoft, rte, λ=0.5"]) < float(penalties["qgoft, rte, λ=0"])


def test_trace_values_are_of_the_selected_step(root):
    found = find_records(root / "runs")
    record = next(record for record in found.records if record["method"] == "psoft")
    record["orthogonality"] = {"max_error": 0.25, "penalty": None}
    assert [run.error for run in read_traces(found, "pocket", "glue")["psoft@r46"]] == [0.25]
    record["provenance"]["data"]["source"] = "directory"
    assert "psoft@r46" not in read_traces(found, "pocket", "glue")


def test_shared_training_has_one_trace(root):
    found = find_records(root / "runs")
    goft = [record for record in found.records if record["method"] == "goft" and record["settings"]["model"]["init"] == "pretrained"]
    for record, shared in zip(goft, (True, False), strict=True):
        record["provenance"]["training"] = {"key": "k", "shared": shared}
    (trace,) = read_traces(found, "pocket", "glue")["goft"]
    assert trace.error == goft[1]["orthogonality"]["max_error"], "of the run that trained"
    goft[1]["provenance"]["training"]["key"] = "other"
    goft[1]["settings"]["method"]["targets"] = "qv"
    assert {label for label in read_traces(found, "pocket", "glue") if label.startswith("goft")} == {
        f"goft, {goft[0]['settings']['method']['targets']}",
        "goft, qv",
    }


def test_run_without_curve_is_not_drawn(root, tmp_path):
    found = find_records(root / "runs")
    psoft = next(record for record in found.records if record["method"] == "psoft")
    found.files[psoft["key"]] = RunDirectory(tmp_path, psoft["key"])
    traces = read_traces(found, "pocket", "glue")
    table = build_trace_table(traces, "pocket", "glue")
    assert "psoft@r46" in [row[0] for row in table.rows]
    assert "of 1 runs history.jsonl has no curve: they are not in the figure" in table.notes
    assert "PSOFT" not in Figure("traces", traces_chart(traces), "errors").svg
    assert traces_chart({"psoft@r46": traces["psoft@r46"]}) is None


def test_figures_are_deterministic(root, tmp_path):
    traces = read_traces(find_records(root / "runs"), "pocket", "glue")
    one, two = (Figure("traces", traces_chart(traces), "errors").write(tmp_path / name) for name in "ab")
    assert [path.suffix for path in one] == [".svg", ".pdf", ".png"]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True) if a.suffix != ".pdf")
    assert one[1].read_bytes().startswith(b"%PDF")
    assert all(name in one[0].read_text() for name in ("GOFT", "PSOFT r=46", "rounding"))


def test_figure_limits_rows_per_method():
    end = Trace(((1.0, 0.1),), 0.1)
    traces = {f"psoft@r{n}": [end] for n in range(12)} | {"goft": [end], "psoft@r46": [end, end]}
    traces |= {"qgoft, λ=0": [end], "qgoft, λ=0.1": [end, end]}
    rows = {value["row"] for value in traces_chart(traces)["layer"][0]["data"]["values"]}
    assert rows == {"GOFT", "PSOFT r=46", "qGOFT, λ=0.1"}
    assert "the figure has one row of each method, the one with the most runs" in build_trace_table(traces, "pocket", "glue").notes


def test_orthogonality_command(root, capsys):
    assert script.main(["--root", str(root)]) == 0
    assert "max |R^T R - I| after training (glue, pocket)" in capsys.readouterr().out
    assert (root / "tables" / "orthogonality.csv").is_file()
    with pytest.raises(QgoftError, match="no run of squad under protocol pocket"):
        script.main(["--root", str(root), "--suite", "squad"])
