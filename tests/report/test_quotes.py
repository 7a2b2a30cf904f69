"""Numbers in the documents against the tables that they quote (scripts/quote.py), and those tables against the committed records."""

import json
import re
import statistics

import pytest

from qgoft.commands import estimate as hours
from qgoft.commands import quote, report
from qgoft.commands.quote import plain
from qgoft.errors import QgoftError
from qgoft.records import find_records
from qgoft.report.cost import PRINTED, cost_tables, read_bench
from qgoft.report.items import ITEMS, item_named
from qgoft.report.orthogonality import build_trace_table, read_traces
from qgoft.report.paired_table import build_paired
from qgoft.report.row import Row
from qgoft.report.score_table import build_table
from qgoft.report.sections import published_table
from qgoft.report.significance import Bootstrap
from qgoft.sweep import items

# Numbers with a point that nobody measured: versions, sections, and names of data sets.
KNOWN = {name: item for protocol in ("pocket", "small") for name, item in items.read_items(protocol).items() if item.bench is None}
NAMES = ("Python 3.11", "v1.1", "Apache-2.0", "section 4.3")


def blocks(repository):
    texts = [(repository / document).read_text() for document in quote.DOCUMENTS]
    return [quote.Block.of(match) for text in texts for match in quote.BLOCK.finditer(text)]


def all_quotes(repository):
    return [found for document in quote.DOCUMENTS for _, found in quote.quotes((repository / document).read_text())]


def numbers(text):
    return quote.NUMBER.findall(text)


@pytest.mark.parametrize("document", quote.DOCUMENTS)
def test_quoted_numbers_are_those_of_the_tables(repository, document):
    text = (repository / document).read_text()
    assert list(quote.quotes(text))
    _, changed = quote.renew(text)
    assert not changed, "python -m qgoft quote --write takes the numbers from the tables; then read the sentences again"


def test_a_quote_that_is_not_its_table_s_is_found():
    wrong = '[99.9 (1 to 2)](results/example/tables/table1-paired.md "qgoft minus adalora@r8 | Avg")'
    text, (changed,) = quote.renew(f"a {wrong} b")
    assert changed.startswith("[99.9 (1 to 2)] is [-")
    assert quote.renew(text) == (text, [])
    for place, message in (("nobody | Avg", "has 0 rows called nobody"), ("qgoft | Mean", "0 columns called Mean")):
        with pytest.raises(QgoftError, match=message):
            quote.renew(f'[1](results/example/tables/table1.md "{place}")')
    for name in ("qgoft", "qgoft minus lora@r8"):
        with pytest.raises(QgoftError, match=f"has 0 rows called {name} and"):
            quote.renew(wrong.replace("qgoft minus adalora@r8", name))
    with pytest.raises(QgoftError, match="table table99 is quoted, which"):
        quote.renew('[1](results/example/tables/table99.md "qgoft | Avg")')


def test_columns_of_a_table_are_written_anew():
    empty = "<!-- table lambda | QNLI -->\n<!-- end of table -->"
    text, changed = quote.renew(f"before\n{empty}\nafter")
    assert changed
    assert re.search(
        r"-->\n\|  \| QNLI \|\n\| --- \| ---: \|\n(\| qgoft, λ=[\d.]+ \| [\d.]+ ±[\d.]+ \|\n)+\| majority class .*\n<!-- end", text
    )
    assert quote.renew(text) == (text, [])
    assert quote.renew(text.replace("qgoft", "other"))[0] == text
    assert quote.renew(f"before\n{empty}\nafter".replace("-->\n<!--", "-->\n\n<!--"))[0] == text
    some, _ = quote.renew(empty.replace("QNLI", "QNLI | rows: majority class; qgoft, λ=0"))
    assert re.fullmatch(r".*\n\|  \| QNLI \|\n.*\n\| majority class \|.*\n\| qgoft, λ=0 \|.*\n<!-- end of table -->", some), "as named"
    for part, message in (("Mean", "no column Mean"), ("QNLI | rows: nobody", "no column or row nobody")):
        with pytest.raises(QgoftError, match=message):
            quote.renew(empty.replace("QNLI", part))


def test_numbers_are_found_whole():
    assert quote.NUMBER.findall("0.018M and 33, 154: -3.6 (-4.8 to +2.2), 41,472 of r8 in v1.1, 5.5e-07, 0.25%.") == [
        "0.018M", "33", "154", "-3.6", "-4.8", "+2.2", "41,472", "5.5e-07", "0.25%",
    ]  # fmt: skip


@pytest.mark.parametrize("document", ["README.md", "docs/FINDINGS.md"])
def test_no_number_stands_there_unquoted(repository, document):
    text = (repository / document).read_text()
    text = quote.BLOCK.sub("", text)
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


def rows_behind(measured, table):
    """The rows of a table from the records that the JSON next to the table names: one method and variant each."""
    by_key = {record["key"][:16]: record for record in measured.records}
    rows = []
    for label, cells in json.loads((quote.TABLES / f"{table}.json").read_text())["cells"].items():
        records = {}
        for keys in cells.values():
            for key in keys:
                if by_key[key]["status"] == "done":
                    records.setdefault(by_key[key]["task"], {})[key] = by_key[key]
        by_task = {task: sorted(some.values(), key=lambda record: record["seed"]) for task, some in records.items()}
        every = [record for some in by_task.values() for record in some]
        assert len({(r["method"], r["variant"], r["model"], r["protocol"]) for r in every}) == 1, f"{table}, {label}: unlike records"
        assert all(len({r["seed"] for r in some}) == len(some) for some in by_task.values()), f"{table}, {label}: a seed twice"
        rows.append(Row(plain(label), by_task, is_context=label.endswith(" *")))
    return rows


def test_quoted_tables_are_those_of_the_records(repository, measured):
    """Drawn again from the committed records, without the settings of each having to be composed."""
    again = {}
    bootstrap = Bootstrap(measured.folders)
    for name in {*(found.table for found in all_quotes(repository)), *(block.table for block in blocks(repository))}:
        stem, _, protocol = name.removesuffix("-paired").partition("-small")
        if stem in KNOWN and name not in again:
            item, protocol = item_named(KNOWN[stem]), "small" if "-small" in name else "pocket"
            table = name.removesuffix("-paired")
            rows = rows_behind(measured, table)
            again[table] = build_table(item.suite, protocol, rows, item=item)
            again[f"{table}-paired"] = build_paired(table, rows, item, bootstrap)
        elif name.startswith("orthogonality-"):
            _, suite, protocol = name.split("-")
            again[name] = build_trace_table(read_traces(measured, protocol, suite), protocol, suite)
        elif name.endswith("-published") and name.removesuffix("-published") in ITEMS:
            again[name] = published_table(name.removesuffix("-published"), ITEMS[name.removesuffix("-published")])
        elif re.sub("-(measured|published)$", "", name) in PRINTED:
            item = re.sub("-(measured|published)$", "", name)
            shape = items.read_items("pocket")[item].bench
            again.update(
                {table.name: table for table in cost_tables(item, read_bench([repository / "results" / "measured" / "bench"], item, shape))}
            )
    again |= {table.name: table for table in report.audit_section().tables}
    for found in all_quotes(repository):
        if found.table == "missing":
            assert found.row[1] in hours.PROTOCOLS, f"{found}: what is left of protocol pocket is not checked here"
            continue
        table = again[found.table]
        check(quote.pick(table.columns, table.rows, found), found.cell(), found)
    for block in blocks(repository):
        columns = again[block.table].columns
        ours = {plain(row[0]): row for row in again[block.table].rows}
        for label, *cells in block.cells():
            for column, cell in zip(block.columns, cells, strict=True):
                check(ours[plain(label)][columns.index(column)], cell, f"{block.table}, {label}, {column}")


def check(ours, theirs, where):
    """The same numbers. How many of the planned seeds are done is not known here."""
    assert numbers(ours) == numbers(re.sub(r" \[\d+ of \d+[^\]]*\]$", "", theirs)), where


def test_costs_are_those_of_the_estimate():
    """Of what has no record, under the protocols with real data."""
    kept = json.loads(hours.HOURS.read_text())["work"]
    _, rows = quote.read_table("missing")
    seen = 0
    for item, protocol, planned, rest, cost, command in rows:
        if protocol in kept and item in kept[protocol]:
            work = kept[protocol][item]
            assert int(planned) == work["runs"]
            if rest == planned:
                assert cost.split()[0] == f"{work['hours']:.0f}"
            assert 0 < int(cost.split()[0]) <= round(work["hours"])
            assert command == f"make {item} PROTOCOL={protocol}"
            seen += 1
    assert seen > 20


def test_example_has_no_table_that_the_report_did_not_write():
    inputs = set(re.findall(r"^\\shown\{.*\}\{([\w-]+)\}$", (quote.TABLES / "all.tex").read_text(), re.M))
    assert {path.stem for path in quote.TABLES.glob("*.csv")} == inputs


def test_what_readme_prints_of_a_command_is_in_the_records(repository, measured):
    """The rows of the table that `make glue METHOD=qgoft` printed."""
    glue = [r for r in measured.records if (r["protocol"], r["suite"]) == ("pocket", "glue")]
    behind = json.loads((quote.TABLES / "table1.json").read_text())["cells"]["qgoft"]
    own = {key for keys in behind.values() for key in keys}
    rows = {
        "qgoft": [r for r in glue if r["key"][:16] in own and r["seed"] == 0],
        "linear *": [r for r in glue if r["method"] == "linear"],
        "random + lora@r8 *": [r for r in glue if r["method"] == "lora" and r["settings"]["model"]["init"] == "random"],
        "random + qgoft *": [r for r in glue if r["method"] == "qgoft" and r["settings"]["model"]["init"] == "random"],
    }
    readme = (repository / "README.md").read_text()
    for label, records in rows.items():
        cells = []
        for column in ITEMS["table1"].columns:
            values = [column.value(record) for record in records if record["task"] == column.task]
            cells.append(f"{statistics.fmean(values):.1f}" + (f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""))
        (line,) = (line.strip() for line in readme.splitlines() if re.match(rf"    {re.escape(label)}  ", line))
        assert re.sub(" {2,}", "  ", line).split("  ")[2:-1] == cells, label
