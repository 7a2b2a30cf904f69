"""Table and figures of retention, from made-up measurements."""

from types import SimpleNamespace

import pytest

from qgoft.records import RecordSet
from qgoft.records.retention import above_chance, retained_percent, retention_of
from qgoft.report.geometry import build_geometry, geometry_figure, rank_correlation
from qgoft.report.penalties import build_penalties
from qgoft.report.retention import build_retention, retention_figure
from qgoft.report.retention_rows import (
    RetentionRow,
    format_estimate,
    measured_suites,
    retention_gap,
    retention_gap_at_equal_target,
    retention_rows,
)
from qgoft.report.sections import retention_sections
from qgoft.report.stopping import build_stopping


def value(number, chance=50.0, *, higher=True):
    return {"value": number, "n": 100, "standard_error": 4.0, "chance": chance, "higher_is_better": higher}


def retention(kept, target, steps=(0.0, 0.5, 1.0), pretrained=80.0):
    """Return a measurement that falls linearly from 100 to `kept` percent, with a target that grows from 50."""
    made = [
        {
            "t": t,
            "target": value(50 + t * (target - 50)),
            "probes": {"transfer/rte": value(50 + (pretrained - 50) * (100 - t * (100 - kept)) / 100)},
        }
        for t in steps
    ]
    summary = {"energy_change": 0.1 * (100 - kept), "angle_change": 0.1, "output_drift": 0.01, "procrustes": 0.2}
    geometry = {"layers": {"layer": summary}, "summary": summary}
    pretrained = {"transfer/rte": value(pretrained)}
    return {"pretrained": pretrained, "steps": made, "geometry": geometry, "settings": {"steps": list(steps)}, "finished": "2026-11-29"}


def row(label, kept, target, seeds=(0, 1, 2), tasks=("cola", "qnli"), **own_settings):
    runs = {
        (task, seed): ({"key": f"{label}-{task}-{seed}"}, retention(kept + seed, target + 2 * (task == "qnli")))
        for task in tasks
        for seed in seeds
    }
    own = {f"train.{name}": str(value) for name, value in own_settings.items()}
    return RetentionRow(", ".join([label, *(f"{name}={value}" for name, value in own_settings.items())]), runs, label, own)


def test_retention_is_relative_to_chance():
    assert retention_of(retention(60, 80)) == pytest.approx(60)
    assert retention_of(retention(60, 80), 0.5) == pytest.approx(80)
    assert retention_of(retention(60, 80), 0.25) is None
    assert above_chance(value(3.0, 5.0, higher=False)) == 2
    assert above_chance(value(30.0, None)) == 30
    assert above_chance(value(None)) is None
    pretrained = {"a": value(90.0), "b": value(60.0), "c": value(50.0)}
    tuned = {"a": value(70.0), "b": value(55.0), "c": value(70.0)}
    assert retained_percent(tuned, pretrained, ["a", "b", "c"]) == pytest.approx(100 * (20 + 5) / (40 + 10))  # c is at chance
    assert retained_percent(tuned, pretrained, ["c"]) is None


def test_table():
    rows = [row("lora@r8", 80, 85), row("goft", 90, 80), row("linear", 99, 60), row("oft@b8", 70, 84)]
    table = build_retention(rows, "pocket", "glue")
    assert table.name == "retention-glue"
    differences = [f"minus {name}{where}" for name in ("LoRA r=8", "GOFT") for where in ("", ", at equal target")]
    assert table.columns == ["method", "target", "transfer", "retention %", *differences, "front", "runs"]
    assert [(group.title, table.columns[group.first]) for group in table.groups] == [
        ("minus LoRA r=8", differences[0]),
        ("minus GOFT", differences[2]),
    ]
    cells = {one[0]: one[1:] for one in table.rows}
    assert [one[0] for one in table.rows] == ["lora@r8", "oft@b8", "goft", "linear"]
    assert cells["lora@r8"] == ["86.0", "80.0 -> 74.3 (-5.7)", "81.0 ± 1.0", "-", "-", *cells["lora@r8"][5:7], "*100%", "6"]
    assert cells["goft"][3].startswith("+10.0 (")
    assert cells["oft@b8"][3].startswith("-10.0 (")
    assert cells["oft@b8"][-2] == "0%"
    assert cells["linear"][-2] == "*100%"
    assert cells["lora@r8"][5].startswith("-10.0 (")
    assert cells["goft"][5:7] == ["-", "-"]
    assert set(table.sources[0, 3]) == {f"lora@r8-{task}-{seed}" for task in ("cola", "qnli") for seed in range(3)}


def test_paired_interval_does_not_contain_a_shared_spread():
    """Seeds shift all rows alike, so that the difference has no spread."""
    assert retention_gap(row("goft", 90, 80), row("lora@r8", 80, 85)) == pytest.approx((10, 10, 10))


def test_row_with_fewer_runs_is_compared_on_the_common_ones():
    rows = [row("lora@r8", 80, 85), row("oft@b8", 70, 84), row("goft", 90, 80, seeds=(0,))]
    table = build_retention(rows, "pocket", "glue")
    cells = {one[0]: one[1:] for one in table.rows}
    assert cells["goft"][3].startswith("+10.0 (")
    assert cells["goft"][-2] == "-", "it is not on the front of rows with more runs"
    assert any("other tasks or seeds" in note for note in table.notes)


def test_one_run_has_no_interval():
    rows = [row("lora@r8", 80, 85, (0,), ("cola",)), row("goft", 90, 80, (0,), ("cola",)), row("linear", 70, 60, (0,), ("cola",))]
    cells = {one[0]: one[1:] for one in build_retention(rows, "pocket", "glue").rows}
    assert cells["goft"][3] == "+10.0"
    assert cells["goft"][-2] == "*"
    assert cells["linear"][3] == "-10.0"
    assert cells["linear"][-2] == ""


def test_undefined_retention_is_printed():
    undefined = RetentionRow("goft", {("cola", 0): ({"key": "k"}, retention(50, 80, pretrained=50.0))})
    table = build_retention([undefined], "pocket", "glue")
    assert table.rows[0][3] == "- (1 undefined)"
    assert any(note.startswith("undefined:") for note in table.notes)
    assert retention_figure([undefined], table.name) == []


def test_figures():
    rows = [row("lora@r8", 80, 85), row("goft", 90, 80), row("oft@b8", 70, 84)]
    (paths,), (geometry,) = retention_figure(rows, "retention-glue"), geometry_figure(rows, "geometry-glue")
    assert "<svg" in paths.svg
    assert "<svg" in geometry.svg
    front, lines, ends = paths.spec["layer"]
    assert len(lines["data"]["values"]) == 9
    assert {end["row"] for end in ends["data"]["values"]} == {"LoRA r=8", "GOFT", "OFT b=8"}
    assert [point["retention"] for point in front["data"]["values"]] == [81, 91]


def test_geometry_table():
    """The energy of a made-up row grows with its loss of retention, and its other measures are the same in every row."""
    rows = [row(f"lora@r{rank}", 50 + rank, 80) for rank in (1, 2, 4, 8, 16)]
    table = build_geometry(rows, "pocket", "glue")
    assert table.columns == ["method", "energy %", "angle", "norm", "rank", "drift", "Procrustes", "CKA", "retention %"]
    assert table.rows[0] == ["lora@r16", "3.3", "0.1", "-", "-", "0.01", "0.2", "-", "67.0"]
    assert table.rows[-1] == ["rank correlation", "-1.00 (-1.00, -1.00)", *["-"] * 7]
    assert "rank correlation" not in [one[0] for one in build_geometry(rows[:4], "pocket", "glue").rows], "too few rows"
    stopped = build_geometry([*rows[:4], row("lora@r8", 90, 80, max_steps=50)], "pocket", "glue")
    assert "rank correlation" not in [one[0] for one in stopped.rows], "a row with settings of its own is not compared"
    assert build_geometry([RetentionRow("linear", {})], "pocket", "glue") is None


def test_penalty_weights_are_compared_on_the_tasks_of_the_smallest():
    """Runs with the protocol's own weight are part of the sweep, and other tasks are left out."""

    def qgoft(kept, weights, **own):
        made = row("qgoft", kept, 80, seeds=(0,), tasks=tuple(weights))
        for (task, _), (record, _) in made.runs.items():
            record["settings"] = {"method": {"penalty": weights[task]}}
        made.own_settings = own
        return made

    rows = [
        qgoft(80, {"cola": 0.05, "qnli": 0.001, "rte": 0.05}),
        qgoft(70, {"cola": 0.0, "qnli": 0.0}, **{"method.penalty": "0"}),
        qgoft(75, {"cola": 0.001}, **{"method.penalty": "0.001"}),
        row("goft", 90, 80, seeds=(0,)),
    ]
    table = build_penalties(rows, "pocket", "glue")
    assert [one[0] for one in table.rows] == ["qgoft, λ=0", "qgoft, λ=0.001", "qgoft, λ=0.05", "goft"]
    assert [one[2] for one in table.rows] == ["70.0", "77.5", "80.0", "90.0"]
    assert [one[-1] for one in table.rows] == ["2", "2", "1", "2"]
    assert table.rows[0][3] == "-"
    assert table.rows[2][3] == "+10.0"
    assert table.notes[0].startswith("tasks: cola, qnli;")
    assert build_penalties(rows[1:2] + rows[3:], "pocket", "glue") is None


def test_change_of_an_angle_by_rounding_is_zero():
    rows = [row("goft", 90, 80)]
    for _, measured in rows[0].runs.values():
        measured["geometry"]["summary"] |= {"energy_change": -2e-5, "angle_change": 3e-7}
    assert build_geometry(rows, "pocket", "glue").rows[0][1:3] == ["0", "0"]


def test_interval_of_a_rank_correlation_covers_the_choice_of_methods():
    rows = [row(name, kept, 80) for name, kept in zip("abcdef", (50, 60, 70, 80, 90, 95), strict=True)]
    order = (6, 5, 3, 4, 1, 2)
    values = {one.label: dict.fromkeys(one.runs, float(value)) for one, value in zip(rows, order, strict=True)}
    mean, low, high = rank_correlation(rows, values)
    assert mean == pytest.approx(1 - 6 * (25 + 9 + 0 + 0 + 16 + 16) / (6 * 35))  # 1 - 6 sum d^2 / (n (n^2 - 1)), ranks of kept 1 to 6
    assert -1 <= low < mean < high < 1


def test_stopped_runs_are_compared_with_the_path_of_the_full_run():
    """At the target of the stopped run, the full run has 100 - 20 * (70 - 50) / 40 percent."""
    one = {"seeds": (0,), "tasks": ("cola",)}
    full, stopped = row("lora@r8", 80, 90, **one), row("lora@r8", 85, 70, max_steps=50, **one)
    stopped.runs["cola", 0][0]["key"] = "stopped"
    table = build_stopping([full, stopped, row("goft", 90, 70)], "pocket", "glue")
    assert table.rows == [["lora@r8", "50", "70.0", "85.0", "90.0", "80.0", "+5.0"]]
    assert table.sources[0, 3] == ["stopped"]
    assert table.sources[0, 4] == ["stopped", "lora@r8-cola-0"]
    assert build_stopping([full, row("goft", 90, 70, max_steps=50)], "pocket", "glue") is None, "no full run of GOFT"
    more = build_stopping([row("lora@r8", 80, 90), row("lora@r8", 85, 70, max_steps=50)], "pocket", "glue")
    assert more.rows[0][-1].startswith("+4.")
    assert "(" in more.rows[0][-1]
    assert format_estimate(None) == "-"


class Files:
    def __init__(self, measured):
        self.measured = measured

    def retention(self):
        return self.measured


def test_rows_are_grouped_by_method_and_own_settings():
    def record(key, method, *overrides, finished="2026-11-29T00:00:00+00:00", model="pocket-deberta"):
        names = {"protocol": "pocket", "suite": "glue", "task": "rte", "method": method, "variant": method, "model": model}
        settings = {"model": {"init": "pretrained"}}
        return {"key": key, "seed": 0, "status": "done", "finished": finished, "settings": settings, "overrides": list(overrides), **names}

    records = [
        record("a", "qgoft"),
        record("b", "qgoft", "method.penalty=0"),
        record("c", "goft"),
        record("d", "goft", finished="2026-11-29T01:00:00+00:00"),
        record("e", "oft"),
        record("f", "lora", "train.max_steps=50"),
    ]
    files = {one["key"]: Files(None if one["key"] == "e" else retention(80, 80)) for one in records}
    rows = retention_rows(records, files, "pocket", "glue")
    assert [one.label for one in rows] == ["goft", "lora, max_steps=50", "qgoft", "qgoft, λ=0"]
    assert rows[0].keys() == ["d"]
    assert measured_suites(SimpleNamespace(records=records, files=files)) == [("pocket", "glue")]
    files["a"].measured = {**retention(80, 80), "settings": {"steps": [], "test_rows": 5}, "finished": "2026-11-28"}
    assert "qgoft" not in [one.label for one in retention_rows(records, files, "pocket", "glue")], "measured by other probes"
    other = record("g", "goft", model="another-model")
    labels = [one.label for one in retention_rows([*records, other], {**files, "g": Files(retention(80, 80))}, "pocket", "glue")]
    assert labels[:2] == ["goft, another-model", "goft, pocket-deberta"]


def test_equal_target():
    """At the lower target of the two, the path with the steeper loss of retention has kept less."""
    lora, goft = row("lora@r8", 80, 90), row("goft", 90, 70)
    mean, low, high = retention_gap_at_equal_target(goft, lora)
    # Means over tasks and seeds: LoRA's target grows from 50 to 91 and its retention falls from 100 to 81; GOFT's from 50 to 71, to 91. The
    # path is piecewise linear, so LoRA has 100 - 19 * 21 / 41 at 71.
    assert mean == pytest.approx(91 - (100 - 19 * 21 / 41))
    assert low <= mean <= high
    assert retention_gap_at_equal_target(lora, lora)[0] == 0
    short = RetentionRow("goft", {place: (record, retention(80, 80, steps=(1.0,))) for place, (record, _) in goft.runs.items()})
    assert retention_gap_at_equal_target(short, lora) is None
    assert retention_gap(row("goft", 90, 80, tasks=("rte",)), lora) is None


def test_section_of_the_page():
    def record(key, method, seed):
        names = {"protocol": "pocket", "suite": "glue", "task": "rte", "method": method, "variant": method, "model": "pocket-deberta"}
        return {
            "key": key,
            "seed": seed,
            "status": "done",
            "finished": "2026",
            "settings": {"model": {"init": "pretrained"}, "method": {"penalty": 0.0}},
            **names,
        }

    records = [record(f"{method}{seed}", method, seed) for method in ("goft", "qgoft") for seed in (0, 1)]
    files = {one["key"]: Files(retention(80, 80)) for one in records}
    (section,) = retention_sections(RecordSet(records, files, []))
    assert (section.name, section.protocol) == ("retention-glue-pocket", "pocket")
    assert [figure.name for figure in section.figures] == ["retention-glue", "geometry-glue"]
    assert section.tables[0].name == "retention-glue"
    assert retention_sections(RecordSet(records, {}, [])) == []
