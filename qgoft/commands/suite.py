"""Plan and run a suite, then print its table: what `make glue`, `make squad` and their like call.

python scripts/suite.py glue --method qgoft,lora@r2 --tasks mrpc,rte --seeds 0,1 --protocol goft_icml24
"""

import argparse
import os
from pathlib import Path

from qgoft.cli import Parser
from qgoft.commands.execution import INTERRUPTED as INTERRUPTED
from qgoft.commands.execution import add_executor_options, check_executor_options, run_action, run_overrides
from qgoft.config.compose import choices, unsupported_reason
from qgoft.errors import QgoftError, hint
from qgoft.report.items import SUITES, item_of
from qgoft.report.rows import MEASURED, collect_rows, control_rows, rating_tables, read_library, score_tables, write_tables
from qgoft.report.table import terminal_width
from qgoft.report.win_rates import build_categories, build_win_rates
from qgoft.sweep.plan import (
    PlannedRun,
    check_methods,
    common_overrides,
    compose_runs,
    method_overrides,
    protocol_seeds,
    split_list,
    split_seeds,
)


def plan(arguments: argparse.Namespace) -> list[PlannedRun]:
    """Every run that was asked for.

    Raises:
        QgoftError: a name is unknown, or a cell does not exist.
    """
    suite = arguments.suite
    known = [name.removeprefix(f"{suite}/") for name in choices("task") if name.startswith(f"{suite}/")]
    tasks = split_list(arguments.tasks) or [task for task in known if not unsupported_reason(arguments.protocol, f"{suite}/{task}", "")]
    if not tasks:
        raise QgoftError(
            f"protocol {arguments.protocol} has no task of suite {suite}: {unsupported_reason(arguments.protocol, f'{suite}/{known[0]}', '')}; change PROTOCOL"
        )
    common = [*common_overrides(arguments.protocol, arguments.model, arguments.data), *run_overrides(arguments.overrides)]
    methods = split_list(arguments.method)
    if not methods:
        raise QgoftError("no method is named; METHOD is a list such as qgoft,lora@r2")
    check_methods(methods)
    asked = []
    for method in methods:
        for task in tasks:
            task = task.removeprefix(f"{suite}/")
            if task not in known:
                raise QgoftError(f"unknown task {task!r} of suite {suite}; allowed are {', '.join(known)}; change TASKS{hint(task, known)}")
            asked.append((*common, f"task={suite}/{task}", *method_overrides(method)))
    return compose_runs(asked, split_seeds(arguments.seeds), arguments.jobs)


def print_table(arguments: argparse.Namespace, planned_runs: list[PlannedRun], root: Path) -> None:
    library = read_library(root, arguments.records, arguments.protocol)
    rows = collect_rows(planned_runs, library.index)
    shown = {row.label for row in rows}
    rows += control_rows(arguments.protocol, arguments.suite, arguments.model, shown, split_list(arguments.method), arguments.jobs)
    item = item_of(arguments.suite, arguments.protocol).only(
        [task.removeprefix(f"{arguments.suite}/") for task in split_list(arguments.tasks)]
    )
    tables = score_tables(arguments.suite, arguments.protocol, rows, library, item)
    written = write_tables(tables, root)
    print()
    print(tables[0].terminal(terminal_width()))
    for table in rating_tables(arguments.protocol, rows, library, [build_categories, build_win_rates]):
        write_tables([table], root)
        print(table.terminal(terminal_width()))
    runs = os.path.relpath(MEASURED / "*") if library.is_committed else f"{root}/{arguments.records}"
    print(f"{written}   {runs}/*/record.json   (make report for the page)")


def parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=sorted({name.partition("/")[0] for name in choices("task")}))
    parser.add_argument("--method", default="qgoft", help="comma list; name or name@variant")
    parser.add_argument("--tasks", default="", help="comma list, without the suite; default all")
    parser.add_argument("--seeds", default="", help="comma list; default 0, or the protocol's with --all-seeds")
    parser.add_argument("--all-seeds", action="store_true")
    add_executor_options(parser)
    arguments = parser.parse_intermixed_args(words)
    check_executor_options(arguments)
    if not split_list(arguments.seeds):
        # Committed records are of all seeds of their protocol.
        every = arguments.all_seeds or arguments.records == "measured"
        arguments.seeds = ",".join(protocol_seeds(arguments.protocol)) if every else "0"
    return arguments


def main(words: list[str]) -> int:
    arguments = parse(words)
    planned_runs = plan(arguments)
    root = Path(planned_runs[0].settings.results.root)
    return run_action(SUITES[arguments.suite], planned_runs, arguments, root, lambda keyed: print_table(arguments, keyed, root))
