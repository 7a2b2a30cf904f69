"""Measure what finished runs retain of the pretrained backbone's abilities, and print the table: `make retention`.

Runs that are not finished are executed first.

Usage:
    python scripts/retention.py glue --method qgoft,lora --seeds 0,1,2
    python scripts/retention.py table1 --protocol pocket
    python scripts/retention.py results/runs/<key> retention.steps=0,0.5,1 retention.probes=[transfer]

docs/retention.md describes the probes and the settings retention.*.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from qgoft.cli import Parser
from qgoft.commands import rescore, sweep
from qgoft.config.locations import MEASURED
from qgoft.config.retention import PREFIX, retention_settings
from qgoft.config.suites import suite_names
from qgoft.errors import QgoftError
from qgoft.lease import LeaseHeld
from qgoft.records.retention import Retention, retention_of
from qgoft.report.library import read_library
from qgoft.report.style import style_of
from qgoft.sweep.actions import print_missing, run_action
from qgoft.sweep.identify import identify_all
from qgoft.sweep.items import compose_plans, plan_items
from qgoft.sweep.planned_run import PlannedRun, split_list
from qgoft.sweep.retention import RetentionId, measure_pending

INTERRUPTED = sweep.INTERRUPTED


def main(argv: list[str]) -> int:
    asked = [word for word in argv if word.startswith(PREFIX)]
    rest = [word for word in argv if not word.startswith(PREFIX)]
    if any((Path(word) / "record.json").is_file() for word in rest) or (rest and Path(rest[0]).is_dir()):
        return measure_directories(rest, asked)
    return measure_plan(sweep.parse(rest, __doc__), asked)


def measure_directories(argv: list[str], asked: Sequence[str]) -> int:
    """Measure runs by their directories, and print the values of each."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    rescore.add_source_arguments(parser)
    arguments = parser.parse_args(argv)
    from qgoft.retention.measure import measure_retention
    from qgoft.train.quiet import quiet_libraries
    from qgoft.train.rescore import Sources, open_run

    quiet_libraries()
    for directory in arguments.runs:
        run = open_run(directory, Sources(arguments.model_path, arguments.data_root, arguments.task_path))
        record = run.record
        try:
            retention = measure_retention(run, retention_settings(record["protocol"], record["suite"], asked))
        except LeaseHeld as error:
            raise QgoftError(f"{directory} is being measured by {error}; wait for it") from error
        print(f"{record['suite']}/{record['task']} {record['method']}@{record['variant']} seed {record['seed']}, path: {retention['path']}")
        print_steps(retention, record["primary"])
    return 0


def print_steps(retention: Retention, primary: str) -> None:
    """Print target, probes and retention of a run at every t."""
    names = list(retention["pretrained"])
    titles = ["t", primary, *names, "retained %"]
    widths = [max(9, len(title) + 2) for title in titles]
    print("".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True)))
    for step in retention["steps"]:
        values = [step["target"]["value"], *(step["probes"][name]["value"] for name in names), retention_of(retention, step["t"])]
        cells = [f"{step['t']:g}", *("undefined" if value is None else f"{value:.2f}" for value in values)]
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


def measure_plan(arguments: argparse.Namespace, asked: Sequence[str]) -> int:
    """Run pending runs of a suite or of items, measure their retention, and print a table per suite. Return the exit code."""
    planned = planned_runs(arguments)
    if not planned:
        raise QgoftError(f"{arguments.target} has no runs; name a suite, or an item with runs, such as table1")
    suites = list(dict.fromkeys(run.settings.task.suite for run in planned))
    settings = {suite: retention_settings(arguments.protocol, suite, asked) for suite in suites}
    root = Path(planned[0].settings.results.root)
    request = sweep.sweep_request(arguments.target, arguments, root)
    code = 0
    if arguments.action != "table" and arguments.records != MEASURED.name:
        code = run_action(request, planned, lambda runs: None)
        if arguments.action == "fetch":
            return code
        distinct = {run_id.key: (run, run_id) for run, run_id in zip(*identify_all(planned, arguments.nproc, {}), strict=True)}
        done = [(run, run_id) for run, run_id in distinct.values() if run_id.is_done]
        if arguments.action == "status":
            measured = sum(RetentionId.of(run_id, settings[run.settings.task.suite]).is_done for run, run_id in done)
            print(f"retention: {measured} of {len(done)} finished runs measured")
            return code
        missing = []
        for suite in suites:
            mine = [pair for pair in done if pair[0].settings.task.suite == suite]
            if mine:
                runs, ids = zip(*mine, strict=True)
                missing += measure_pending(f"{suite}, protocol {arguments.protocol}", runs, ids, settings[suite], request.options)
        code = max(code, print_missing(missing))
        if arguments.detach:
            return code
    sweep.show_retention(read_library(root, arguments.records, arguments.protocol, style_of(arguments)), arguments.protocol, suites)
    return code


def planned_runs(arguments: argparse.Namespace) -> list[PlannedRun]:
    """Return the runs of the suite or items on the command line."""
    if arguments.target in suite_names():
        return sweep.suite_runs(arguments)[1]
    plans = plan_items(split_list(arguments.target), sweep.item_filter(arguments))
    return [run for runs in compose_plans(plans, arguments.jobs) for run in runs]
