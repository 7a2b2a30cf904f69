"""Records changed by hand or by a program: a valid one breaks neither a table nor the page, and its text is escaped."""

import copy
import csv
import io
import json
import shlex

import pytest

from qgoft.records import RecordError, find_records, validate, write_record
from qgoft.records.rerun import rerun_words
from qgoft.report.item_tables import score_tables
from qgoft.report.items import item_of
from qgoft.report.latex import latex_table
from qgoft.report.library import RecordLibrary
from qgoft.report.page import Section, Summary, build_page
from qgoft.report.rows import collect_rows
from qgoft.report.sections import machine_section, other_runs
from qgoft.report.table import Table
from qgoft.sweep import forecast, planned_run
from tests.records.test_records import RECORD

VALUES = (None, "x", -1, 1e308, [], {}, True, "\x1b[31m", [1], {"a": 1}, "2026-13-01", KeyError)


def leaves(node, path=()):
    if isinstance(node, dict):
        for name, value in node.items():
            yield (*path, name)
            yield from leaves(value, (*path, name))


def changed(record, path, value):
    record = copy.deepcopy(record)
    node = record
    for name in path[:-1]:
        node = node[name]
    if value is KeyError:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return record


def show(root):
    """Build everything that is derived from records."""
    (cell,) = planned_run.compose_runs([("protocol=pocket", "task=glue/cola", "method=qgoft")], ["0"], 1)
    library = RecordLibrary.read(root)
    tables = score_tables("glue", "pocket", collect_rows([cell], library.index), library, item_of("glue", "pocket"))
    for table in tables:
        table.terminal(80), table.markdown(), latex_table(table), table.csv()
    forecast.mean_seconds(library.index.records, "pocket")
    sections = [Section("a", "b", tables), machine_section(library.index.records, library.problems)]
    other = other_runs(library.index.records, sections)
    return build_page("t", Summary(["l"]), [*sections, *([other] if other else [])], library.index.records, library.files, {})


@pytest.mark.parametrize("status", ["done", "oom"])
def test_odd_valid_records_are_shown(tmp_path, status):
    record = {**RECORD, "status": status, "reason": None if status == "done" else "too large"}
    record["provenance"] = {
        **RECORD["provenance"],
        "training": {
            "key": "k",
            "shared": True,
            "by": {name: RECORD["provenance"][name] for name in ("commit", "dirty", "packages", "hardware")},
        },
        "resumed": [{"step": 3, "hardware": RECORD["provenance"]["hardware"]}],
    }
    shown = refused = 0
    for path in [path for path in leaves(record) if path[0] != "settings" or len(path) < 3]:
        for value in VALUES:
            try:
                odd = validate(changed(record, path, value))
            except RecordError:
                refused += 1
                continue
            write_record(tmp_path / "run", odd)
            if find_records(tmp_path).records:
                show(tmp_path)
                shown += 1
    assert shown > 50
    assert refused > 500


EVIL = "=cmd|' /C calc'!A0 ![x](http://evil) \x1b]0;title\x07 <script>"


def test_record_text_is_escaped_in_tables(tmp_path):
    table = Table("t", EVIL, ["method", "-1.5", "=2"], [[EVIL, "+3.0", "-"], ["@x", "-4", "±1"]], [EVIL])
    for text in (table.terminal(), table.markdown(), table.csv(), latex_table(table)):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "![x]" not in table.markdown()
    cells = [cell for row in csv.reader(io.StringIO(table.csv())) for cell in row]
    assert [cell for cell in cells if cell[:1] in "=@" and cell] == []
    assert {"+3.0", "-4", "-1.5", "-"} <= set(cells), "numbers keep their sign"
    write_record(tmp_path / "run", {**RECORD, "status": "failed", "reason": EVIL})
    assert "<script>" not in show(tmp_path).split("</script>")[-1]


def test_page_command_is_shell_quoted():
    record = copy.deepcopy(RECORD)
    record["provenance"]["data"]["revision"] = "main; rm -rf ~"
    words = rerun_words(record, {})
    assert "rm" not in shlex.split(" ".join(words))
    assert json.dumps("data.revision=main; rm -rf ~").strip('"') in shlex.split(" ".join(words))
