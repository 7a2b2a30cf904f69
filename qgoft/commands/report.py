"""Write all tables and figures of the records, and one page with all of them (results/report.html): `make report`.

Usage:
    python scripts/report.py                       your runs (results/runs)
    python scripts/report.py --records measured    the committed records
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from qgoft import audit
from qgoft.cli import Parser
from qgoft.config.compose import model_files
from qgoft.config.locations import COMMAND, MEASURED, PUBLISHED, RESULTS
from qgoft.config.suites import config_names
from qgoft.errors import QgoftError
from qgoft.machine import available_cores
from qgoft.records import RecordSet, write_atomically
from qgoft.report.cost import part_benches, read_bench
from qgoft.report.health import build_health, is_main_table
from qgoft.report.item_tables import bench_directories, item_rows, item_tables
from qgoft.report.items import item_named
from qgoft.report.latex import document
from qgoft.report.library import RecordLibrary, read_library
from qgoft.report.missing import MissingRuns, missing_runs, missing_section
from qgoft.report.page import Section, build_page
from qgoft.report.row import Row
from qgoft.report.sections import (
    health_section,
    item_section,
    item_title,
    machine_section,
    orthogonality_sections,
    other_runs,
    page_order,
    retention_sections,
    summarise,
)
from qgoft.report.style import add_style_arguments, style_of
from qgoft.report.table_files import write_table
from qgoft.sweep.forecast import mean_seconds
from qgoft.sweep.items import ItemFilter, ItemPlan, compose_plans, own_items, plan_items
from qgoft.sweep.settings_cache import commit_settings


@dataclass
class Report:
    """The report of a library of records.

    Attributes:
        out: directory of the tables, figures and page.
        jobs: processes that compose settings.
        costs: sections of the benchmark, the same under every protocol.
        missing: runs without a record, by item.
        benches: items of the benchmark that were not measured on a GPU.
        pocket_rows: suite -> rows of its table under protocol pocket.
    """

    library: RecordLibrary
    out: Path
    jobs: int
    sections: list[Section] = field(default_factory=list)
    costs: dict[str, Section] = field(default_factory=dict)
    missing: list[MissingRuns] = field(default_factory=list)
    benches: list[str] = field(default_factory=list)
    pocket_rows: dict[str, list[Row]] = field(default_factory=dict)

    def build(self) -> list[Section]:
        """Build all sections."""
        records = self.library.index.records
        for protocol in sorted(config_names("protocol"), key=lambda name: name == "pocket"):  # real data first
            self.add_protocol(protocol)
        self.sections += self.costs.values()
        others = other_runs(records, self.sections)
        found = RecordSet(list(records), self.library.files, [])
        self.sections += [*retention_sections(found), *orthogonality_sections(found)]
        ends = (
            health_section(build_health(self.pocket_rows, self.jobs)),
            others,
            audit_section(),
            machine_section(records, self.library.problems),
            missing_section(self.missing, self.benches),
        )
        self.sections += [section for section in ends if section is not None]
        return self.sections

    def add_protocol(self, protocol: str) -> None:
        """Add the sections of all items that a protocol supports."""
        ask = ItemFilter(protocol)
        planned = plan_items(["all", *own_items(protocol)], ask)
        planned.sort(key=lambda plan: (plan.item.bench is not None, page_order(plan.item.name)))
        plans = [plan.only_recorded(self.library.index) for plan in planned]
        known = mean_seconds(self.library.index.records, protocol)
        for whole, plan, runs in zip(planned, plans, compose_plans(plans, self.jobs), strict=True):
            if plan.item.bench is not None:
                self.add_bench(plan, ask)
                continue
            rows = item_rows(plan, runs, ask, self.library)
            self.missing.append(missing_runs(whole, protocol, rows, known))
            if protocol == "pocket" and is_main_table(suite := item_named(plan.item).suite, plan.item.name):
                self.pocket_rows[suite] = rows
            section = item_section(plan, rows, ask, self.library, self.jobs)
            self.sections += [section] if section is not None else []

    def add_bench(self, plan: ItemPlan, ask: ItemFilter) -> None:
        """Add an item of the benchmark, once."""
        name = plan.item.name
        if name in self.costs:
            return
        found = read_bench(bench_directories(self.library), name, plan.item.bench or "")
        self.benches += [] if any(one.record["hardware"]["device"] != "cpu" for one in found) else [name]
        tables = item_tables(plan, [], ask, self.library, self.jobs)
        self.costs[name] = Section(name, item_title(plan), tables, paper="Time and memory")

    def write(self) -> Path:
        """Write the tables and the page. Return the path of the page."""
        # Sections of two protocols show the same printed figures.
        tables = {table.name: table for section in self.sections for table in section.tables}
        for table in tables.values():
            write_table(table, self.out / "tables", self.library.files)
        write_atomically(self.out / "tables" / "all.tex", document(list(tables.values())))
        records = self.library.index.records
        summary = summarise(self.sections, records, part_benches(bench_directories(self.library), "model"))
        figures = {figure.name: figure for figure in [*summary.figures, *(figure for one in self.sections for figure in one.figures)]}
        for figure in figures.values():
            figure.write(self.out / "figures")
        page = build_page("qgoft: results", summary, self.sections, records, self.library.files, model_files())
        return write_atomically(self.out / "report.html", page)


def audit_section() -> Section:
    """Return the findings of `make audit`, which are committed: they need the architectures, and change only with the published values."""
    stored = json.loads((PUBLISHED / "audit.json").read_text())
    findings = [audit.Finding(**finding) for finding in stored["findings"]]
    tables = audit.build_findings(findings, stored["checked"])
    return Section("audit", "audit of the published values", tables, paper="Published values")


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="runs", choices=["runs", MEASURED.name])
    parser.add_argument("--root", type=Path, default=RESULTS, help="results.root of the records")
    parser.add_argument("--out", type=Path, help="directory of tables, figures and page; default: --root")
    add_style_arguments(parser)
    parser.add_argument(
        "--commit-settings", action="store_true", help="store the composed settings with the committed records, for a quick start"
    )
    parser.add_argument("--jobs", type=int, default=available_cores())
    arguments = parser.parse_args(argv)
    library = read_library(arguments.root, arguments.records, "pocket", style_of(arguments))
    records = library.index.records
    if not records and not library.problems:
        raise QgoftError(f"{arguments.root / arguments.records}: no record; run something first, such as `{COMMAND} glue`")
    report = Report(library, arguments.out or arguments.root, arguments.jobs)
    report.build()
    path = report.write()
    without = sum(one.runs.total() == one.planned for one in report.missing)
    size = path.stat().st_size / 1e6
    print(f"{len(records)} records, {len(report.sections)} sections, {without} items without a record: {path} ({size:.1f} MB)")
    for problem in library.problems:
        print(f"qgoft: {problem}", file=sys.stderr)
    if arguments.commit_settings:
        print(f"settings: {os.path.relpath(commit_settings())}")
    return 0
