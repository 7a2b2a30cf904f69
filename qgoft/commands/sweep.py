"""Plan and run a suite, or items of the papers, and print their tables: `make glue`, `make table1`, `make paper`.

Usage:
    python scripts/sweep.py glue --method qgoft,lora@r2 --tasks mrpc,rte --seeds 0,1 --protocol goft_icml24
    python scripts/sweep.py table1,lambda --method lora,qgoft --seeds 0
    python scripts/sweep.py all --protocol pocket --action status
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from qgoft.cli import Parser
from qgoft.config.compose import GROUPS, check_config_name, override_name
from qgoft.config.locations import COMMAND, MEASURED
from qgoft.config.suites import config_names, suite_info, suite_names
from qgoft.errors import QgoftError, check_choice
from qgoft.machine import available_cores
from qgoft.records import RecordSet
from qgoft.report.item_tables import item_rows, item_tables, suite_tables, write_tables
from qgoft.report.library import RecordLibrary, read_library
from qgoft.report.retention import retention_report
from qgoft.report.retention_rows import measured_suites, retention_rows
from qgoft.report.style import add_style_arguments, style_of
from qgoft.report.table import terminal_width
from qgoft.sweep.actions import ACTIONS, SweepRequest, run_action
from qgoft.sweep.actions import INTERRUPTED as INTERRUPTED
from qgoft.sweep.executor import LAUNCHERS, ExecutorOptions
from qgoft.sweep.items import ItemFilter, compose_plans, plan_items, plan_suite, read_items, split_runs
from qgoft.sweep.planned_run import ROOT, PlannedRun, check_methods, compose_seeded, protocol_seeds, split_list, split_seeds

# Setting of the plan -> variable of make.
PLANNED = {setting: variable for setting, variable in GROUPS.items() if variable} | {"seed": "SEEDS"}


def parse(argv: list[str], description: str | None = __doc__) -> argparse.Namespace:
    """Parse the command line.

    Args:
        description: head of the help.

    Raises:
        QgoftError: an invalid option.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help=f"a suite ({', '.join(suite_names())}), a comma list of items, or all")
    parser.add_argument("--method", default=None, help="comma list; name or name@variant; default qgoft, or the methods of the item")
    parser.add_argument("--tasks", default="", help="comma list; default all")
    parser.add_argument("--seeds", default="", help="list or range; default 0, or the protocol's for items")
    parser.add_argument("--protocol", default="pocket", help=f"one of {', '.join(config_names('protocol'))}; default pocket")
    parser.add_argument("--model", default="", help="file of configs/model; default the protocol's")
    parser.add_argument("--data", default="", type=os.path.expanduser, help="directory with the data, instead of the hub")
    parser.add_argument("--jobs", type=int, default=available_cores(), help="runs at a time")
    parser.add_argument("--launcher", default="", help=f"one of {', '.join(LAUNCHERS)}; default this machine")
    parser.add_argument("--nproc", type=int, default=1, help="processes of each run")
    parser.add_argument("--accelerate", default="", help="file of configs/accelerate, for several GPUs")
    parser.add_argument("--records", default="runs", choices=["runs", MEASURED.name], help="runs of this directory, or the committed ones")
    add_style_arguments(parser)
    parser.add_argument("--action", default="run", choices=ACTIONS, help="other than run: without training")
    parser.add_argument("--failfast", action="store_true", help="end after the first failure")
    parser.add_argument("--detach", action="store_true", help="submit the jobs and return (submitit)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the runs, and of the launcher (hydra.launcher.*)")
    arguments = parser.parse_intermixed_args(argv)
    check_arguments(arguments)
    return arguments


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the options of the executor.

    Raises:
        QgoftError: an unknown name or an unsupported combination.
    """
    check_config_name("protocol", arguments.protocol)
    if arguments.model:
        check_config_name("model", arguments.model)
    is_cluster = arguments.launcher.startswith("submitit")
    if arguments.launcher:
        check_choice("launcher", arguments.launcher, list(LAUNCHERS), "change LAUNCHER")
    for name in ("jobs", "nproc"):
        if getattr(arguments, name) < 1:
            raise QgoftError(f"{name.upper()}={getattr(arguments, name)}: it must be at least 1")
    for override in arguments.overrides:
        name = override_name(override)
        if name in PLANNED:
            raise QgoftError(f"ARGS={override}: the plan sets {name}; use {PLANNED[name]}=...")
        if name.startswith("hydra.launcher") and not is_cluster:
            raise QgoftError(f"ARGS={override}: only for cluster jobs; set LAUNCHER=submitit_slurm or submitit_local")
    if arguments.detach and not is_cluster:
        raise QgoftError("DETACH=1: only for cluster jobs; set LAUNCHER=submitit_slurm or submitit_local")
    if arguments.accelerate:
        _check_accelerate(arguments)


def _check_accelerate(arguments: argparse.Namespace) -> None:
    check_choice("accelerate", arguments.accelerate, config_names("accelerate"), "change ACCELERATE")
    if arguments.nproc < 2:
        raise QgoftError(f"ACCELERATE={arguments.accelerate} distributes a run over processes; set NPROC to the number of GPUs")
    if arguments.action != "run" or arguments.launcher == "submitit_slurm":  # SLURM's nodes have other GPUs
        return
    import torch  # takes two seconds to import

    if torch.cuda.device_count() < arguments.nproc:
        raise QgoftError(
            f"ACCELERATE={arguments.accelerate} needs {arguments.nproc} GPUs; this machine has {torch.cuda.device_count()}; reduce NPROC, or omit "
            "ACCELERATE, since NPROC also works on CPUs"
        )


def launcher_overrides(overrides: list[str]) -> tuple[str, ...]:
    """Return the overrides of the launcher."""
    return tuple(override for override in overrides if override_name(override).startswith("hydra."))


def item_filter(arguments: argparse.Namespace) -> ItemFilter:
    """Return the restrictions of the command line.

    Raises:
        QgoftError: an invalid method or seed.
    """
    methods = tuple(split_list(arguments.method or ""))
    check_methods(methods)
    lists = (methods, tuple(split_list(arguments.tasks)), tuple(split_seeds(arguments.seeds)))
    own = tuple(override for override in arguments.overrides if not override_name(override).startswith("hydra."))
    return ItemFilter(arguments.protocol, *lists, arguments.model, arguments.data, own)


def sweep_request(title: str, arguments: argparse.Namespace, root: Path) -> SweepRequest:
    """Return the request of the command line."""
    options = ExecutorOptions(
        arguments.jobs,
        arguments.launcher,
        arguments.nproc,
        arguments.accelerate,
        arguments.failfast,
        arguments.detach,
        launcher_overrides(arguments.overrides),
    )
    return SweepRequest(title, root, options, arguments.records, arguments.action)


def suite_runs(arguments: argparse.Namespace) -> tuple[ItemFilter, list[PlannedRun]]:
    """Plan the runs of a suite: method qgoft and seed 0 by default, or all seeds of the protocol for committed records.

    Raises:
        QgoftError: an unknown name, or an unsupported combination.
    """
    if arguments.method is None:
        arguments.method = "qgoft"
    if not split_list(arguments.seeds):
        arguments.seeds = ",".join(protocol_seeds(arguments.protocol)) if arguments.records == MEASURED.name else "0"
    ask = item_filter(arguments)
    return ask, compose_seeded(plan_suite(arguments.target, ask), arguments.jobs)


def run_suite(arguments: argparse.Namespace) -> int:
    """Run methods on the tasks of a suite and print their table."""
    suite = arguments.target
    ask, planned = suite_runs(arguments)
    root = Path(planned[0].settings.results.root)

    def show(runs: list[PlannedRun]) -> None:
        library = read_library(root, arguments.records, arguments.protocol, style_of(arguments))
        tables = suite_tables(suite, runs, ask, library, arguments.jobs)
        written = write_tables(tables, library)
        print()
        for table in tables:
            if not table.name.endswith("-paired"):
                print(table.terminal(terminal_width()))
        place = f"{os.path.relpath(MEASURED)}/*/records.parquet" if library.is_committed else f"{root}/{arguments.records}/*/record.json"
        print(f"{written}   {place}\n`{COMMAND} report` makes the page")

    return run_action(sweep_request(suite_info(suite).title, arguments, root), planned, show)


def run_items(arguments: argparse.Namespace) -> int:
    """Run items of the papers and print their tables."""
    for name in split_list(arguments.target):
        if name in suite_names():
            raise QgoftError(f"{arguments.target}: a suite cannot be combined with other targets; run {name} by itself")
        check_choice("suite or item", name, ["all", *suite_names(), *read_items(arguments.protocol)], f"`{COMMAND} help` lists them")
    ask, is_all = item_filter(arguments), arguments.target == "all"
    plans = plan_items(split_list(arguments.target), ask)
    planned = [run for runs in compose_plans(plans, arguments.jobs) for run in runs]
    given = next((override.removeprefix(ROOT) for override in arguments.overrides if override.startswith(ROOT)), "results")
    root = Path(planned[0].settings.results.root if planned else given)

    def show(runs: list[PlannedRun]) -> None:
        library = read_library(root, arguments.records, arguments.protocol, style_of(arguments))
        for plan, own in zip(plans, split_runs(plans, runs), strict=True):
            tables = item_tables(plan, item_rows(plan, own, ask, library), ask, library, arguments.jobs)
            if not tables:
                print(f"\n{plan.item.name}: no finished run yet")
            for table in tables:
                written = write_tables([table], library)
                if not table.name.endswith("-paired"):
                    print(f"\n{table.terminal(terminal_width())}\n{written}")
        if is_all:
            show_retention(library, ask.protocol)

    if not planned:
        show([])
        return 0
    title = plans[0].item.name if len(plans) == 1 else f"{len(plans)} items"
    return run_action(sweep_request(title, arguments, root), planned, show)


def show_retention(library: RecordLibrary, protocol: str, suites: Sequence[str] = ()) -> None:
    """Print the retention of each suite that has measured runs, and write tables and figures.

    Args:
        suites: suites to print; a line for those without a measured run. Empty for all that have some.
    """
    records = library.index.records
    known = suites or [suite for one, suite in measured_suites(RecordSet(list(records), library.files, [])) if one == protocol]
    for suite in known:
        rows = retention_rows(records, library.files, protocol, suite)
        if not rows:
            print(f"{suite}: no run with a measured retention")
            continue
        tables, figures = retention_report(rows, protocol, suite)
        for table in tables:
            print(f"\n{table.terminal(terminal_width())}\n{write_tables([table], library)}")
        for figure in figures:
            paths = figure.write(library.root / "figures")
            print(f"{paths[0].parent}/{figure.name}.{{{','.join(path.suffix[1:] for path in paths)}}}")


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    return run_suite(arguments) if arguments.target in suite_names() else run_items(arguments)
