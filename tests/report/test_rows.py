"""Table rows from planned runs and records."""

import copy
import dataclasses

import pytest

from qgoft.commands.sweep import item_filter, parse
from qgoft.config.compose import compose_settings
from qgoft.config.locations import MEASURED
from qgoft.report import rows
from qgoft.report.item_tables import item_rows
from qgoft.report.items import ITEMS
from qgoft.report.library import RecordLibrary
from qgoft.report.score_table import build_table
from qgoft.run_id import key_from_record
from qgoft.sweep import planned_run, record_index
from qgoft.sweep.items import compose_plans, plan_items


def measured_cells(*words, seeds=("0", "1", "2")):
    ask = item_filter(parse(["table1", "--method", "goft", "--tasks", "rte", "--seeds", ",".join(seeds), "--jobs", "1", *words]))
    (part,) = plan_items(["table1"], ask)
    (cells,) = compose_plans([part], 1)
    return part, ask, cells


def rows_from(found, *words, **more):
    part, ask, cells = measured_cells(*words, **more)
    return item_rows(part, cells, ask, RecordLibrary(record_index.RecordIndex(found), {}))


@pytest.fixture(scope="module")
def goft_on_rte():
    found = RecordLibrary.read(MEASURED).index.records  # read once per process
    return [r for r in found if (r["protocol"], r["method"], r["variant"], r["task"]) == ("pocket", "goft", "goft", "rte")]


@pytest.mark.parametrize(("kind", "name"), [("model", "sha256"), ("data", "fingerprint")])
def test_rows_exclude_other_data_and_weights(goft_on_rte, kind, name):
    found = copy.deepcopy(goft_on_rte)
    newest = max(found, key=lambda record: record["finished"])
    for record in found:
        if record is not newest:
            record["provenance"][kind][name] = "e" * 64
            record["key"] = key_from_record(record)
    (row,) = rows_from(found)
    assert row.records == {"rte": [newest]}
    table = build_table("glue", "pocket", [row], item=ITEMS["table1"])
    assert "warning: excluded 2 runs that differ in data or weights from the newest run of the row" in table.notes
    (whole,) = rows_from(goft_on_rte)
    assert len(whole.all()) == 3
    assert whole.left_out == 0


def test_rows_of_pocket_exclude_official_data(goft_on_rte):
    found = copy.deepcopy(goft_on_rte)
    found[0]["settings"]["data"]["source"] = "hub"
    (row,) = rows_from(found)
    assert len(row.all()) == 2


def test_rows_count_a_run_once(goft_on_rte):
    part, ask, cells = measured_cells(seeds=("0", "0", "1"))
    assert [cell.settings.seed for cell in cells] == [0, 1]
    (row,) = item_rows(part, [*cells, *cells], ask, RecordLibrary(record_index.RecordIndex(goft_on_rte), {}))
    assert [len(row.all()), row.planned] == [2, {"rte": 2}]


@pytest.mark.parametrize(
    ("word", "is_altered"),
    [("results.root=elsewhere", False), ("model.path=a", False), ("+wandb.mode=offline", False), ("optim.max_grad_norm=2.0", True)],
)
def test_rows_altered_by_settings_that_matter(goft_on_rte, word, is_altered):
    part, ask, cells = measured_cells()
    ask = dataclasses.replace(ask, overrides=(word,))
    part = dataclasses.replace(part, overrides=tuple(((*words, word), seeds) for words, seeds in part.overrides))
    cells = [dataclasses.replace(cell, overrides=(*cell.overrides, word)) for cell in cells]
    (row,) = item_rows(part, cells, ask, RecordLibrary(record_index.RecordIndex(goft_on_rte), {}))
    assert row.is_altered is is_altered


@pytest.mark.parametrize(
    ("words", "is_altered"),
    [
        (["train.batch_size=16", "train.gradient_accumulation_steps=2", "train.gradient_checkpointing=true"], False),
        (["train.batch_size=16"], True),
        (["train.batch_size=16", "train.gradient_accumulation_steps=2", "optim.max_grad_norm=2.0"], True),
    ],
)
def test_rows_allow_gradient_accumulation(words, is_altered):
    """As the message of a run that is out of memory suggests."""
    own = ["task=glue/rte", "method=goft", "seed=0"]
    cell = planned_run.PlannedRun((*own, *words), compose_settings([*own, *words]))
    assert rows.is_altered(cell) is is_altered
    assert rows._is_altered_by(set(words), cell) is is_altered
