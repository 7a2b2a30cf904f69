"""Every table and figure from the records that are there, and results/report.html, one page with all of them: what `make report` calls.

python scripts/report.py                        your runs (results/runs)
python scripts/report.py --records measured     the committed ones
"""

import argparse
import collections
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft import audit
from qgoft.cli import Parser
from qgoft.commands.items import ItemPlan, bench_folders, compose_parts, own_items, plan_items, printed_item, rows_of, tables_of
from qgoft.config.compose import REPOSITORY, choices, model_files
from qgoft.config.settings import method_label
from qgoft.errors import QgoftError
from qgoft.records import RecordSet, write_atomically
from qgoft.report.charts import draw_curves, draw_flexibility, draw_lambda, draw_pareto, draw_wins
from qgoft.report.cost import read_bench
from qgoft.report.items import SUITES, Record
from qgoft.report.orthogonality import build_trace_table, draw_traces, read_traces
from qgoft.report.page import Section, build_page
from qgoft.report.published import load_rows
from qgoft.report.rows import RecordLibrary, read_library
from qgoft.report.score_table import Row, printed_averages
from qgoft.report.table import Table, document
from qgoft.sweep.plan import ItemFilter, MeanSeconds, mean_seconds, named, sum_seconds

# The task whose training curves stand for those of its suite.
CURVES = {"glue": "rte", "squad": "v1", "vtab": "dtd", "instruct": "vicuna", "math": "gsm8k", "commonsense": "boolq"}


def item_section(part: ItemPlan, rows: Sequence[Row], ask: ItemFilter, library: RecordLibrary, root: Path, jobs: int) -> Section | None:
    """An item of runs with its tables and figures; None where it has no record."""
    name, protocol = part.item.name, ask.protocol
    title = f"{item_title(name)} ({protocol})"
    if not any(row.records or row.failed for row in rows):
        return None
    tables = tables_of(part, rows, ask, library, jobs)
    item = printed_item(name)
    stem = root / "figures" / (name if protocol == "pocket" else f"{name}-{protocol}")
    figures: list[Path] = []
    if name == "flexibility":
        figures += draw_flexibility(item, rows, stem)
    elif name == "lambda":
        figures += draw_lambda(item, rows, stem)
    elif name == "figure3":
        figures += [path for table in tables if table.name.startswith("figure3") for path in draw_wins(table, stem)]
    elif item.has_average:
        figures += draw_pareto(item, rows, stem.with_name(f"{stem.name}-pareto"))
    if name in ("table1", "table3", "table4", "psoft-table2", "psoft-table4", "psoft-table5"):
        task = CURVES[item.suite]
        figures += draw_curves(rows, task, f"{item.suite}/{task}", library.folders, stem.with_name(f"{stem.name}-curves"))
    if not item.no_published_values and name != "figure3" and protocol in ("pocket", "small"):
        # On the page the printed figures are a table; in the terminal they are notes.
        tables[0].notes = [note for note in tables[0].notes if not note.startswith(("published ", "published: "))]
        tables.append(published_table(name, protocol))
    return Section(f"{name}-{protocol}", title, tables, [path for path in figures if path.suffix == ".svg"])


def item_title(name: str) -> str:
    """`PSOFT table 17` for psoft-table17."""
    words = re.sub(r"(table|figure)(\d+)", r"\1 \2", name.removeprefix("psoft-"))
    titles = {
        "flexibility": "GOFT figure 4 (a), flexibility",
        "lambda": "GOFT figure 4 (b), lambda",
        "pairing": "pairings (ours)",
        "exactness": "exact and as released (ours)",
        "pictures": "real pictures (ours)",
        "real-glue": "real GLUE (ours)",
    }
    return titles.get(name) or f"{'PSOFT' if name.startswith('psoft-') else 'GOFT'} {words}"


def in_order(name: str) -> tuple[Any, ...]:
    """Items of the page: GOFT before PSOFT, tables before figures, by number."""
    number = re.search(r"\d+", name)
    return name.startswith("psoft-"), "table" not in name, int(number[0]) if number else 99, name


def published_table(name: str, protocol: str) -> Table:
    """The printed figures of an item, where they stand for other data and may not be subtracted."""
    item = printed_item(name)
    table = Table(f"{name}-published", f"{item.title} as printed (other data; context only)", ["", "#Param", *item.titles])
    for row in load_rows(item.paper, item.table):
        cells, extra_columns = ([row.printed(column.printed) for column in columns] for columns in (item.columns, item.extra_columns))
        averages = printed_averages(row, item)
        shown = [*cells, *(None if mean is None else round(mean, 1) for mean in averages[:-1]), *averages[-1:], *extra_columns]
        label = method_label(row.method, row.variant or row.method)
        extra = "".join(f", {word}" for word in (row.targets, f"λ={row.penalty:g}" if row.penalty is not None else None) if word)
        table.rows.append(
            [label + extra, row.params or "-", *("-" if v is None else str(v).upper() if isinstance(v, str) else f"{v:g}" for v in shown)]
        )
    return table


def orthogonality_sections(found: RecordSet, root: Path) -> list[Section]:
    """The error of orthogonality over the training, by suite."""
    sections = []
    for protocol, suite in sorted({(r["protocol"], r["suite"]) for r in found.records if r["orthogonality"]["max_error"] is not None}):
        traces = read_traces(found, protocol, suite)
        if traces:
            table = build_trace_table(traces, protocol, suite)
            table.name = f"orthogonality-{suite}-{protocol}"
            figures = draw_traces(traces, root / "figures", f"orthogonality-{suite}-{protocol}")
            title = f"orthogonality: {SUITES[suite]} ({protocol})"
            sections.append(Section(table.name, title, [table], [path for path in figures if path.suffix == ".svg"]))
    return sections


def audit_section() -> Section:
    """What `make audit` finds. It is committed, since it needs the architectures and changes with the printed figures alone."""
    kept = json.loads((REPOSITORY / "results" / "published" / "audit.json").read_text())
    findings, checked = [audit.Finding(**finding) for finding in kept["findings"]], kept["checked"]
    return Section("audit", "audit of the printed figures", audit.build_findings(findings, checked))


def machine_section(records: Sequence[Record], problems: Sequence[str]) -> Section:
    """Which code, packages and hardware the records come from, and what could not be read."""
    table = Table("machine", "where the numbers come from", ["commit", "device", "threads", "Python", "torch", "records"])
    count: dict[tuple[str, ...], int] = collections.Counter()
    for record in records:
        provenance = record["provenance"]
        hardware, packages = provenance["hardware"], provenance["packages"]
        commit = str(provenance["commit"])[:10] + (" (dirty)" if provenance["dirty"] else "")
        device = f"{hardware['device']}: {hardware['processor']}, {hardware['cores']} cores"
        count[commit, device, str(hardware["threads"]), packages.get("python", "-"), packages.get("torch", "-")] += 1
    table.rows = [[*place, str(number)] for place, number in sorted(count.items())]
    table.notes = [f"left out: {problem}" for problem in problems]
    return Section("machine", "code and machines", [table])


def unopened(records: Sequence[Record], sections: Sequence[Section]) -> Section | None:
    """Records that no table shows: other methods, settings and protocols."""
    shown = {key for section in sections for table in section.tables for keys in table.sources.values() for key in keys}
    rest = [record for record in records if record["key"] not in shown]
    if not rest:
        return None
    table = Table("other-runs", "runs that no item of the papers asks for", ["task", "protocol", "method", "model", "seed", "score"])
    for record in sorted(rest, key=lambda r: (r["protocol"], r["suite"], r["task"], r["method"], r["variant"], r["model"], r["seed"])):
        value = record["metrics"].get(record["primary"], {}).get("value")
        table.sources[len(table.rows), 5] = [record["key"]]
        words = [f"{record['suite']}/{record['task']}", record["protocol"], f"{record['method']}@{record['variant']}", record["model"]]
        table.rows.append([*words, str(record["seed"]), record["status"] if value is None else f"{value:.2f}"])
    return Section("other-runs", "other runs", [table])


def runs_behind(tables: Sequence[Table]) -> str:
    """Table -> row -> column -> keys of the records behind a cell, a row a line, so that a quoted number can be followed and computed again."""
    found = {}
    for table in tables:
        rows: dict[str, dict[str, list[str]]] = {}
        for (line, place), keys in sorted(table.sources.items()):
            if table.columns[place] != "Avg":  # those of the other columns
                rows.setdefault(table.rows[line][0], {})[table.columns[place]] = sorted(key[:16] for key in keys)
        if rows and table.name != "other-runs":
            found[table.name] = rows
    lines = (
        f"{json.dumps(name)}: {{\n" + ",\n".join(f" {json.dumps(row)}: {json.dumps(cells)}" for row, cells in rows.items()) + "\n}"
        for name, rows in found.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _diverged(failed: Sequence[Record]) -> list[Record]:
    """Runs that need not be made again: they would diverge again."""
    return [record for record in failed if record["status"] == "diverged"]


@dataclass
class Left:
    """What of an item has no record yet."""

    item: str
    protocol: str
    planned: int
    runs: collections.Counter[tuple[str, str]]  # by task and method
    seconds: float | None  # of one process on this kind of machine, from records of the protocol

    def row(self, hours: dict[str, Any]) -> list[str]:
        a_run = hours["hours_a_run"].get(self.protocol, {}).get(self.item)
        if a_run is not None:
            work = sum(a_run[task] * number for (task, _), number in self.runs.items())
            cost = f"{work:.0f} {'hours of a core' if self.protocol == 'small' else 'GPU hours'}"
        elif self.seconds is not None:
            cost = f"{self.seconds / 3600:.1f} hours of a core"
        else:
            cost = "not known"
        command = f"make {self.item} PROTOCOL={self.protocol}"
        return [self.item, self.protocol, str(self.planned), str(self.runs.total()), cost, command]


def what_is_left(part: ItemPlan, ask: ItemFilter, made: Iterable[Record], known: MeanSeconds) -> Left:
    """The runs of an item without a record, and their time by records of the same suite and method."""
    runs: collections.Counter[tuple[str, str]] = collections.Counter()
    for words, seeds in part.overrides:
        asked = named(words)
        runs[asked["task"], asked["method"]] += len(seeds)
    planned = runs.total()
    runs -= collections.Counter((f"{record['suite']}/{record['task']}", record["method"]) for record in made)
    seconds = sum_seconds(known, ask.protocol, ((task.partition("/")[0], method, number) for (task, method), number in runs.items()))
    return Left(part.item.name, ask.protocol, planned, runs, seconds)


def left_section(left: Sequence[Left], benches: Sequence[str]) -> Section | None:
    """Items, or a part of them, that no record is of: what makes them, and at what cost."""
    hours = json.loads((REPOSITORY / "results" / "published" / "hours.json").read_text())
    rows = [one.row(hours) for one in left if one.runs]
    rows += [[name, "a CUDA device", "-", "-", "not known", "make bench BENCH=paper"] for name in benches]
    if not rows:
        return None
    notes = [
        "runs that two items share are counted in both",
        f"an estimate, for a CPU core of {hours['core_speed']:g} TFLOP/s (pocket: by the records of the same suite and method), and for a GPU of {hours['speed'][0]:g} in float32 and {hours['speed'][1]:g} in bfloat16 (scripts/hours.py says what it leaves out)",
    ]
    table = Table("missing", "what has no record yet", ["item", "protocol", "runs planned", "runs left", "cost", "command"], rows, notes)
    return Section("missing", table.title, [table])


def main(words: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="runs", choices=["runs", "measured"])
    parser.add_argument("--root", type=Path, default=REPOSITORY / "results", help="results.root of the records")
    parser.add_argument("--out", type=Path, help="where tables, figures and the page go; default: --root")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(words)
    out = arguments.out or arguments.root
    sections: list[Section] = []
    left: list[Left] = []
    benches: list[str] = []  # items that no CUDA device has measured
    library = read_library(arguments.root, arguments.records, "pocket")  # with the answers of that protocol's controls
    records = library.index.records
    if not records and not library.problems:
        raise QgoftError(
            f"there is no record below {arguments.root / arguments.records}; run something first, such as make glue METHOD=qgoft"
        )
    costs: list[Section] = []
    for protocol in sorted(choices("protocol"), key=lambda name: name == "pocket"):  # real data first
        ask = ItemFilter(protocol)
        planned = plan_items(["all", *own_items(protocol)], ask)
        planned.sort(key=lambda part: (part.item.bench is not None, in_order(part.item.name)))
        parts = [part.only_made(library.index) for part in planned]
        known = mean_seconds(records, protocol)
        for whole, part, cells in zip(planned, parts, compose_parts(parts, arguments.jobs), strict=True):
            if part.item.bench is None:
                rows = rows_of(part, cells, ask, library)
                made = {
                    r["key"]: r for row in rows for found in (*row.records.values(), *map(_diverged, row.failed.values())) for r in found
                }
                left.append(what_is_left(whole, ask, made.values(), known))
                section = item_section(part, rows, ask, library, out, arguments.jobs)
                sections += [section] if section is not None else []
            elif part.item.name not in [section.name for section in costs]:  # the same under every protocol
                found = read_bench(bench_folders(library), part.item.name, part.item.bench)
                benches += [] if any(one.record["hardware"]["device"] != "cpu" for one in found) else [part.item.name]
                costs.append(Section(part.item.name, item_title(part.item.name), tables_of(part, [], ask, library, arguments.jobs)))
    sections += costs
    sections += orthogonality_sections(RecordSet(records, library.folders, []), out)
    other = unopened(records, sections)
    sections += [*([other] if other is not None else []), audit_section(), machine_section(records, library.problems)]
    missing = left_section(left, benches)
    sections += [missing] if missing is not None else []
    tables = [table for section in sections for table in section.tables]
    for table in tables:
        table.write(out / "tables")
    write_atomically(out / "tables" / "all.tex", document(tables))
    write_atomically(out / "tables" / "runs.json", runs_behind(tables))
    lead = f"{len(records)} runs. Every number with a dotted line opens the runs behind it. Bold: best of its column, double line: second, where paired intervals tell it from all below."
    page = build_page("qgoft: results", lead, sections, records, library.folders, model_files())
    path = write_atomically(out / "report.html", page)
    size = path.stat().st_size / 1e6
    print(
        f"{len(records)} records, {len(sections)} sections, {sum(one.runs.total() == one.planned for one in left)} items without a record: {path} ({size:.1f} MB)"
    )
    for problem in library.problems:
        print(f"qgoft: {problem}", file=sys.stderr)
    return 0
