"""What commands that run cells have in common: their options, running what is left, the ledger, downloads."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from qgoft.config.compose import check_config_name, choices, name_of
from qgoft.errors import QgoftError, check_choice
from qgoft.report.rows import MEASURED, RecordLibrary
from qgoft.run_id import RunId
from qgoft.sweep.launch import LAUNCHERS, ExecutorOptions, sweep
from qgoft.sweep.plan import PlannedRun, announce, format_runs, generate, identify_all, resolve_named_paths
from qgoft.tasks.model_files import TOKENIZER_FILES, WEIGHT_PATTERNS
from qgoft.tasks.pinned_files import PINNED
from qgoft.tasks.sources import remote_size, repositories, resolve_model

# What the plan sets -> the variable of make that says it.
PLANNED = {"protocol": "PROTOCOL", "task": "TASKS", "method": "METHOD", "seed": "SEEDS", "model": "MODEL"}
# What Ctrl-C is answered with.
INTERRUPTED = "interrupted; finished runs are kept, the same command goes on"


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """What every command that runs cells takes."""
    parser.add_argument("--protocol", default="pocket")
    parser.add_argument("--model", default="")
    parser.add_argument("--data", default="", type=os.path.expanduser, help="directory instead of the hub")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--launcher", default="")
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--accelerate", default="", help="a file of configs/accelerate, for several GPUs")
    parser.add_argument("--records", default="runs", choices=["runs", "measured"])
    parser.add_argument("--action", default="run", choices=["run", "table", "status", "fetch"])
    parser.add_argument("--failfast", action="store_true")
    parser.add_argument("--detach", action="store_true", help="with a launcher of submitit: submit and leave")
    parser.add_argument("overrides", nargs="*", help="any further Hydra overrides; hydra.launcher.* are the launcher's")


def check_executor_options(arguments: argparse.Namespace) -> None:
    """Refuse what cannot run.

    Raises:
        QgoftError: naming what came and what is allowed.
    """
    check_config_name("protocol", arguments.protocol)
    if arguments.model:
        check_config_name("model", arguments.model)
    if arguments.launcher:
        check_choice("launcher", arguments.launcher, list(LAUNCHERS), "change LAUNCHER")
    for name in ("jobs", "nproc"):
        if getattr(arguments, name) < 1:
            raise QgoftError(f"{name.upper()}={getattr(arguments, name)}: at least 1 process is needed")
    for word in arguments.overrides:
        name = name_of(word)
        if name in PLANNED:
            raise QgoftError(f"ARGS={word}: the plan sets {name}; say {PLANNED[name]}=... instead")
        if name.startswith("hydra.launcher") and not arguments.launcher.startswith("submitit"):
            raise QgoftError(f"ARGS={word} is for jobs of a cluster; set LAUNCHER=submitit_slurm or submitit_local with it")
    if arguments.detach and not arguments.launcher.startswith("submitit"):
        raise QgoftError("DETACH leaves jobs to a cluster; set LAUNCHER=submitit_slurm")
    if arguments.accelerate:
        check_choice("accelerate", arguments.accelerate, choices("accelerate"), "change ACCELERATE")
        if arguments.nproc < 2:
            raise QgoftError(f"ACCELERATE={arguments.accelerate} divides a run among processes; set NPROC to the number of GPUs")
        if arguments.action == "run" and arguments.launcher != "submitit_slurm":  # whose GPUs are other machines'
            import torch  # takes two seconds, and is asked for nothing else here

            if torch.cuda.device_count() < arguments.nproc:
                raise QgoftError(
                    f"ACCELERATE={arguments.accelerate} needs {arguments.nproc} GPUs, and this machine has {torch.cuda.device_count()}; lower NPROC, "
                    "or leave ACCELERATE out: NPROC alone works on CPUs"
                )


def run_overrides(overrides: list[str]) -> list[str]:
    """The overrides of a run; the others are the launcher's."""
    return [word for word in overrides if not _is_of_launcher(word)]


def _is_of_launcher(word: str) -> bool:
    return name_of(word).startswith("hydra.")


def executor_options(arguments: argparse.Namespace, jobs: int) -> ExecutorOptions:
    """With what the sweep runs, as the command line says."""
    launcher_words = tuple(word for word in arguments.overrides if _is_of_launcher(word))
    return ExecutorOptions(
        jobs, arguments.launcher, arguments.nproc, arguments.accelerate, arguments.failfast, arguments.detach, launcher_words
    )


def run_pending(
    title: str, cells: list[PlannedRun], run_ids: list[RunId], arguments: argparse.Namespace, root: Path
) -> list[tuple[PlannedRun, str]]:
    """Run what is not done, after saying how much that is. Returns the cells that are not done then, each with the reason."""
    left = []
    for cell, run_id in zip(cells, run_ids, strict=True):
        if run_id.is_done:
            run_id.delete_checkpoints()
        else:
            left.append((cell, run_id))
    known = RecordLibrary.read(root / "runs", MEASURED) if arguments.protocol == "pocket" else RecordLibrary.read(root / "runs")
    # Runs of several processes, and those of the basic launcher, go one after the other.
    at_once = (
        1 if arguments.launcher == "basic" or (arguments.nproc > 1 and not arguments.launcher.startswith("submitit")) else arguments.jobs
    )
    announce(title, cells, [cell for cell, _ in left], known.index.records, at_once, arguments.protocol)
    if not left:
        return []
    os.environ.setdefault("QGOFT_SWEEP", f"{title}, {arguments.protocol}")  # the group of its runs at wandb; workers inherit it
    pending, places = [cell for cell, _ in left], [run_id for _, run_id in left]
    outcomes = sweep(pending, places, executor_options(arguments, max(1, min(arguments.jobs, len(left)))))
    if arguments.detach:
        return []
    reasons = {outcome.number: f"{outcome.status}: {outcome.reason}" for outcome in outcomes}
    return [(cell, reasons.get(n, "it left no record")) for n, cell in enumerate(pending) if not places[n].is_done]


def print_missing(missing: list[tuple[PlannedRun, str]]) -> int:
    """All failures, named at the end. Returns the exit code."""
    for cell, reason in missing:
        print(f"qgoft: {cell.label} is not done: {reason}", file=sys.stderr)
    return 1 if missing else 0


def show_status(cells: list[PlannedRun], run_ids: list[RunId]) -> None:
    """The ledger: every run with its state, and how many there are of each."""
    count: dict[str, int] = {}
    for cell, run_id in zip(cells, run_ids, strict=True):
        state, reason = run_id.state()
        count[state] = count.get(state, 0) + 1
        print(f"{cell.label:<44} {run_id.key[:12]}  {state}{f': {reason}' if reason else ''}")
    print(f"{format_runs(len(cells))}: " + ", ".join(f"{number} {state}" for state, number in count.items()))


def announce_downloads(cells: list[PlannedRun]) -> None:
    """Sizes before anything is downloaded. Files that are here already are not fetched again."""
    wanted: dict[tuple[str, str, str], list[str]] = {}
    pinned = {}
    for cell in cells:
        s = cell.settings
        if s.data.source == "hub" and s.data.root is None:
            for repository, patterns in repositories(s.task).items():
                wanted.setdefault((repository, "dataset", s.data.revision), []).extend(patterns)
            names = (source["pinned"] for source in s.task.sources.values() if "pinned" in source)
            pinned |= {PINNED[name].url: PINNED[name].size for name in names}
        if s.model.hub and s.model.path is None:
            wanted[s.model.hub, "model", s.model.revision] = [*TOKENIZER_FILES]
    for (repository, kind, revision), patterns in wanted.items():
        size = remote_size(repository, kind, revision, patterns, WEIGHT_PATTERNS if kind == "model" else ())
        print(f"{kind} {repository} at {revision}: {'size not known' if size is None else f'{size / 1e6:.1f} MB'}", flush=True)
    for url, size in pinned.items():
        print(f"file {url}: {size / 1e6:.2f} MB", flush=True)


def show_fetched(cells: list[PlannedRun], run_ids: list[RunId]) -> None:
    seen: dict[str, int] = {}
    for run_id in run_ids:
        paths = [path for parts in run_id.data.files.values() for path in parts]
        seen[f"data {run_id.data.source} {paths[0].parent.name}"] = sum(path.stat().st_size for path in paths)
        seen[f"model {run_id.model.source}"] = sum(path.stat().st_size for path in run_id.model.folder.iterdir() if path.is_file())
    for name, size in seen.items():
        print(f"{name:<44} {size / 1e6:10.1f} MB on this machine")


def fetch_weights(cells: list[PlannedRun], problems: dict[str, QgoftError]) -> None:
    """Those of every cell: where its rows could not be had, nothing was asked of them yet."""
    for model in {repr(cell.settings.model): cell.settings.model for cell in cells}.values():
        try:
            resolve_model(model)
        except QgoftError as error:
            problems[model.name] = error


def print_problems(problems: dict[str, QgoftError]) -> int:
    """What cannot be had, each reason once. Returns the exit code."""
    reasons: dict[str, list[str]] = {}
    for name, problem in problems.items():
        reasons.setdefault(str(problem), []).append(name)
    for reason, names in reasons.items():
        print(f"qgoft: left out {', '.join(names)}: {reason}", file=sys.stderr)
    return 2 if problems else 0


def run_action(
    title: str, cells: list[PlannedRun], arguments: argparse.Namespace, root: Path, show: Callable[[list[PlannedRun]], None]
) -> int:
    """Do what --action says with some cells, of which several may be the same run; `show` prints their tables. Returns the exit code."""
    if root.exists() and not root.is_dir():
        raise QgoftError(f"results.root={root} is not a directory; name a directory, which is made if it is missing")
    if arguments.action == "run" and arguments.records != "measured":
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QgoftError(f"results.root={root} cannot be made: {error.strerror}; name another directory") from error
    if arguments.action == "table" or (arguments.records == "measured" and arguments.action == "run"):
        show(resolve_named_paths(cells))
        return 0
    if arguments.action == "fetch":
        announce_downloads(cells)
    generate(cells, arguments.jobs)
    # To look and to fetch go as far as they can: some parts are on no hub.
    problems: dict[str, QgoftError] = {}
    asked = cells
    cells, run_ids = identify_all(asked, arguments.nproc, None if arguments.action == "run" else problems)
    if arguments.action == "fetch" and problems:
        fetch_weights(asked, problems)
    if not cells:
        return print_problems(problems)
    distinct = {run_id.key: (cell, run_id) for cell, run_id in zip(reversed(cells), reversed(run_ids), strict=True)}
    runs, places = (list(column)[::-1] for column in zip(*distinct.values(), strict=True))
    if arguments.action == "status":
        show_status(runs, places)
        return print_problems(problems)
    if arguments.action == "fetch":
        show_fetched(runs, places)
        return print_problems(problems)
    missing = run_pending(title, runs, places, arguments, root)
    if arguments.detach:
        return 0
    show(cells)
    return print_missing(missing)
