"""Tables in the documents against results/example, and results/example against the committed records."""

import json
import pkgutil
import re
import statistics

import pytest

from qgoft.commands import doc_tables, report
from qgoft.commands import estimate as hours
from qgoft.commands.doc_tables import plain
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

# Decimal numbers that are not measured: versions, sections, learning rates of examples, names of data sets.
NAMES = ("Python 3.11", "v1.1", "Apache-2.0", "section 4.3")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?[MB%]?(?!\.?\w)")
KNOWN = {name: item for protocol in ("pocket", "small") for name, item in items.read_items(protocol).items() if item.bench is None}


def blocks(repository):
    texts = [(repository / document).read_text() for document in doc_tables.DOCUMENTS]
    return [doc_tables.Block.of(match) for text in texts for match in doc_tables.BLOCK.finditer(text)]


@pytest.mark.parametrize("document", doc_tables.DOCUMENTS)
def test_document_tables_are_current(repository, document):
    text = (repository / document).read_text()
    assert list(doc_tables.BLOCK.finditer(text))
    _, changed = doc_tables.update(text)
    assert not changed, "run python -m qgoft doc-tables --write, then read the sentences around the tables again"


def test_update_writes_columns_and_rows():
    empty = "<!-- table lambda | QNLI -->\n<!-- end of table -->"
    text, changed = doc_tables.update(f"before\n{empty}\nafter")
    assert changed == ["lambda"]
    assert re.search(
        r"-->\n\|  \| QNLI \|\n\| --- \| ---: \|\n(\| qGOFT, λ=[\d.]+ \| [\d.]+ ±[\d.]+ \|\n)+\| majority class .*\n<!-- end", text
    )
    assert doc_tables.update(text) == (text, [])
    assert doc_tables.update(text.replace("qGOFT", "other"))[0] == text
    assert doc_tables.update(f"before\n{empty}\nafter".replace("-->\n<!--", "-->\n\n<!--"))[0] == text
    some, _ = doc_tables.update(empty.replace("| QNLI", "| QNLI |\n  rows: majority class; qgoft, λ=0"))
    assert re.fullmatch(r".*\n.*\n\|  \| QNLI \|\n.*\n\| majority class \|.*\n\| qGOFT, λ=0 \|.*\n<!-- end of table -->", some), "as named"
    for part, message in (("Mean", "no column Mean"), ("QNLI | rows: nobody", "no row nobody")):
        with pytest.raises(QgoftError, match=message):
            doc_tables.update(empty.replace("QNLI", part))
    with pytest.raises(QgoftError, match="table table99: not in"):
        doc_tables.update(empty.replace("lambda", "table99"))


@pytest.mark.parametrize("document", doc_tables.DOCUMENTS)
def test_sentences_contain_no_measured_number(repository, document):
    text = doc_tables.BLOCK.sub("", (repository / document).read_text())
    for pattern in (r"```.*?```", r"^    .*$", r"`[^`]*`", r"\[[^\]]*\]\([^)]*\)", r"arXiv [\d.]+"):
        text = re.sub(pattern, "", text, flags=re.M | re.S if "```" in pattern else re.M)
    for name in NAMES:
        text = text.replace(name, "")
    assert not re.findall(r"[^\n]{0,40}\d\.\d[^\n]{0,20}", text)


@pytest.fixture(scope="module")
def measured(repository):
    found = find_records(repository / "results" / "measured")
    assert not found.problems
    return found


def rows_behind(measured, table):
    """Return the rows of a table from the records that the JSON next to it names: one method and variant each."""
    by_key = {record["key"][:16]: record for record in measured.records}
    rows = []
    for label, cells in json.loads((doc_tables.TABLES / f"{table}.json").read_text())["cells"].items():
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


def test_tables_lead_to_records_and_code(repository, measured):
    """Table -> record -> function, in three opens."""
    keys, functions = {record["key"][:16]: record for record in measured.records}, set()
    tables = sorted(doc_tables.TABLES.glob("*.json"))
    for path in tables:
        table = json.loads(path.read_text())
        assert table["cells"], path.name
        for key in {key for columns in table["cells"].values() for some in columns.values() for key in some}:
            assert measured.files[keys[key]["key"]].place == table["runs"][key]
            functions |= {metric["computed_by"] for metric in keys[key]["metrics"].values()}
    assert {"table1", "table1-paired", "figure3-pocket", "orthogonality-glue-pocket"} <= {path.stem for path in tables}
    assert all(callable(pkgutil.resolve_name(name)) for name in functions)


def test_document_tables_match_the_records(repository, measured):
    """Rebuilt from the committed records, without composing the settings of each."""
    again = {}
    bootstrap = Bootstrap(measured.files)
    for name in {block.table for block in blocks(repository)}:
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
    for block in blocks(repository):
        columns = again[block.table].columns
        ours = [(plain(row[0]), row) for row in again[block.table].rows]
        for label, *cells in block.cells():
            same = [row for name, row in ours if name == plain(label)]
            for column, cell in zip(block.columns, cells, strict=True):
                place = columns.index(column)
                assert any(is_equal(row[place], cell) for row in same), f"{block.table}, {label}, {column}: {cell}"


def is_equal(ours, theirs):
    """Return True for equal numbers. The number of planned seeds that are finished is not known here."""
    return NUMBER.findall(ours) == NUMBER.findall(re.sub(r" \[\d+ of \d+[^\]]*\]$", "", theirs))


def test_document_costs_match_the_estimate():
    """Items without records, under the protocols with real data."""
    kept = json.loads(hours.HOURS.read_text())["work"]
    _, rows = doc_tables.read_table("missing")
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


def test_example_has_only_report_tables():
    labels = re.findall(r"^\\label\{tab:([\w-]+)\}$", (doc_tables.TABLES / "all.tex").read_text(), re.M)
    assert sorted(path.stem for path in doc_tables.TABLES.glob("*.csv")) == sorted(labels), "each once"


def test_readme_output_matches_the_records(repository, measured):
    """Return the rows of the table that `make glue METHOD=qgoft` prints, folded to 80 columns."""
    glue = [r for r in measured.records if (r["protocol"], r["suite"]) == ("pocket", "glue")]
    behind = json.loads((doc_tables.TABLES / "table1.json").read_text())["cells"]["qgoft"]
    own = {key for keys in behind.values() for key in keys}
    rows = {
        "qGOFT": [r for r in glue if r["key"][:16] in own and r["seed"] == 0],
        "Linear probe *": [r for r in glue if r["method"] == "linear"],
        "random + LoRA r=8 *": [r for r in glue if r["method"] == "lora" and r["settings"]["model"]["init"] == "random"],
        "random + qGOFT *": [r for r in glue if r["method"] == "qgoft" and r["settings"]["model"]["init"] == "random"],
    }
    readme = (repository / "README.md").read_text()
    for label, records in rows.items():
        cells = []
        for column in ITEMS["table1"].columns:
            values = [column.value(record) for record in records if record["task"] == column.task]
            cells.append(f"{statistics.fmean(values):.1f}" + (f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""))
        first, second = (line.strip() for line in readme.splitlines() if re.match(rf"    {re.escape(label)}  ", line))
        printed = [re.split(" {2,}", line) for line in (first, second)]
        assert [*printed[0][2:], *printed[1][1:-1]] == cells, label
