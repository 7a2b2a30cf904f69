"""Leaderboard: order, cost from several benchmark records, and the Pareto front."""

from pathlib import Path
from types import SimpleNamespace

from qgoft.config.suites import tasks_of
from qgoft.report.cost import BenchColumn
from qgoft.report.items import item_of
from qgoft.report.leaderboard import build_leaderboard
from qgoft.report.row import Row, averages_of
from tests.committed import select

GLUE = tasks_of("glue")
ITEM = item_of("glue", "pocket")


def row(method, variant):
    records = {task: select(task, method=method, variant=variant, seed=0)[:1] for task in GLUE}
    return Row(f"{method}@{variant}" if variant != method else method, records)


def column(**seconds):
    timings = [{"name": name, "forward": [s], "backward": [s], "update": [0.0], "peak_bytes": 100 * s} for name, s in seconds.items()]
    record = {"reference": "lora r=8", "hardware": {"processor": "a processor"}}
    return BenchColumn({"groups": [timings]}, record, "pocket", "pocket DeBERTaV3", None, True, Path())


def probe(value):
    return {"value": value, "n": 100, "standard_error": 1.0, "chance": 50, "higher_is_better": True}


def test_rows_are_sorted_and_costs_come_from_the_first_record_that_has_them():
    rows = [row("linear", "linear"), row("lora", "r8"), row("goft", "goft")]
    first, second = column(**{"lora r=8": 2.0, "goft": 1.0}), column(**{"lora r=8": 1.0, "goft": 5.0, "linear": 0.5})
    kept = {"pretrained": {"transfer/rte": probe(80)}, "steps": [{"t": 1, "target": probe(60), "probes": {"transfer/rte": probe(65)}}]}
    measured = {record["key"]: SimpleNamespace(retention=lambda: kept) for record in rows[2].all()}
    partly = {record["key"]: SimpleNamespace(retention=lambda: kept) for record in rows[1].all()[1:]}
    table = build_leaderboard(ITEM, rows, [first, second], measured | partly)
    averages = {one.label: averages_of(one, ITEM)[-1] for one in rows}
    assert [cells[0] for cells in table.rows] == sorted(averages, key=averages.get, reverse=True)
    cells = {cells[0]: cells[1:] for cells in table.rows}
    assert cells["goft"][0] == f"{averages['goft']:.1f}"
    assert cells["goft"][2:4] == ["0.50", "0.50"]
    assert cells["linear"][2:4] == ["0.50", "0.50"]
    assert cells["lora@r8"][2:4] == ["1.00", "1.00"]
    best = max(averages, key=averages.get)
    assert cells[best][-1] == "*", "no row has a higher average"
    assert cells["linear"][-1] == "*", "no row has as few parameters"
    assert cells["lora@r8"][4] == "-"
    assert float(cells["goft"][4]) < 1e-5
    assert cells["goft"][5] == "50.0"
    assert cells["lora@r8"][5] == "-", "one of its runs is not measured"
    assert table.sources[0, 1], "the average opens its runs"


def test_leaderboard_without_a_benchmark_has_dashes():
    table = build_leaderboard(ITEM, [row("lora", "r8"), Row("goft", {})], [], {})
    ((_, _, _, ratio, peak, *_),) = table.rows
    assert (ratio, peak) == ("-", "-")
