"""Actions on planned runs: execute the pending ones, show their status, or fetch what they need."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qgoft.config.locations import MEASURED
from qgoft.errors import QgoftError
from qgoft.records import Record, find_records
from qgoft.records.store import NAME
from qgoft.run_id import RunId
from qgoft.sweep.executor import ExecutorOptions
from qgoft.sweep.forecast import announce, format_runs
from qgoft.sweep.identify import generate, identify_all, resolve_named_paths
from qgoft.sweep.launch import run_sweep
from qgoft.sweep.planned_run import PlannedRun
from qgoft.tasks.model_files import TOKENIZER_FILES, WEIGHT_PATTERNS
from qgoft.tasks.pinned_files import PINNED
from qgoft.tasks.sources import remote_size, repositories, resolve_model

ACTIONS = ("run", "table", "status", "fetch")
# Message after Ctrl-C.
INTERRUPTED = "interrupted; finished runs are kept, repeat the command to resume"


@dataclass(frozen=True)
class SweepRequest:
    """A sweep as requested on the command line.

    Attributes:
        title: name in messages, and the group of its runs at wandb.
        root: results root.
        records: `runs`, or `measured` to print tables of the committed records.
        action: one of ACTIONS.
    """

    title: str
    root: Path
    options: ExecutorOptions
    records: str = "runs"
    action: str = "run"


def run_action(request: SweepRequest, planned: list[PlannedRun], show: Callable[[list[PlannedRun]], None]) -> int:
    """Perform the action on planned runs, of which several may be the same run. Return the exit code.

    Args:
        show: prints the tables of some runs.

    Raises:
        QgoftError: the results root is not a directory and cannot be created.
    """
    root, options, action = request.root, request.options, request.action
    if root.exists() and not root.is_dir():
        raise QgoftError(f"results.root={root}: not a directory; expected a directory, which is created if it is missing")
    is_committed = request.records == MEASURED.name
    if action == "table" or (is_committed and action == "run"):
        show(resolve_named_paths(planned))
        return 0
    if action == "run":
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QgoftError(f"results.root={root}: cannot be created: {error.strerror}; name another directory") from error
    if action == "fetch":
        print_downloads(planned)
    generate(planned, options.jobs)
    # Status and fetch continue if some rows or weights are not available.
    problems: dict[str, QgoftError] = {}
    asked = planned
    planned, run_ids = identify_all(asked, options.nproc, None if action == "run" else problems)
    if action == "fetch" and problems:
        fetch_weights(asked, problems)
    if not planned:
        return print_problems(problems)
    distinct = {run_id.key: (run, run_id) for run, run_id in zip(reversed(planned), reversed(run_ids), strict=True)}
    runs, ids = (list(column)[::-1] for column in zip(*distinct.values(), strict=True))
    if action == "status":
        print_status(runs, ids)
        return print_problems(problems)
    if action == "fetch":
        print_fetched(ids)
        return print_problems(problems)
    missing = run_pending(request, runs, ids)
    if options.detach:
        return 0
    if any((run_id.directory / NAME).is_file() for run_id in ids):  # otherwise the tables of an earlier command stay as they are
        show(planned)
    return print_missing(missing)


def run_pending(request: SweepRequest, planned: Sequence[PlannedRun], run_ids: Sequence[RunId]) -> list[tuple[PlannedRun, str]]:
    """Execute the pending runs. Return the runs that are not done afterwards with the reason."""
    pending = []
    for run, run_id in zip(planned, run_ids, strict=True):
        if run_id.is_done:
            run_id.delete_checkpoints()
        else:
            pending.append((run, run_id))
    options, protocol = request.options, planned[0].settings.protocol
    announce(request.title, planned, [run for run, _ in pending], _known_records(request.root, protocol), options.parallel_runs, protocol)
    if not pending:
        return []
    os.environ.setdefault("QGOFT_SWEEP", f"{request.title}, {protocol}")  # inherited by the workers
    runs, ids = [run for run, _ in pending], [run_id for _, run_id in pending]
    outcomes = run_sweep(runs, ids, options)
    if options.detach:
        return []
    reasons = {outcome.number: f"{outcome.status}: {outcome.reason}" for outcome in outcomes}
    return [(run, reasons.get(number, "it left no record")) for number, run in enumerate(runs) if not ids[number].is_done]


def _known_records(root: Path, protocol: str) -> list[Record]:
    """Return the records that durations are estimated from."""
    places = [root / "runs", *([MEASURED] if protocol == "pocket" else [])]
    return [record for place in places if place.is_dir() for record in find_records(place).records]


def print_missing(missing: Sequence[tuple[PlannedRun, str]]) -> int:
    """Print the runs that are not done. Return the exit code."""
    for run, reason in missing:
        print(f"qgoft: {run.label} is not done: {reason}", file=sys.stderr)
    return 1 if missing else 0


def print_status(planned: Sequence[PlannedRun], run_ids: Sequence[RunId]) -> None:
    """Print every run with its status, and the number of runs per status."""
    count: dict[str, int] = {}
    for run, run_id in zip(planned, run_ids, strict=True):
        state, reason = run_id.state()
        count[state] = count.get(state, 0) + 1
        print(f"{run.label:<44} {run_id.key[:12]}  {state}{f': {reason}' if reason else ''}")
    print(f"{format_runs(len(planned))}: " + ", ".join(f"{number} {state}" for state, number in count.items()))


def print_downloads(planned: Sequence[PlannedRun]) -> None:
    """Print the sizes of the downloads. Cached files are not downloaded again."""
    wanted: dict[tuple[str, str, str], list[str]] = {}
    pinned: dict[str, int] = {}
    for run in planned:
        s = run.settings
        if s.data.source == "hub" and s.data.root is None:
            for repository, patterns in repositories(s.task).items():
                wanted.setdefault((repository, "dataset", s.data.revision), []).extend(patterns)
            names = (source["pinned"] for source in s.task.sources.values() if "pinned" in source)
            pinned |= {PINNED[name].url: PINNED[name].size for name in names}
        if s.model.hub and s.model.path is None:
            wanted[s.model.hub, "model", s.model.revision] = [*TOKENIZER_FILES]
    for (repository, kind, revision), patterns in wanted.items():
        size = remote_size(repository, kind, revision, patterns, WEIGHT_PATTERNS if kind == "model" else ())
        print(f"{kind} {repository} at {revision}: {'unknown size' if size is None else f'{size / 1e6:.1f} MB'}", flush=True)
    for url, size in pinned.items():
        print(f"file {url}: {size / 1e6:.2f} MB", flush=True)


def print_fetched(run_ids: Sequence[RunId]) -> None:
    """Print the rows and weights of some runs with their size on disk."""
    sizes: dict[str, int] = {}
    for run_id in run_ids:
        paths = [path for files in run_id.data.files.values() for path in files]
        sizes[f"data {run_id.data.source} {paths[0].parent.name}"] = sum(path.stat().st_size for path in paths)
        sizes[f"model {run_id.model.source}"] = sum(path.stat().st_size for path in run_id.model.directory.iterdir() if path.is_file())
    for name, size in sizes.items():
        print(f"{name:<44} {size / 1e6:10.1f} MB on this machine")


def fetch_weights(planned: Sequence[PlannedRun], problems: dict[str, QgoftError]) -> None:
    """Fetch the weights of every run; a run without rows was skipped before its weights were requested."""
    for model in {repr(run.settings.model): run.settings.model for run in planned}.values():
        try:
            resolve_model(model)
        except QgoftError as error:
            problems[model.name] = error


def print_problems(problems: dict[str, QgoftError]) -> int:
    """Print the rows and weights that are not available, grouped by reason. Return the exit code."""
    reasons: dict[str, list[str]] = {}
    for name, problem in problems.items():
        reasons.setdefault(str(problem), []).append(name)
    for reason, names in reasons.items():
        print(f"qgoft: left out {', '.join(names)}: {reason}", file=sys.stderr)
    return 2 if problems else 0
