"""The command `qgoft`: suites and items as targets of make (`qgoft glue --method lora`), and the commands of `qgoft.commands`."""

import ast
import importlib.util
import pkgutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from qgoft import commands
from qgoft.cli import one_line_errors, run_cli, run_command
from qgoft.config.locations import check_configs
from qgoft.errors import INSTALL, QgoftError, check_choice

# Targets of make that are not named after their suite or item -> arguments of `sweep`.
TARGETS = {
    "paper": ["all"],
    "vicuna": ["instruct", "--tasks", "vicuna"],
    "mmlu": ["instruct", "--tasks", "mmlu"],
    "figure4": ["flexibility,lambda"],
}
# Actions on a target: `qgoft status glue`.
ACTIONS = ("status", "fetch", "table")
# A package of the extra `suite`, without which only the adapter is installed.
OF_SUITE = "hydra"


def sweep_arguments(words: Sequence[str]) -> list[str]:
    """Return the arguments of `sweep` for a target, or an action on one."""
    name, *rest = words
    if name not in ACTIONS:
        return [*TARGETS.get(name, [name]), *rest]
    target, *options = rest if rest and not rest[0].startswith("-") else ["all", *rest]
    return [*TARGETS.get(target, [target]), *options, "--action", name]


def usage(known: Sequence[str]) -> str:
    """Return the list of commands with the first line of each one's docstring."""
    lines = ["usage: qgoft TARGET [--method M] [--tasks T] [--seeds S] [--protocol P] ...", "       qgoft COMMAND ...", "", "targets:"]
    lines += [
        "  glue, squad, vtab, vicuna, mmlu, math, commonsense   a suite",
        "  table1, psoft-table2, lambda, ...                    an item of a paper",
        "  paper                                                all items",
        "  status, fetch, table TARGET                          without running",
        "",
        "commands:",
    ]
    for name in known:
        source = Path(commands.__path__[0], f"{name}.py").read_text()
        about = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0].partition(":")[0].rstrip(".")
        lines.append(textwrap.fill(f"  {name.replace('_', '-'):<14} {about}", 80, subsequent_indent=" " * 17))
    return "\n".join(lines)


def run(words: Sequence[str]) -> NoReturn:
    """Run a command or target, and exit with its code."""
    known = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    if not words or words[0] in ("-h", "--help", "help"):
        run_cli(lambda: _print_usage(known))
    name = words[0].replace("-", "_")
    if importlib.util.find_spec(OF_SUITE) is None and name != "doctor":
        run_cli(_needs_suite)
    if name in known:
        sys.argv[:] = [f"qgoft {words[0]}", *words[1:]]
        run_command(name)
    with one_line_errors():
        check_configs()
    from qgoft.config.suites import suite_names
    from qgoft.sweep.items import item_names

    def unknown() -> int:
        check_choice("command or target", words[0], [*targets, *(name.replace("_", "-") for name in known)], "`qgoft` lists them")
        return 2

    targets = [*suite_names(), *TARGETS, *ACTIONS, *item_names()]
    if words[0].partition(",")[0] not in targets:
        run_cli(unknown)
    sys.argv[:] = ["qgoft", *sweep_arguments(words)]
    run_command("sweep")


def _print_usage(known: Sequence[str]) -> int:
    print(usage(known))
    return 0


def _needs_suite() -> int:
    raise QgoftError(f"only the adapter is installed; the experiments need its extra `suite`: {INSTALL}")


def main() -> NoReturn:
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
