"""Numbers in the documents against the tables that they quote (scripts/quote.py), and those tables against the committed records."""

import json
import re

import _plan
import pytest
import quote
from quote import plain

from qgoft.errors import QgoftError
from qgoft.records import find_records
from qgoft.report.cost import PRINTED, cost_tables, read_bench
from qgoft.report.items import ITEMS
from qgoft.report.orthogonality import build_trace_table, read_traces
from qgoft.report.paired import Redrawn
from qgoft.report.scores import Row, build_paired, build_table

# Numbers with a point that nobody measured: versions, and names of data sets.
NAMES = ("Python 3.11", "v1.1", "Apache-2.0")


def all_quotes(repository):
    return [found for document in quote.DOCUMENTS for _, found in quote.quotes((repository / document).read_text())]


def numbers(text):
    return quote.NUMBER.findall(text)


@pytest.mark.parametrize("document", quote.DOCUMENTS)
def test_quoted_numbers_are_those_of_the_tables(repository, document):
    text = (repository / document).read_text()
    assert list(quote.quotes(text))
    _, changed = quote.renew(text)
    assert not changed, "python scripts/quote.py --write takes the numbers from the tables; then read the sentences again"


def test_a_quote_that_is_not_its_table_s_is_found():
    wrong = '[99.9 (1 to 2)](results/example/tables/table1-paired.md "qgoft | Avg")'
    text, (changed,) = quote.renew(f"a {wrong} b")
    assert changed.startswith("[99.9 (1 to 2)] is [-")
    assert quote.renew(text) == (text, [])
    for place, message in (("nobody | Avg", "has 0 rows called nobody"), ("qgoft | Mean", "0 columns called Mean")):
        with pytest.raises(QgoftError, match=message):
            quote.renew(f'[1](results/example/tables/table1.md "{place}")')
    with pytest.raises(QgoftError, match="quotes table table99"):
        quote.renew('[1](results/example/tables/table99.md "qgoft | Avg")')


@pytest.mark.parametrize("document", ["README.md", "docs/FINDINGS.md"])
def test_no_number_stands_there_unquoted(repository, document):
    text = (repository / document).read_text()
    for pattern in (r"```.*?```", r"^    .*$", r"`[^`]*`", r"\[[^\]]*\]\([^)]*\)", r"arXiv [\d.]+"):
        text = re.sub(pattern, "", text, flags=re.M | re.S if "```" in pattern else re.M)
    text = checked_elsewhere(text)
    for name in NAMES:
        text = text.replace(name, "")
    assert not re.findall(r"[^\n]{0,40}\d\.\d[^\n]{0,20}", text)


def checked_elsewhere(text):
    """Without what tests/bench/test_bench.py compares with the records: the table of costs, and the sentence on the product alone."""
    return re.sub(r"^\| (?:DeBERTaV3-base|ViT-B/16|LLaMA's shape),.*$|d\^0\.\d+", "", text, flags=re.M)


@pytest.fixture(scope="module")
def measured(repository):
    found = find_records(repository / "results" / "measured")
    assert not found.problems
    return found


def rows_behind(measured, table, folder):
    """The rows of a table from the records that results/example/tables/runs.json names: one method and variant each."""
    by_key = {record["key"][:16]: record for record in measured.records}
    rows = []
    for label, cells in json.loads((folder / "runs.json").read_text())[table].items():
        records = {}
        for keys in cells.values():
            for key in keys:
                records.setdefault(by_key[key]["task"], {})[key] = by_key[key]
        by_task = {task: sorted(some.values(), key=lambda record: record["seed"]) for task, some in records.items()}
        every = [record for some in by_task.values() for record in some]
        assert len({(r["method"], r["variant"], r["model"], r["protocol"]) for r in every}) == 1, f"{table}, {label}: unlike records"
        assert all(len({r["seed"] for r in some}) == len(some) for some in by_task.values()), f"{table}, {label}: a seed twice"
        rows.append(Row(plain(label), by_task, is_context=label.endswith(" *")))
    return rows


def test_quoted_tables_are_those_of_the_records(repository, measured):
    """Drawn again from the committed records, without the settings of each having to be composed."""
    folder = repository / "results" / "example" / "tables"
    again = {}
    redrawn = Redrawn(measured.folders)
    for name in {found.table for found in all_quotes(repository)}:
        stem, _, protocol = name.removesuffix("-paired").partition("-small")
        if stem in ITEMS and name not in again:
            item, protocol = ITEMS[stem], "small" if "-small" in name else "pocket"
            table = name.removesuffix("-paired")
            rows = rows_behind(measured, table, folder)
            again[table] = build_table(item.suite, protocol, rows, item=item)
            again[f"{table}-paired"] = build_paired(table, rows, item, redrawn)
        elif name.startswith("orthogonality-"):
            _, suite, protocol = name.split("-")
            again[name] = build_trace_table(read_traces(measured, protocol, suite), protocol, suite)
        elif name.partition("-measured")[0] in PRINTED:
            item = name.partition("-measured")[0]
            shape = _plan.read_items("pocket")[item].bench
            again.update(
                {table.name: table for table in cost_tables(item, read_bench([repository / "results" / "measured" / "bench"], shape))}
            )
    assert again
    for found in all_quotes(repository):
        if found.table in again:
            table = again[found.table]
            assert numbers(quote.pick(table.columns, table.rows, found)) == numbers(found.cell()), found
