"""Execution of one planned run: in this process, or in several processes by torchrun or accelerate."""

import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import current_process
from typing import Any

from qgoft.config import locations
from qgoft.errors import QgoftError, format_exception
from qgoft.lease import Lease, LeaseHeld, LeaseLost
from qgoft.records import RecordError
from qgoft.run_id import RunId
from qgoft.sweep.planned_run import PlannedRun
from qgoft.train.interrupts import SignalHandler

LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")
# Seconds for runs to save after a signal: clusters grant 30, and two minutes if they announce the end of the time limit.
GRACE, GRACE_AHEAD = 28.0, 110.0
# Seconds between two checks of a run that another sweep holds.
POLL_INTERVAL = 5.0


@dataclass(frozen=True)
class RunOutcome:
    """Result of one planned run.

    Attributes:
        number: index of the run in the plan.
        status: that of the record; `held` if another sweep runs it; `refused` after a user error.
    """

    number: int
    status: str
    reason: str


@dataclass(frozen=True)
class ExecutorOptions:
    """Options of a sweep's executor.

    Attributes:
        jobs: runs at a time.
        launcher: one of LAUNCHERS; empty for joblib.
        nproc: processes of each run.
        accelerate: file of configs/accelerate, or empty for torchrun.
        failfast: end the sweep after the first failure.
        detach: submit the jobs of a cluster without waiting.
        overrides: overrides of the launcher (hydra.launcher.*).
    """

    jobs: int
    launcher: str = ""
    nproc: int = 1
    accelerate: str = ""
    failfast: bool = False
    detach: bool = False
    overrides: tuple[str, ...] = ()

    @property
    def is_cluster(self) -> bool:
        """Return True if the runs are jobs of submitit."""
        return self.launcher.startswith("submitit")

    @property
    def parallel_runs(self) -> int:
        """Return the number of runs at a time; locally, runs of several processes execute one after the other."""
        is_sequential = self.launcher == "basic" or (self.nproc > 1 and not self.is_cluster)
        return 1 if is_sequential else self.jobs


def execute_run(number: int, planned: PlannedRun) -> RunOutcome:
    """Execute one run in this process. Exceptions become outcomes, so that the other runs continue.

    Raises:
        KeyboardInterrupt: a signal, if this process is the sweep itself.
    """
    from qgoft.sweep.worker import measure, train  # import torch, once per process

    if current_process().name != "MainProcess":
        end_with_parent()
        _is_running.set()
    try:
        if planned.retention is not None:
            measure(planned)
            return RunOutcome(number, "done", "")
        record = train(planned.settings, planned.overrides)
    except KeyboardInterrupt as stop:
        if current_process().name == "MainProcess":
            raise
        return RunOutcome(number, "interrupted", str(stop))
    except (LeaseHeld, LeaseLost) as error:
        return RunOutcome(number, "held", str(error))
    except (QgoftError, RecordError) as error:
        return RunOutcome(number, "refused", str(error))
    except Exception as error:  # before the run has a record
        traceback.print_exc()
        return RunOutcome(number, "failed", format_exception(error))
    finally:
        _is_running.clear()
    return RunOutcome(number, record["status"], record["reason"] or "")


# Set while this worker executes a run.
_is_running = threading.Event()


@functools.cache
def end_with_parent() -> None:
    """Start a thread that ends this worker when its parent has ended; the current run is saved first, as after a signal."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        if _is_running.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while _is_running.is_set() and time.monotonic() < deadline:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_processes(number: int, planned: PlannedRun, run_id: RunId, options: ExecutorOptions) -> RunOutcome:
    """Execute one run in several processes."""
    owner = Lease(run_id.directory).owner()
    if owner is not None:
        return RunOutcome(number, "held", owner)
    before = _read(run_id)
    running: list[int] = []
    with forward_signals(lambda: running):
        process = subprocess.Popen([*launch_command(options), "-m", "qgoft", "train", *planned.overrides], preexec_fn=_signal_with_parent)
        running.append(process.pid)
        code = process.wait()
        running.clear()
    status, reason = run_id.state()
    if status == "running":  # in another sweep
        return RunOutcome(number, "held", reason)
    if code and status != "done" and _read(run_id) == before:  # the record of an earlier attempt does not describe this one
        failure = run_id.pop_rank_failure()
        return RunOutcome(number, *(failure or ("refused", f"it ended with exit code {code} and left no record; see above")))
    return RunOutcome(number, status, reason)


def _signal_with_parent() -> None:
    """In a new process on Linux: receive SIGTERM when this one ends. Elsewhere a killed sweep leaves its run behind."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _read(run_id: RunId) -> dict[str, Any] | None:
    try:
        return run_id.read()
    except RecordError:
        return None


def launch_command(options: ExecutorOptions) -> list[str]:
    """Return the command that starts a run in several processes: torchrun, or accelerate with a file of configs/accelerate."""
    python = [sys.executable, "-m"]
    if not options.accelerate:
        return [*python, "torch.distributed.run", "--standalone", f"--nproc_per_node={options.nproc}"]
    file = locations.CONFIGS / "accelerate" / f"{options.accelerate}.yaml"
    return [*python, "accelerate.commands.launch", "--config_file", str(file), "--num_processes", str(options.nproc)]


@contextmanager
def forward_signals(pids: Callable[[], list[int]]) -> Iterator[SignalHandler]:
    """Forward a signal to the processes that execute runs, and wait until they have saved and ended.

    A second signal ends the sweep immediately, as does the end of GRACE seconds (GRACE_AHEAD for a cluster's early signal).

    Raises:
        Stopped: at the end of the block, if a signal arrived.
    """
    timers: list[threading.Timer] = []

    def forward() -> None:
        _kill(pids(), signal.SIGTERM)
        grace = GRACE_AHEAD if signals.pending in (signal.SIGUSR1, signal.SIGUSR2) else GRACE
        timers.append(threading.Timer(grace, os.kill, (os.getpid(), signal.SIGTERM)))
        timers[0].daemon = True
        timers[0].start()
        print("\nqgoft: stopping; active runs are saved first", file=sys.stderr, flush=True)

    try:
        signals = SignalHandler(forward)
        with signals, signals.defer():
            try:
                yield signals
            finally:
                if signals.pending is not None:
                    # A worker that ended while idle may hold the lock of the pool, which would block the others.
                    _kill(pids(), signal.SIGKILL)
                    signals.raise_pending()
    finally:
        for timer in timers:
            timer.cancel()


def _kill(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
