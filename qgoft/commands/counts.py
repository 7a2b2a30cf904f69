"""Print the trainable parameters of every method, head excluded, on the papers' models, next to the published counts: `make counts`.

Only shapes are built; no weights are needed. Every real build checks the same formulas (qgoft/methods/registry.py).
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from torch import nn

from qgoft.cli import Parser
from qgoft.config import locations
from qgoft.config.compose import method_config
from qgoft.config.locations import RESULTS
from qgoft.config.settings import method_label
from qgoft.errors import QgoftError, check_choice
from qgoft.methods.registry import REGISTRY, Method, find_targets, parse_variant
from qgoft.models.architectures import build_shapes
from qgoft.report.counts import REASONS, agrees
from qgoft.report.published import load_figures
from qgoft.report.table import Table, terminal_width
from qgoft.report.table_files import write_table
from qgoft.sweep.planned_run import split_list

# Paper, table, model, and the target set of rows that name none.
TABLES = [
    ("goft-icml2024", "table1", "deberta_v3_base", "all_linear"),
    ("goft-icml2024", "table4", "deberta_v3_base", "all_linear"),
    ("psoft-iclr2026", "table2", "deberta_v3_base", "all_linear"),
    ("goft-icml2024", "table3", "vit_base", "query_value"),
    ("psoft-iclr2026", "table3", "vit_base", "all_linear"),
    ("goft-icml2024", "table2", "llama2_7b", "attention"),
    ("psoft-iclr2026", "table4", "llama32_3b", "all_linear"),
    ("psoft-iclr2026", "table13", "llama32_3b", "all_linear"),
    ("psoft-iclr2026", "table5", "llama31_8b", "qkvud"),
    ("psoft-iclr2026", "table15", "llama31_8b", "qkvud"),
    ("psoft-iclr2026", "table17", "deberta_v3_base", "all_linear"),
    ("psoft-iclr2026", "table18", "llama32_3b", "all_linear"),
]
# Variant of a method in tables that name none.
USUAL = {"lora": "r8", "dora": "r8", "pissa": "r8", "adalora": "r8", "lora_xs": "r136", "psoft": "r46", "hra": "r8", "oft": "b32", "oft_v2": "b32",
         "oft_paper": "b8", "boft": "b8m2", "fact_tt": "r16", "fact_tk": "r32", "h_adapter": "r8", "p_adapter": "r16"}  # fmt: skip


METHODS = """full linear bitfit h_adapter p_adapter lora dora pissa adalora lora_xs svft_p fact_tt fact_tk oft_paper oft oft_v2 boft hra psoft
goft goft_star qgoft goft_v2 qgoft_v2""".split()


@dataclass(frozen=True)
class Printed:
    paper: str
    table: str
    row: str
    params: str | None


def count(model: nn.Module, spec: dict, method: Method, variant: str, targets: str) -> int:
    """Return the trainable parameters by the method's formula, or by parameter names for methods that train existing parameters.

    Raises:
        ValueError: the method does not fit this model.
    """
    if method.num_params is None:
        assert method.is_trainable is not None
        head = set(spec["head_modules"])
        return sum(p.numel() for name, p in model.named_parameters() if method.is_trainable(name) and not head & set(name.split(".")))
    shapes = list(find_targets(model, spec["target_sets"][targets], method.shape_of).values())
    return method.num_params(shapes, parse_variant(method, variant))


def own_targets(method: str, targets: str) -> str:
    """Return the target set of a method that has one of its own, or else the given one."""
    chosen: str = method_config(method).get("targets", targets)
    return chosen


def published() -> dict[tuple[str, str], dict[tuple[str, str], list[Printed]]]:
    """Return (model, target set) -> (method, variant) -> places where its count is printed."""
    places: dict[tuple[str, str], dict[tuple[str, str], list[Printed]]] = {}
    for paper, table, model, targets in TABLES:
        rows = places.setdefault((model, targets), {})
        printed = load_figures(paper, table)
        for name, row in printed["rows"].items():
            params = str(row["values"][0]) if printed["columns"][0] == "params" else row["params"]
            method, variant = row["method"], row["variant"] or USUAL.get(row["method"], row["method"])
            place = places.setdefault((model, row["targets"]), {}) if "targets" in row else rows
            place.setdefault((method, variant), []).append(Printed(paper, table, name, params))
    return places


def verdict(number: int, printed: Printed, total: int, notes: list[str]) -> str:
    """Return the verdict on a printed count. An explanation becomes a note."""
    if printed.params is None:
        return ""
    if printed.params == "0M" or agrees(number, printed.params, total):
        return "agrees"
    reason = REASONS.get((printed.paper, printed.table, printed.row))
    if reason is None:
        return "DIFFERS"
    if reason not in notes:
        notes.append(reason)
    return f"({notes.index(reason) + 1})"


def build_table(methods: Sequence[str] = ()) -> Table:
    """Return the counts of some methods on all models and target sets of the papers."""
    table = Table("counts", "trainable parameters, head excluded", ["model", "layers", "method", "count", "published", "where", ""])
    models: dict[str, nn.Module] = {}
    reasons: list[str] = []
    for (name, targets), printed in published().items():
        model = models.setdefault(name, build_shapes(name))
        spec = yaml.safe_load((locations.CONFIGS / "model" / f"{name}.yaml").read_text())
        total = sum(p.numel() for p in model.parameters())
        table.rules_before.append(len(table.rows))
        others = {m: usual_variant(m) for m in REGISTRY if m not in {known for known, _ in printed}}
        asked = {**printed, **{(m, variant): [] for m, variant in others.items() if variant is not None}}
        asked = {(m, variant): places for (m, variant), places in asked.items() if not methods or m in methods}
        order = [m for m in METHODS if m in REGISTRY] + sorted(set(REGISTRY) - set(METHODS))
        for method, variant in sorted(asked, key=lambda row: (order.index(row[0]), int("0" + re.sub(r"\D", "", row[1])))):
            layers = own_targets(method, targets) if REGISTRY[method].num_params else "-"
            row = [name, layers, method_label(method, variant)]
            try:
                number = count(model, spec, REGISTRY[method], variant, layers)
            except ValueError as error:
                table.rows.append([*row, "-", "-", "", str(error).partition(";")[0]])
                continue
            if number == 0 and not asked[method, variant]:
                continue
            for place in asked[method, variant] or [Printed("", "", "", None)]:
                where = f"{place.paper.partition('-')[0].upper()} {place.table}".replace("table", "table ") if place.params else ""
                table.rows.append([*row, f"{number:,}", place.params or "-", where, verdict(number, place, total, reasons)])
    table.notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    return table


def usual_variant(method: str) -> str | None:
    """Return the variant of a method that no table names: that of its recipes, or else its own name."""
    if method in USUAL:
        return USUAL[method]
    recipes = (yaml.safe_load(path.read_text("utf-8")) for path in sorted((locations.CONFIGS / "recipe").glob(f"*/{method}.yaml")))
    named = next((str(recipe["variant"]) for recipe in recipes if recipe and "variant" in recipe), method)
    try:
        parse_variant(REGISTRY[method], named)
    except QgoftError:
        return None
    return named


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="", help="comma list; default all")
    methods = [name.partition("@")[0] for name in split_list(parser.parse_args(argv).method)]
    for method in methods:
        check_choice("method", method, list(REGISTRY), "change METHOD")
    table = build_table(methods)
    print(table.terminal(terminal_width()))
    write_table(table, RESULTS / "tables")
    return 1 if any(row[-1] == "DIFFERS" for row in table.rows) else 0
