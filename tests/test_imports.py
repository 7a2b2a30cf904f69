"""Import directions, read from the sources."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "qgoft"
# Package or module -> the others of qgoft that it may import. All may import `EVERYWHERE`.
# `commands` may import everything, and only `cli` imports it.
ALLOWED = {
    "_import_hook": set(),
    "audit": {"ops", "report"},
    "bench": {"ops", "tuners", "methods", "models", "pocket", "records"},
    "cli": {"records"},
    "config": set(),
    "console": set(),
    "errors": set(),
    "fidelity": {"methods", "tasks", "tuners"},
    "judge": {"records"},
    "lease": {"records"},
    "methods": {"ops", "tuners"},
    "models": set(),
    "ops": set(),
    "pocket": {"records"},
    "machine": set(),
    "records": {"machine"},
    "report": {"records", "judge", "sweep"},
    "retention": {"train", "tuners", "methods", "models", "tasks", "records", "lease", "run_id", "pocket"},
    "run_id": {"records", "tasks", "lease"},
    "sweep": {"machine", "train", "retention", "tasks", "records", "lease", "run_id", "pocket", "methods"},
    "tasks": {"pocket", "records", "models", "judge", "run_id"},
    "train": {"tuners", "methods", "models", "tasks", "records", "lease", "run_id", "judge", "pocket"},
    "tuners": {"ops"},
}
EVERYWHERE = {"console", "errors", "config"}
# Scoring rules without dependencies: a report recomputes item scores with the functions of training.
SCORING = {"qgoft.tasks.decoder.answer_parsing", "qgoft.tasks.decoder.published_rules", "qgoft.tasks.squad.scoring"}
# Third-party packages that a part may import, or may not.
ONLY = {"judge": set(), "ops": {"torch", "triton"}, "records": {"numpy", "pandas", "pyarrow"}, "errors": set(), "lease": set()}
FORBIDDEN = {part: {"torch", "transformers", "peft", "datasets"} for part in ("report", "run_id")}


def modules():
    """Yield (module name, its top-level part, file) of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if (len(parts) > 2 and parts[1] != "commands") or (parts[-1] not in ("__init__", "__main__") and parts[1] != "commands"):
            yield name, parts[1], path


def imported(nodes):
    """Yield the full name of everything that some statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports():
    for name, part, path in modules():
        for found in imported(ast.walk(ast.parse(path.read_text()))):
            yield name, part, found


def test_packages_are_listed():
    assert {part for _, part, _ in modules()} == set(ALLOWED)


def test_import_directions():
    for name, part, found in imports():
        words = found.split(".")
        if words[0] == "qgoft" and len(words) > 1:
            allowed = words[1] == part or words[1] in ALLOWED[part] | EVERYWHERE
            assert allowed or (part == "report" and found.rpartition(".")[0] in SCORING), f"{name} imports {found}"


def test_no_import_cycle():
    known = {name for name, _, _ in modules()}
    graph = {}
    for name, _, path in modules():
        found = imported(node for node in ast.parse(path.read_text()).body)  # at import time
        graph[name] = {word if word in known else word.rpartition(".")[0] for word in found} & known - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_third_party_imports():
    for name, part, found in imports():
        top = found.split(".")[0]
        if top == "qgoft" or top in sys.stdlib_module_names:
            continue
        assert top not in FORBIDDEN.get(part, set()), f"{name} imports {found}"
        assert top in ONLY.get(part, {top}), f"{name} imports {found}"


def test_only_config_imports_hydra():
    assert not [(part, found) for _, part, found in imports() if found.split(".")[0] in ("hydra", "omegaconf") and part != "config"]


def test_report_and_planning_without_torch():
    program = "import sys; sys.modules['torch'] = None; import qgoft.records, qgoft.run_id, qgoft.sweep.items, qgoft.report.score_table, qgoft.report.page"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
