"""Sweeps on this machine: runs one after the other, or in joblib's worker processes."""

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing import resource_tracker as python_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qgoft.errors import QgoftError
from qgoft.lease import Lease
from qgoft.machine import available_cores
from qgoft.run_id import RunId
from qgoft.sweep.display import Display
from qgoft.sweep.executor import POLL_INTERVAL, ExecutorOptions, RunOutcome, execute_run, forward_signals, run_processes
from qgoft.sweep.planned_run import PlannedRun
from qgoft.sweep.schedule import schedule_order
from qgoft.train.interrupts import SignalHandler

# Starts of a run whose worker process is killed, at most.
MAX_ATTEMPTS = 2
FAILFAST = "not started: FAILFAST ended the sweep"

NumberedRun = tuple[int, PlannedRun]


class LocalSweep:
    """A sweep in the processes of this machine.

    Runs that another sweep holds are retried until that sweep has finished them. If a worker is killed, joblib's pool ends; its runs are then
    repeated one at a time, so that the run that causes it is identified.
    """

    def __init__(self, planned_runs: Sequence[PlannedRun], run_ids: Sequence[RunId], options: ExecutorOptions, display: Display):
        self.planned_runs, self.run_ids, self.options, self.display = planned_runs, run_ids, options, display
        self.pending = dict(enumerate(planned_runs))
        self.failed: dict[int, RunOutcome] = {}
        self.done = 0
        self._attempts: dict[int, int] = {}  # of runs whose worker was killed
        self._idle_pool_crashes = 0
        self._announced: set[int] = set()  # held runs whose owner was printed

    def run(self) -> list[RunOutcome]:
        """Return the outcomes of the runs that are not done.

        Raises:
            QgoftError: workers are killed before they start a run.
        """
        while self.pending:
            held = self._run_once()
            if self.failed and self.options.failfast:
                return [*self.failed.values(), *(RunOutcome(number, "planned", FAILFAST) for number in self.pending)]
            for number in [number for number in held if self.run_ids[number].is_done]:
                self.pending.pop(number)
                self.done += 1
            if held and len(self.pending) == len(held):
                self._wait_for(held)
        return [self.failed[number] for number in sorted(self.failed)]

    def _run_once(self) -> list[int]:
        """Execute every pending run. Return the runs that another sweep holds."""
        held = []
        for outcome in self._outcomes():
            if outcome.status == "held":
                held.append(outcome.number)
                self._attempts.pop(outcome.number, None)  # the other runs need not wait for it
                continue
            if outcome.status == "planned":
                continue
            self.pending.pop(outcome.number, None)
            self.done += 1
            if outcome.status != "done":
                self.failed[outcome.number] = outcome
            print_outcome(self.done, len(self.planned_runs), len(self.failed), self.display, self.planned_runs[outcome.number], outcome)
        return held

    def _wait_for(self, held: list[int]) -> None:
        for number in sorted(set(held) - self._announced):
            owner = Lease(self.run_ids[number].directory).owner() or "another process"
            self.display.say(f"qgoft: waiting for {self.planned_runs[number].label}: held by {owner}")
        self._announced |= set(held)
        time.sleep(POLL_INTERVAL)

    def _outcomes(self) -> Iterator[RunOutcome]:
        """Yield the outcomes of one pass. With `failfast` it ends after the first failure, and the other workers save their runs."""
        is_retry = any(number in self._attempts for number in self.pending)
        work = schedule_order({n: planned for n, planned in self.pending.items() if not is_retry or n in self._attempts})
        jobs = min(self.options.parallel_runs, len(self.pending))
        if self.options.nproc > 1 or (jobs == 1 and not is_retry):
            return self._in_sequence(work)
        return self._in_workers(work, jobs, is_retry)

    def _in_sequence(self, work: list[NumberedRun]) -> Iterator[RunOutcome]:
        for number, planned in work:
            if self.options.nproc > 1:
                outcome = run_processes(number, planned, self.run_ids[number], self.options)
            else:
                outcome = execute_run(number, planned)
            yield outcome
            if self.options.failfast and outcome.status not in ("done", "held"):
                return

    def _in_workers(self, work: list[NumberedRun], jobs: int, is_retry: bool) -> Iterator[RunOutcome]:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        finished: set[int] = set()
        with TemporaryDirectory() as scratch, forward_signals(_children) as signals:
            stop_file = Path(scratch) / "stop"
            # A killed run is repeated alone, but in a worker: with one, joblib would use this process.
            workers = 2 if is_retry else jobs
            try:
                for outcome in _start_pool(_tasks(work, stop_file, signals), workers, prefetch=1 if is_retry else jobs):
                    finished.add(outcome.number)
                    yield outcome
                    if self.options.failfast and not stop_file.exists() and outcome.status not in ("done", "held"):
                        stop_file.touch()  # later runs end at once; active ones are signalled
                        for pid in _children():
                            with suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGTERM)
            except TerminatedWorkerError:
                if signals.pending is not None:
                    return
                left = [(number, planned) for number, planned in work if number not in finished and not self.run_ids[number].is_done]
                yield from self._after_kill(left, is_retry)

    def _after_kill(self, left: list[NumberedRun], is_retry: bool) -> Iterator[RunOutcome]:
        """Count an attempt of every run that was active when a worker was killed; such a run still has a lease file."""
        active = left[:1] if is_retry else [(number, planned) for number, planned in left if _has_lease(self.run_ids[number])]
        if not active:
            self._idle_pool_crashes += 1
            if self._idle_pool_crashes >= MAX_ATTEMPTS:
                raise QgoftError(
                    f"the workers of the sweep were killed {MAX_ATTEMPTS} times before any run started, possibly out of memory; reduce JOBS"
                ) from None
        for number, planned in active:
            self._attempts[number] = self._attempts.get(number, 0) + 1
            if self._attempts[number] >= MAX_ATTEMPTS:
                reason = f"its worker was killed {MAX_ATTEMPTS} times, possibly out of memory; set JOBS=1 or a smaller train.batch_size"
                yield RunOutcome(number, "failed", reason)
            else:
                self.display.say(f"qgoft: the worker of {planned.label} was killed; retrying the run")


def _tasks(work: list[NumberedRun], stop_file: Path, signals: SignalHandler) -> Iterator[Any]:
    from joblib import delayed

    for number, planned in work:
        if signals.pending is not None or stop_file.exists():
            return
        yield delayed(_execute_unless_stopped)(stop_file, execute_run, number, planned)


def _execute_unless_stopped(stop_file: Path, run: Callable[[int, PlannedRun], RunOutcome], number: int, planned: PlannedRun) -> RunOutcome:
    return RunOutcome(number, "planned", FAILFAST) if stop_file.exists() else run(number, planned)


def _start_pool(tasks: Iterator[Any], jobs: int, prefetch: int) -> Iterator[RunOutcome]:
    """Start joblib's workers, which yield outcomes in the order in which runs end."""
    from joblib import Parallel, parallel_config

    # loky restarts a worker whose memory has grown, between two runs, and warns as if a run were lost.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")
    with parallel_config(backend="loky", inner_max_num_threads=max(1, available_cores() // jobs)), _blocked_sigterm():
        return iter(Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=prefetch)(tasks))


@contextmanager
def _blocked_sigterm() -> Iterator[None]:
    """Block SIGTERM in workers that start inside the block, so that a signal between two runs waits until the worker has one.

    The resource trackers of loky and Python unblock signals when they start, so they are started first.
    """
    from joblib.externals.loky.backend import resource_tracker

    resource_tracker.ensure_running()
    python_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _children() -> list[int]:
    return [process.pid for process in active_children() if process.pid]


def _has_lease(run_id: RunId) -> bool:
    return any(run_id.directory.glob("lease.*.json"))


def print_outcome(done: int, total: int, failed: int, display: Display, planned: PlannedRun, outcome: RunOutcome) -> None:
    """Print the outcome of a run that is not done, and the progress of the sweep."""
    if outcome.status == "interrupted":
        return  # printed by the run itself
    if outcome.status != "done":
        display.say(f"qgoft: {planned.label}: {outcome.status}: {outcome.reason}")
    if total > 1:
        display.ended(done, total, failed)
