"""Items of the papers: their grids, and the restrictions of the command line."""

import dataclasses
import gzip
import json
import subprocess

import pytest

from qgoft.commands import sweep
from qgoft.config.compose import compose_settings
from qgoft.config.suites import suite_info
from qgoft.errors import QgoftError
from qgoft.report.cost import PRINTED
from qgoft.report.items import CHART, ITEMS, OWN, item_named
from qgoft.report.published import load_rows
from qgoft.sweep import forecast, items, planned_run, settings_cache

PROTOCOL = {"goft-icml2024": "goft_icml24", "psoft-iclr2026": "psoft_iclr26"}
OWN_ITEMS = {*items.own_items("pocket"), *items.own_items("small")}


def words_of(name, **ask):
    item = items.read_items(ask.get("protocol", "pocket"))[name]
    return items.item_overrides(item, items.ItemFilter(**{"protocol": "pocket", **ask}))


def test_items_have_a_target_and_a_table(repository):
    text = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True, check=True).stdout
    targets = text.partition("items of the papers:")[2].partition("variables and defaults")[0].replace("items of this project:", "").split()
    known = items.read_items("pocket") | items.read_items("small")
    assert sorted(targets) == sorted(known)
    runs = {name for name, item in known.items() if item.bench is None}
    assert runs == {*ITEMS, "figure3", *OWN_ITEMS}
    assert set(known) - runs == set(PRINTED)
    for name in runs:
        assert item_named(known[name]).titles


def test_items_cover_both_papers():
    wanted = [*(f"table{n}" for n in (1, 2, 3, 4, 10)), "figure3", "flexibility", "lambda", "psoft-figure3", "psoft-figure4"]
    wanted += [f"psoft-table{n}" for n in (2, 3, 4, 5, 6, 7, 13, 15, 16, 17, 18, 19, 20, 21, 22)]
    assert set(wanted) <= set(items.read_items("goft_icml24"))


def test_items_without_published_values():
    assert {name: item.no_published_values for name, item in ITEMS.items() if item.no_published_values} == {
        "flexibility": CHART,
        "lambda": CHART,
    }
    known = items.read_items("pocket") | items.read_items("small")
    assert {item_named(known[name]).no_published_values for name in OWN_ITEMS} == {OWN}


@pytest.mark.parametrize("name", sorted(set(ITEMS) - {"flexibility", "lambda"}))
def test_grid_has_every_printed_row(name):
    """Under the paper's protocol: method and variant, target set and penalty of each printed row, or `own`."""
    item = ITEMS[name]
    asked, left_out = words_of(name, protocol=PROTOCOL[item.paper])
    assert not left_out
    made = [dict(word.split("=", 1) for word in words) for words, _ in asked]
    for row in load_rows(item.paper, item.table):
        fitting = [m for m in made if m["method"] == row.method and (row.targets is None or m.get("method.targets") in (row.targets, None))]
        if row.penalty is not None:
            fitting = [m for m in fitting if float(m["method.penalty"]) == row.penalty]
        if any("method.variant" in m for m in fitting):
            fitting = [m for m in fitting if m.get("method.variant", row.variant) == row.variant]
        assert fitting, f"{name} has no row of {row}"


@pytest.mark.parametrize("protocol", ["pocket", "paper"])
@pytest.mark.parametrize("name", sorted({*ITEMS, "figure3"}))
def test_items_compose(name, protocol):
    own = PROTOCOL[ITEMS["table2" if name == "figure3" else name].paper] if protocol == "paper" else "pocket"
    asked, _ = words_of(name, protocol=own)
    for words, seeds in {0: asked[0], 1: asked[-1]}.values():
        settings = compose_settings([*words])
        assert settings.protocol == own
        assert seeds
    assert {seeds for _, seeds in asked} == ({("0", "1", "2", "3", "4")} if protocol == "paper" else {seeds for _, seeds in asked})


def test_items_pocket_seeds():
    """Three for GLUE, SQuAD and their ablations, one for VTAB and the decoders."""
    for name in {*ITEMS, "figure3"}:
        asked, _ = words_of(name)
        is_one = any(word.startswith(("task=vtab", "task=instruct", "task=math", "task=commonsense")) for word in asked[0][0])
        assert {seeds for _, seeds in asked} == {("0",) if is_one else ("0", "1", "2")}, name


def test_items_restricted_by_filter():
    asked, _ = words_of("table1", methods=("lora", "qgoft"), tasks=("rte", "glue/cola"), seeds=("7",))
    assert len(asked) == 4
    assert {seeds for _, seeds in asked} == {("7",)}
    added, _ = words_of("table1", methods=("lora@r2", "hra"), tasks=("rte",))
    assert [words[2:] for words, _ in added] == [("method=lora", "method.variant=r2"), ("method=hra",)]
    blocks, _ = words_of("table1", methods=("oft_paper@b4",), tasks=("rte",))
    assert [words[2:] for words, _ in blocks] == [("method=oft_paper", "method.variant=b4")]
    scales, _ = words_of("psoft-figure3", methods=("psoft@r64-alpha",))
    assert len(scales) == 1
    gamma, _ = words_of("psoft-table6", methods=("psoft",), tasks=("gsm8k",))
    assert {words[2] for words, _ in gamma} == {"method=psoft"}
    with pytest.raises(QgoftError, match=r"psoft-table6 has no row of goft; it has lora_xs, psoft; change METHOD"):
        words_of("psoft-table6", methods=("goft",))
    with pytest.raises(QgoftError, match=r"table4 has no task 'rte'; it has squad/v1; change TASKS"):
        words_of("table4", tasks=("rte",))


def test_all_items_restricted_by_filter():
    """`make fetch TASKS=v1` and `make paper TASKS=v1`."""
    parts = items.plan_items(["all"], items.ItemFilter("pocket", tasks=("v1",)))
    assert [part.item.name for part in parts if part.overrides] == ["table4"]
    with pytest.raises(QgoftError, match=r"has no task 'wnli'"):
        items.plan_items(["all"], items.ItemFilter("pocket", tasks=("wnli",)))


def test_items_report_unsupported_combinations():
    asked, left_out = words_of("table1", protocol="psoft_iclr26")
    assert {words[1] for words, _ in asked} == {f"task=glue/{t}" for t in ("sst2", "cola", "qnli", "rte", "mrpc", "stsb")}
    assert "bitfit on glue/cola: no row in the paper's table 2" in left_out
    with pytest.raises(QgoftError, match=r"protocol small supports nothing of item table3: .*no image encoder; change PROTOCOL"):
        items.plan_items(["table3"], items.ItemFilter("small"))
    with pytest.raises(QgoftError, match="glue,table1: a suite cannot be combined with other targets; run glue by itself"):
        sweep.main(["glue,table1"])
    with pytest.raises(QgoftError, match="unknown item 'table99'"):
        items.plan_items(["table99"], items.ItemFilter("pocket"))


def test_settings_cache_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path))
    asked = [words for words, _ in words_of("table1", tasks=("rte", "cola"))[0]]
    monkeypatch.setattr(settings_cache, "COMMITTED", tmp_path / "none")
    settings_cache._committed.cache_clear()
    first = planned_run.compose_all(asked, 1)
    (kept,) = (tmp_path / "settings").glob("*.json")
    monkeypatch.setattr(planned_run, "compose_cached", None)  # nothing is composed again, independent of the results directory
    again = planned_run.compose_all([(*words, "results.root=there") for words in asked], 1)
    assert [s.results.root for s in again] == ["there"] * len(asked)
    assert [repr(s).replace("'there'", "'results'") for s in again] == [repr(s) for s in first]
    kept.write_text("{cut sh")
    settings_cache._stored.cache_clear()
    monkeypatch.undo()
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path))
    assert planned_run.compose_all(asked, 1) == first
    settings_cache._committed.cache_clear()


def test_committed_settings_are_those_of_the_configs():
    """Otherwise `make report` composes 1500 settings first: run scripts/report.py --records measured --commit-settings."""
    stored = json.loads(gzip.decompress(settings_cache.COMMITTED.read_bytes()))
    assert stored["version"] == settings_cache.configs_version()
    for name in list(stored["settings"])[::150]:
        assert dataclasses.asdict(compose_settings(name.split("\n"))) == stored["settings"][name]


def test_forecast_of_duration(tmp_path):
    cells = planned_run.compose_runs([("task=glue/rte", "method=lora")], ["0", "1"], 1)
    assert forecast.expected_seconds(cells, [], "pocket") == 2 * suite_info("glue").seconds["pocket"]
    other = planned_run.compose_runs([("task=glue/rte", "method=lora", "protocol=goft_icml24")], ["0"], 1)
    assert forecast.expected_seconds(other, [], "goft_icml24") is None
    record = {
        "protocol": "pocket",
        "status": "done",
        "suite": "glue",
        "method": "lora",
        "started": "2026-01-01T00:00:00+00:00",
        "provenance": {},
    }
    seen = [{**record, "finished": "2026-01-01T00:00:05+00:00"}, {**record, "finished": "2025-12-31T00:00:00+00:00"}]
    assert forecast.expected_seconds(cells, seen, "pocket") == 10, "a clock that went backwards says nothing"
    resumed = {**seen[0], "provenance": {"resumed": [{}]}, "cost": {"setup_seconds": 1.0, "seconds": 99.0}}
    assert forecast.expected_seconds(cells, [resumed], "pocket") == 200, "the beginning is that of its last part"
    assert forecast.format_duration(59) == "0 min 59 s"
    assert forecast.format_duration(7260) == "2 h 01 min"
