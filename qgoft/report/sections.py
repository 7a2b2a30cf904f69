"""Sections of the report page: items, orthogonality, retention, provenance, and runs that no item needs."""

import collections
import re
from collections.abc import Sequence
from typing import Any

from qgoft.config.settings import method_label
from qgoft.config.suites import suite_info
from qgoft.records import Record, RecordSet
from qgoft.report.charts import cost_chart, curves_chart, flexibility_chart, lambda_chart, pareto_chart, traces_chart, wins_chart
from qgoft.report.cost import BenchColumn
from qgoft.report.figures import Figure
from qgoft.report.item_tables import item_tables
from qgoft.report.items import Item, item_named
from qgoft.report.library import RecordLibrary
from qgoft.report.orthogonality import build_trace_table, read_traces
from qgoft.report.page import Section, Summary
from qgoft.report.published import load_rows, printed_averages
from qgoft.report.retention import retention_report
from qgoft.report.retention_rows import measured_suites, retention_rows
from qgoft.report.row import Row
from qgoft.report.table import ColumnGroup, Table, table_name
from qgoft.report.vega import Spec
from qgoft.sweep.items import ItemFilter, ItemPlan

# Items with a figure of training curves.
WITH_CURVES = ("table1", "table3", "table4", "psoft-table2", "psoft-table4", "psoft-table5")


def item_section(plan: ItemPlan, rows: Sequence[Row], ask: ItemFilter, library: RecordLibrary, jobs: int) -> Section | None:
    """Return an item of runs with its tables and figures, or None if it has no record."""
    if not any(row.records or row.failed for row in rows):
        return None
    name, protocol = plan.item.name, ask.protocol
    tables, item = item_tables(plan, rows, ask, library, jobs), item_named(plan.item)
    stem = table_name(name, protocol)
    figures = _figures(name, item, rows, tables, stem)
    probe = suite_info(item.suite).probe_task
    if name in WITH_CURVES and probe:
        figures += _figure(f"{stem}-curves", curves_chart(rows, probe, library.files), f"training loss on {probe}, median of the seeds")
    if not item.no_published_values and name != "figure3" and protocol in ("pocket", "small"):
        # The page shows the published values as a table, a terminal as notes.
        tables[0].notes = [note for note in tables[0].notes if not note.startswith(("published ", "published: "))]
        tables.append(published_table(name, item))
    return Section(
        f"{name}-{protocol}",
        f"{item_title(plan)} ({protocol})",
        tables,
        figures,
        paper=_paper(plan),
        entry=item_title(plan),
        protocol=protocol,
    )


def _paper(plan: ItemPlan) -> str:
    if not plan.item.in_papers:
        return "Not in the papers"
    return "PSOFT (ICLR 2026)" if plan.item.name.startswith("psoft-") else "GOFT (ICML 2024)"


def _figures(name: str, item: Item, rows: Sequence[Row], tables: Sequence[Table], stem: str) -> list[Figure]:
    if name == "flexibility":
        return _figure(stem, flexibility_chart(item, rows), "score of every run (circles) and mean of a method (bars)")
    if name == "lambda":
        return _figure(stem, lambda_chart(item, rows), "score against λ, with the standard deviation over seeds")
    if name == "figure3":
        return [Figure(stem, wins_chart(table), table.title) for table in tables if table.name.startswith("figure3")]
    return _figure(f"{stem}-pareto", pareto_chart(item, rows), "average against trainable parameters") if item.has_average else []


def _figure(name: str, spec: Spec | None, caption: str) -> list[Figure]:
    return [Figure(name, spec, caption)] if spec is not None else []


def item_title(plan: ItemPlan) -> str:
    """Return the title of an item: `PSOFT table 17`, `Real GLUE (not in the papers)`."""
    if not plan.item.in_papers:
        return f"{plan.item.title} (not in the papers)"
    name = {"flexibility": "figure4 (a), flexibility", "lambda": "figure4 (b), lambda"}.get(plan.item.name, plan.item.name)
    words = re.sub(r"(table|figure)(\d+)", r"\1 \2", name.removeprefix("psoft-"))
    return f"{'PSOFT' if name.startswith('psoft-') else 'GOFT'} {words}"


def page_order(name: str) -> tuple[Any, ...]:
    """Return the sort key of an item on the page: GOFT before PSOFT, tables before figures, by number."""
    number = re.search(r"\d+", name)
    return name.startswith("psoft-"), "table" not in name, int(number[0]) if number else 99, name


def published_table(name: str, item: Item) -> Table:
    """Return the printed values of an item as a table of their own, since they are of other data."""
    table = Table(
        f"{name}-published", f"{item.title} as printed (other data; context only)", ["", "#Param", *item.titles], has_methods=True
    )
    table.groups = [ColumnGroup(title, 2 + first, titles) for title, first, titles in item.column_groups]
    for row in load_rows(item.paper, item.table):
        cells, extra = ([row.printed(column.printed) for column in columns] for columns in (item.columns, item.extra_columns))
        averages = printed_averages(row, item)
        shown = [*cells, *(None if mean is None else round(mean, 1) for mean in averages[:-1]), *averages[-1:], *extra]
        parts = (row.targets, f"λ={row.penalty:g}" if row.penalty is not None else None)
        label = "".join([method_label(row.method, row.variant or row.method), *(f", {part}" for part in parts if part)])
        values = ("-" if v is None else str(v).upper() if isinstance(v, str) else f"{v:g}" for v in shown)
        table.rows.append([label, row.params or "-", *values])
    return table


def orthogonality_sections(found: RecordSet) -> list[Section]:
    """Return the orthogonality error during training, by suite and protocol."""
    sections = []
    for protocol, suite in sorted({(r["protocol"], r["suite"]) for r in found.records if r["orthogonality"]["max_error"] is not None}):
        traces = read_traces(found, protocol, suite)
        if traces:
            table = build_trace_table(traces, protocol, suite)
            table.name = f"orthogonality-{suite}-{protocol}"
            figures = _figure(table.name, traces_chart(traces), "orthogonality error during training: median and range of the runs")
            title = f"orthogonality: {suite_info(suite).title}"
            place = {"paper": "Orthogonality", "entry": title, "protocol": protocol}
            sections.append(Section(table.name, f"{title} ({protocol})", [table], figures, **place))
    return sections


def retention_sections(found: RecordSet) -> list[Section]:
    """Return what is retained of the pretrained backbone, by suite and protocol."""
    sections = []
    for protocol, suite in measured_suites(found):
        tables, figures = retention_report(retention_rows(found.records, found.files, protocol, suite), protocol, suite)
        title = tables[0].title.replace("Retention", "retention")
        place = {"paper": "Retention (not in the papers)", "entry": title, "protocol": protocol}
        sections.append(Section(f"retention-{suite}-{protocol}", f"{title} ({protocol})", tables, figures, **place))
    return sections


def health_section(table: Table | None) -> Section | None:
    """Return the health of the pocket benchmark, or None without records under that protocol."""
    if table is None:
        return None
    return Section("benchmark-health", "benchmark health (pocket)", [table], paper="Records", entry="benchmark health", protocol="pocket")


def machine_section(records: Sequence[Record], problems: Sequence[str]) -> Section:
    """Return the code, packages and hardware of the records, and the files that could not be read."""
    table = Table("machine", "provenance of the records", ["commit", "device", "threads", "Python", "torch", "records"])
    count: dict[tuple[str, ...], int] = collections.Counter()
    for record in records:
        provenance = record["provenance"]
        hardware, packages = provenance["hardware"], provenance["packages"]
        commit = str(provenance["commit"])[:10] + (" (dirty)" if provenance["dirty"] else "")
        device = f"{hardware['device']}: {hardware['processor']}, {hardware['cores']} cores"
        count[commit, device, str(hardware["threads"]), packages.get("python", "-"), packages.get("torch", "-")] += 1
    table.rows = [[*place, str(number)] for place, number in sorted(count.items())]
    table.notes = [f"left out: {problem}" for problem in problems]
    return Section("machine", "code and machines", [table], paper="Records")


def other_runs(records: Sequence[Record], sections: Sequence[Section]) -> Section | None:
    """Return the records that no table shows, such as those of other settings, or None."""
    shown = {key for section in sections for table in section.tables for keys in table.sources.values() for key in keys}
    rest = [record for record in records if record["key"] not in shown]
    if not rest:
        return None
    table = Table("other-runs", "runs that no item needs", ["task", "protocol", "method", "model", "seed", "score"])
    for record in sorted(rest, key=lambda r: (r["protocol"], r["suite"], r["task"], r["method"], r["variant"], r["model"], r["seed"])):
        value = record["metrics"].get(record["primary"], {}).get("value")
        table.sources[len(table.rows), 5] = [record["key"]]
        names = [f"{record['suite']}/{record['task']}", record["protocol"], f"{record['method']}@{record['variant']}", record["model"]]
        table.rows.append([*names, str(record["seed"]), record["status"] if value is None else f"{value:.2f}"])
    return Section("other-runs", "other runs", [table], paper="Records")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def summarise(sections: Sequence[Section], records: Sequence[Record], costs: Sequence[BenchColumn]) -> Summary:
    """Return the first screen: three sentences about the records, score against parameters and retention, cost against LoRA, and the main table.

    Args:
        costs: shapes of whole models from the benchmark.
    """
    done = [record for record in records if record["status"] == "done"]
    protocols = collections.Counter(record["protocol"] for record in done)
    shares = ", ".join(f"{number:,} under protocol {name}" for name, number in protocols.most_common())
    methods, tasks = ({record[name] for record in done} for name in ("method", "task"))
    papers = [name for name in protocols if name not in ("pocket", "small")]
    published = (
        f"Runs under {', '.join(papers)} stand next to the published values."
        if papers
        else "No run follows a protocol of the papers yet, so that no published value is confirmed or refuted; theirs are shown for context."
    )
    sentences = [
        f"{_counted(len(done), 'finished run')} of {_counted(len(methods), 'method')} on {_counted(len(tasks), 'task')}: {shares}.",
        "Protocol pocket has synthetic data and small models pretrained on them, which compares methods but not with the papers; small has real "
        f"rows and MiniLM-L6. {published}",
        "Every underlined number opens its runs with curve, settings, provenance and the command that repeats them; in figures, values appear on "
        "hover, and a click on the legend shows one row.",
    ]
    main = next((section for section in sections if section.name == "table1-pocket"), sections[0] if sections else None)
    figures = main.figures[:1] if main is not None else []
    names = ("retention-glue-pocket", "orthogonality-glue-pocket")  # the second if retention was not measured
    figures += next((section.figures[:1] for name in names for section in sections if section.name == name), [])
    caption = "training step relative to LoRA r=8: median and interquartile range of the time, and peak memory"
    figures += _figure("cost", cost_chart([(one.line, one.record) for one in costs]), caption)
    return Summary(sentences, figures, main.tables[0] if main is not None and main.tables else None)
