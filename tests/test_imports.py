"""Import directions, read from the sources: a reversed arrow fails here."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "qgoft"
# part -> the other parts of qgoft it may import. Everything may import errors, settings and its own part.
ALLOWED = {
    "ops": set(),
    "tuners": {"ops"},
    "methods": {"ops", "tuners"},
    "models": set(),
    "pocket": {"records"},
    "records": set(),
    "tasks": {"pocket", "records"},
    "ledger": {"records", "tasks"},
    "judge": {"records"},
    "train": {"tuners", "methods", "models", "tasks", "records", "ledger", "judge", "pocket"},
    "report": {"records", "judge"},
    "audit": {"ops", "report"},
    "bench": {"ops", "tuners", "methods", "models", "records"},
    "errors": set(),
    "console": set(),
    "settings": set(),
    "_after_import": set(),
}
EVERYBODY = {"console", "errors", "settings"}
# Rules of scoring that are text and nothing else: a report scores answers again by the very functions that scored them first.
TEXT_ALONE = {"qgoft.tasks.answers", "qgoft.tasks.published_rules", "qgoft.tasks.spans"}
# Third-party packages that a part must not see. `ops` needs torch alone (triton where there is a GPU); `records` the standard library alone.
FORBIDDEN = {
    "report": {"torch", "transformers", "peft", "datasets", "hydra", "omegaconf"},
    "ledger": {"torch", "transformers", "peft", "hydra", "omegaconf"},
}
ONLY = {"judge": set(), "ops": {"torch", "triton"}, "records": set(), "errors": set(), "settings": set()}
STANDARD = set(__import__("sys").stdlib_module_names)


def imports():
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [f"{node.module}.{alias.name}" if node.module == "qgoft" else str(node.module) for alias in node.names]
            else:
                continue
            for name in names:
                yield path, part, name


def test_every_part_is_listed():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert parts <= set(ALLOWED)


def test_directions_inside_the_package():
    for path, part, name in imports():
        words = name.split(".")
        if words[0] == "qgoft" and len(words) > 1:
            allowed = words[1] == part or words[1] in ALLOWED[part] | EVERYBODY or (part == "report" and name in TEXT_ALONE)
            assert allowed, f"{path.relative_to(PACKAGE)} imports {name}"


def test_what_parts_may_need_from_outside():
    for path, part, name in imports():
        top = name.split(".")[0]
        if top == "qgoft" or top in STANDARD:
            continue
        assert top not in FORBIDDEN.get(part, set()), f"{path.relative_to(PACKAGE)} imports {name}"
        if part in ONLY:
            assert top in ONLY[part], f"{path.relative_to(PACKAGE)} imports {name}"


def test_only_scripts_know_hydra():
    assert not [name for _, _, name in imports() if name.split(".")[0] in ("hydra", "omegaconf")]


def test_reports_run_without_torch():
    import subprocess
    import sys

    program = "import sys; sys.modules['torch'] = None; import qgoft.records, qgoft.settings, qgoft.ledger, qgoft.report.scores, qgoft.report.page"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
