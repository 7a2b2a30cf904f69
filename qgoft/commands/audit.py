"""Check the published values: averages, parameter counts, granularity, win counts, sizes of data sets, the released operator.

Usage:
    python scripts/audit.py                  all checks
    python scripts/audit.py --only counts    one of them
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from qgoft import audit
from qgoft.audit import Finding
from qgoft.audit.counts import PrintedCount, Reading
from qgoft.cli import Parser
from qgoft.config import locations
from qgoft.config.locations import RESULTS
from qgoft.errors import QgoftError, check_choice
from qgoft.report.table_files import write_table

CHECKS = ("averages", "counts", "granularity", "wins", "sizes", "operator")
# Target set that the text of a paper states, if its table counts another one.
STATED_TARGETS = {("goft-icml2024", "table3"): "all_linear"}
# The papers describe OFT by skew-symmetric matrices (Cayley), whose free entries `oft` counts.
STATED_METHODS = {"oft_paper": "oft"}
TARGETS = {
    "query_value": "query and value only",
    "all_linear": "all linear layers",
    "attention": "query, key, value and output",
    "qkvud": "q, k, v, up, down",
}


def official_sizes() -> dict[str, tuple[int, int]]:
    """Return the rows of GLUE's training and validation splits, from the task files."""
    sizes = {}
    for path in (locations.CONFIGS / "task" / "glue").glob("*.yaml"):
        rows = yaml.safe_load(path.read_text())["official_rows"]
        sizes[path.stem] = rows["train"], sum(count for name, count in rows.items() if name.startswith("validation"))
    return sizes


def printed_counts() -> list[PrintedCount]:
    """Return every printed count with its possible readings."""
    from qgoft.commands import counts  # builds the architectures, which takes seconds that other checks do not need
    from qgoft.config.settings import method_label
    from qgoft.methods.registry import REGISTRY
    from qgoft.models.architectures import build_shapes

    found: list[Any] = []
    models: dict[str, Any] = {}
    for (name, targets), rows in counts.published().items():
        model = models.setdefault(name, build_shapes(name))
        spec = yaml.safe_load((locations.CONFIGS / "model" / f"{name}.yaml").read_text())
        total = sum(p.numel() for p in model.parameters())

        def read(method: str, variant: str, layers: str, model: Any = model, spec: Any = spec) -> Reading | None:
            layers = counts.own_targets(method, layers) if REGISTRY[method].num_params else "-"
            try:
                number = counts.count(model, spec, REGISTRY[method], variant, layers)
            except (ValueError, KeyError):
                return None
            where = f", {TARGETS.get(layers, layers)}" if layers != "-" else ""
            return Reading(f"{method_label(method, variant)}{where}", number)

        for (method, variant), places in rows.items():
            for place in places:
                if place.params is None or place.params == "0M":
                    continue
                stated = read(STATED_METHODS.get(method, method), variant, STATED_TARGETS.get((place.paper, place.table), targets))
                tried = [
                    read(m, variant, t)
                    for m in dict.fromkeys((method, STATED_METHODS.get(method, method)))
                    for t in TARGETS
                    if t in spec["target_sets"]
                ]
                if stated is not None:
                    others = [reading for reading in tried if reading is not None and reading != stated]
                    found.append(PrintedCount(place.paper, place.table, place.row, place.params, total, stated, others))
    return found


def run(only: str | None) -> tuple[list[Finding], dict[str, int]]:
    """Return all findings, and the number of values of each check."""
    findings: list[Finding] = []
    checked: dict[str, int] = {}
    for name in (only,) if only else CHECKS:
        if name == "counts":
            printed = printed_counts()
            found, number = audit.check_counts(printed), len(printed)
        elif name == "sizes":
            found, number = audit.check_sizes(official_sizes())
        elif name == "operator":
            from qgoft.audit.operator import check_operator  # imports torch

            found, number = check_operator()
        else:
            found, number = {"averages": audit.check_averages, "granularity": audit.check_granularity, "wins": audit.check_wins}[name]()
        findings += found
        checked[name] = number
    return findings, checked


def print_findings(findings: list[Finding], checked: dict[str, int]) -> None:
    """Print each finding on a few lines, since a table would be wider than a terminal."""
    for title, is_explained in (("WHAT IS PRINTED AND DOES NOT FOLLOW", False), ("DIFFERENCES THAT HAVE AN EXPLANATION", True)):
        chosen = [finding for finding in findings if finding.is_explained == is_explained]
        print(f"{title}: {len(chosen)}")
        for finding in chosen:
            print(
                f"  {finding.where}\n      printed: {finding.printed}\n      follows: {finding.follows}\n      {finding.check}: {finding.sure}"
            )
        print()
    print("checked: " + ", ".join(f"{number} {name}" for name, number in checked.items()))


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=", ".join(CHECKS))
    parser.add_argument("--root", type=Path, default=RESULTS, help="results.root")
    parser.add_argument("--write", type=Path, help="results/published/audit.json, after a change of the transcribed figures or of a check")
    arguments = parser.parse_args(argv)
    if arguments.only:
        check_choice("check", arguments.only, list(CHECKS), "change --only")
        if arguments.write:
            raise QgoftError("--write stores the whole audit; omit --only")
    findings, checked = run(arguments.only)
    tables = audit.build_findings(findings, checked)
    print_findings(findings, checked)
    for table in tables:
        if arguments.only:  # a single check must not replace the whole audit
            table.name += f"-{arguments.only}"
        write_table(table, arguments.root / "tables")
        print(f"{arguments.root / 'tables' / table.name}.{{md,tex,csv}}")
    if arguments.write:
        arguments.write.write_text(as_json(findings, checked))
    return 0


def as_json(findings: list[Finding], checked: dict[str, int]) -> str:
    """Return the content of results/published/audit.json, which the report reads."""
    return json.dumps({"checked": checked, "findings": [dataclasses.asdict(finding) for finding in findings]}, indent=1) + "\n"
