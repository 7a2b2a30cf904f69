"""Running what a plan has left: processes of this machine (joblib), or jobs of a cluster (submitit). Two sweeps on one folder share the work."""

import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import active_children, current_process
from multiprocessing import resource_tracker as python_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qgoft.config.compose import CONFIGS, REPOSITORY, compose_launcher, name_of
from qgoft.config.settings import DECODER_SUITES, settings_of_training
from qgoft.errors import QgoftError, format_exception
from qgoft.lease import LEASE_DURATION, Lease, LeaseHeld, LeaseLost
from qgoft.records import RecordError, canonical_json
from qgoft.run_id import RunId
from qgoft.sweep.display import Display
from qgoft.sweep.plan import PlannedRun
from qgoft.train.interrupts import SignalHandler

TRAIN = REPOSITORY / "scripts" / "train.py"
# Of a run whose process was killed from outside: how often it is begun.
ATTEMPTS = 2
FAILFAST = "not begun: FAILFAST stopped the sweep"
NOBODY = -1  # whose attempts are those that ended before any run had begun
# Seconds that runs have to save themselves after a signal: clusters give thirty, and two minutes where they say ahead that time is up.
GRACE, GRACE_AHEAD = 28.0, 110.0
# How often a job of a cluster may meet its time limit.
REQUEUES = 100
# Jobs in one array where SLURM does not say how many it takes (its default), and minutes of a job of this machine, which has no limit.
DEFAULT_ARRAY, LOCAL_MINUTES = 1001, 60 * 24 * 30
GPUS = "CUDA_VISIBLE_DEVICES"
# Seconds between two looks at a run that another sweep holds.
PATIENCE = 5.0
LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")


@dataclass(frozen=True)
class RunOutcome:
    """What came of one cell."""

    number: int
    status: str  # of the record; held: another sweep is at it; refused: the input is wrong
    reason: str


@dataclass(frozen=True)
class ExecutorOptions:
    """With what a sweep runs."""

    jobs: int
    launcher: str = ""
    nproc: int = 1
    accelerate: str = ""
    failfast: bool = False
    detach: bool = False
    overrides: tuple[str, ...] = ()  # of the launcher: hydra.launcher.*


def execute_run(number: int, planned: PlannedRun) -> RunOutcome:
    """One run in this process. Never raises but where the whole sweep is this process and was stopped: what goes wrong is said in the outcome."""
    from qgoft.sweep.worker import train  # imports torch late, once a process

    if current_process().name != "MainProcess":
        end_with_parent()
        _at_work.set()

    try:
        record = train(planned.settings, planned.overrides)
    except KeyboardInterrupt as stop:
        if current_process().name == "MainProcess":
            raise
        return RunOutcome(number, "interrupted", str(stop))
    except (LeaseHeld, LeaseLost) as error:
        return RunOutcome(number, "held", str(error))
    except (QgoftError, RecordError) as error:
        return RunOutcome(number, "refused", str(error))
    except Exception as error:  # before a run has a record: the others go on
        traceback.print_exc()
        return RunOutcome(number, "failed", format_exception(error))
    finally:
        _at_work.clear()
    return RunOutcome(number, record["status"], record["reason"] or "")


# Set while this worker is at a run.
_at_work = threading.Event()


@functools.cache
def end_with_parent() -> None:
    """End this worker when its parent process is gone. Its run is saved first, as after a signal."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        if _at_work.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
        ends_by = time.monotonic() + GRACE
        while _at_work.is_set() and time.monotonic() < ends_by:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _unless(over: Path, run: Callable[[int, PlannedRun], RunOutcome], number: int, planned: PlannedRun) -> RunOutcome:
    return RunOutcome(number, "planned", FAILFAST) if over.exists() else run(number, planned)


def sweep(planned_runs: Sequence[PlannedRun], run_ids: Sequence[RunId], options: ExecutorOptions) -> list[RunOutcome]:
    """Run every cell; those that another sweep holds are waited for. Returns what is not done, with the reason.

    Raises:
        QgoftError: the launcher is not installed.
    """
    if options.launcher.startswith("submitit"):
        return _submit(planned_runs, run_ids, options)
    at_once = 1 if options.launcher == "basic" or options.nproc > 1 else min(options.jobs, len(planned_runs))
    with Display(at_once) as display:
        return _sweep_here(planned_runs, run_ids, options, display)


def _sweep_here(
    planned_runs: Sequence[PlannedRun], run_ids: Sequence[RunId], options: ExecutorOptions, display: Display
) -> list[RunOutcome]:
    """The processes of this machine do the runs."""
    pending = dict(enumerate(planned_runs))
    bad: dict[int, RunOutcome] = {}
    attempts: dict[int, int] = {}
    total, done = len(pending), 0
    waiting: set[int] = set()  # runs whose holder was named
    while pending:
        held = []
        for outcome in _run_all(pending, run_ids, options, attempts, display):
            if outcome.status == "held":
                held.append(outcome.number)
                attempts.pop(outcome.number, None)  # somebody else's now; the others need not wait for it
                continue
            if outcome.status == "planned":
                continue
            pending.pop(outcome.number, None)
            done += 1
            if outcome.status != "done":
                bad[outcome.number] = outcome
            _print_outcome(done, total, len(bad), display, planned_runs[outcome.number], outcome)
        if bad and options.failfast:
            return [*bad.values(), *(RunOutcome(n, "planned", FAILFAST) for n in pending)]
        for number in [n for n in held if run_ids[n].is_done]:
            pending.pop(number)
            done += 1
        if held and len(pending) == len(held):
            for number in sorted(set(held) - waiting):
                display.say(
                    f"qgoft: waiting for {planned_runs[number].label}: {Lease(run_ids[number].folder).owner() or 'another process'} has it"
                )
            waiting |= set(held)
            time.sleep(PATIENCE)
    return [bad[number] for number in sorted(bad)]


def _print_outcome(done: int, total: int, failed: int, display: Display, planned: PlannedRun, outcome: RunOutcome) -> None:
    if outcome.status == "interrupted":
        return  # the run itself has said so
    if outcome.status != "done":
        display.say(f"qgoft: {planned.label}: {outcome.status}: {outcome.reason}")
    if total > 1:
        display.ended(done, total, failed)


def _run_all(
    pending: dict[int, PlannedRun], run_ids: Sequence[RunId], options: ExecutorOptions, attempts: dict[int, int], display: Display
) -> Iterator[RunOutcome]:
    """Yield the outcomes of one pass over the pending runs. With `failfast` the pass ends after the first failure, and the other workers save
    their runs. Runs whose process was killed in an earlier pass are done one at a time, so that the run that causes it is known.

    Raises:
        QgoftError: processes are killed before they have begun a run.
    """
    is_alone = any(number in attempts for number in pending)
    work = schedule_order({number: planned for number, planned in pending.items() if not is_alone or number in attempts})
    at_once = 1 if options.launcher == "basic" else min(options.jobs, len(pending))
    if options.nproc > 1 or (at_once == 1 and not is_alone):
        for number, planned in work:
            outcome = _run_in_processes(number, planned, run_ids[number], options) if options.nproc > 1 else execute_run(number, planned)
            yield outcome
            if options.failfast and outcome.status not in ("done", "held"):
                return
        return
    jobs = 2 if is_alone else at_once  # one is this process itself
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.backend import resource_tracker
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    finished: set[int] = set()
    with TemporaryDirectory() as scratch, _passing_on(lambda: [process.pid for process in active_children() if process.pid]) as signals:
        over = Path(scratch) / "over"

        def tasks() -> Iterator[Any]:
            for number, planned in work:
                if signals.pending is not None or over.exists():
                    return
                yield delayed(_unless)(over, execute_run, number, planned)

        # loky replaces a worker whose memory has grown, between two runs, and warns of it as if something were lost.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")
        try:
            with parallel_config(backend="loky", inner_max_num_threads=max(1, (os.cpu_count() or 1) // jobs)):
                # Workers inherit what is held back: a signal that comes while one starts, or between two runs, waits until it has a run.
                # The trackers of loky and of Python let signals through again once they have started, so they are started before.
                resource_tracker.ensure_running()
                python_tracker.ensure_running()
                held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                try:
                    outcomes = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=1 if is_alone else jobs)(
                        tasks()
                    )
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, held)
                for outcome in outcomes:
                    finished.add(outcome.number)
                    yield outcome
                    if options.failfast and not over.exists() and outcome.status not in ("done", "held"):
                        over.touch()  # what is begun from now on ends at once; what has begun is told
                        for process in active_children():
                            with suppress(ProcessLookupError):
                                os.kill(process.pid or 0, signal.SIGTERM)
        except TerminatedWorkerError:
            if signals.pending is not None:
                return
            # A worker was killed from outside, such as by the system for want of memory, and took the pool along. Its run left a lease.
            left = [(number, planned) for number, planned in work if number not in finished and not run_ids[number].is_done]
            begun = left[:1] if is_alone else [(number, planned) for number, planned in left if _was_begun(run_ids[number])]
            if not begun:
                attempts[NOBODY] = attempts.get(NOBODY, 0) + 1
                if attempts[NOBODY] >= ATTEMPTS:
                    raise QgoftError(
                        f"the processes of the sweep were killed {ATTEMPTS} times before one had begun a run, perhaps for want of memory; try fewer JOBS"
                    ) from None
            for number, planned in begun:
                attempts[number] = attempts.get(number, 0) + 1
                if attempts[number] >= ATTEMPTS:
                    reason = (
                        f"its process was killed {ATTEMPTS} times, perhaps for want of memory; try JOBS=1 or a smaller train.batch_size"
                    )
                    yield RunOutcome(number, "failed", reason)
                else:
                    display.say(f"qgoft: the process of {planned.label} was killed; it is begun once more")


@contextmanager
def _passing_on(pids: Callable[[], list[int]]) -> Iterator[SignalHandler]:
    """A signal that stops the sweep goes on to the processes that do its runs; they save, and when they have ended, so does the sweep. A second
    signal, or GRACE seconds (GRACE_AHEAD), end it at once.

    Raises:
        Stopped: at the end of the block, where a signal came.
    """
    timers: list[threading.Timer] = []

    def pass_on() -> None:
        for pid in pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        grace = GRACE_AHEAD if signals.pending in (signal.SIGUSR1, signal.SIGUSR2) else GRACE
        timers.append(threading.Timer(grace, os.kill, (os.getpid(), signal.SIGTERM)))
        timers[0].daemon = True
        timers[0].start()
        print("\nqgoft: stopping; what runs is saved first", file=sys.stderr, flush=True)

    try:
        signals = SignalHandler(pass_on)
        with signals, signals.defer():
            try:
                yield signals
            finally:
                if signals.pending is not None:
                    # A worker that died idle may have held the pool's lock: the others would wait for it for ever.
                    for pid in pids():
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    signals.raise_pending()
    finally:
        for timer in timers:
            timer.cancel()


def schedule_order(pending: dict[int, PlannedRun]) -> list[tuple[int, PlannedRun]]:
    """One seed of everything before the next seed, so that a sweep that is stopped leaves whole tables. Tasks of decoders share one training:
    the first of each goes before the others, or processes would wait for a training that another one does."""
    begun: set[str] = set()
    places = {}
    for number, planned in pending.items():
        is_decoder = planned.settings.task.suite in DECODER_SUITES
        training = canonical_json(settings_of_training(planned.settings)) if is_decoder else str(number)
        places[number] = (planned.settings.seed, training in begun, number)
        begun.add(training)
    return sorted(pending.items(), key=lambda item: places[item[0]])


def _was_begun(run_id: RunId) -> bool:
    return any(run_id.folder.glob("lease.*.json"))


def _run_in_processes(number: int, planned: PlannedRun, run_id: RunId, options: ExecutorOptions) -> RunOutcome:
    """One run by torchrun or accelerate, which pass a signal on to its processes."""
    owner = Lease(run_id.folder).owner()
    if owner is not None:
        return RunOutcome(number, "held", owner)
    before = _read(run_id)
    running: list[int] = []
    with _passing_on(lambda: running):
        process = subprocess.Popen([*processes(options), str(TRAIN), *planned.overrides], preexec_fn=_signal_with_parent)
        running.append(process.pid)
        code = process.wait()
        running.clear()
    status, reason = run_id.state()
    if status == "running":  # by another sweep, whose run it is
        return RunOutcome(number, "held", reason)
    if code and status != "done" and _read(run_id) == before:  # what an earlier attempt left says nothing of this one
        failure = run_id.pop_rank_failure()  # of a process, while the one that writes the record was killed
        return RunOutcome(number, *(failure or ("refused", f"it ended with exit code {code} and left no record; see above")))
    return RunOutcome(number, status, reason)


def _signal_with_parent() -> None:
    """In a new process: get SIGTERM when this one ends, which torchrun passes on. Linux only; elsewhere a killed sweep leaves its run."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _read(run_id: RunId) -> dict[str, Any] | None:
    try:
        return run_id.read()
    except RecordError:
        return None


def processes(options: ExecutorOptions) -> list[str]:
    """The command that starts a run in several processes: torchrun, or accelerate with a file of configs/accelerate."""
    python = [sys.executable, "-m"]
    if not options.accelerate:
        return [*python, "torch.distributed.run", "--standalone", f"--nproc_per_node={options.nproc}"]
    file = CONFIGS / "accelerate" / f"{options.accelerate}.yaml"
    return [*python, "accelerate.commands.launch", "--config_file", str(file), "--num_processes", str(options.nproc)]


# --- clusters --------------------------------------------------------------------------------------------------------------------------


class Job:
    """What a job of a cluster does: one cell. Where the job is pre-empted or meets its time limit, submitit submits the same again."""

    def __init__(self, number: int, planned: PlannedRun, options: ExecutorOptions, run_id: RunId):
        self.number, self.planned, self.options, self.run_id = number, planned, options, run_id
        # submitit's local executor hides the GPUs from its jobs, but for the first ones where it is asked for some.
        self.hides_gpus = options.launcher == "submitit_local" and "gpus_per_node" not in _asked_of_launcher(options)
        self.gpus = os.environ.get(GPUS)

    def __call__(self) -> RunOutcome:
        if self.hides_gpus and self.gpus is None:
            os.environ.pop(GPUS, None)
        elif self.hides_gpus:
            os.environ[GPUS] = self.gpus
        began = time.monotonic()
        # The lease of a node that is gone is void only after a while.
        while (outcome := self._once()).status == "held" and time.monotonic() - began < 2 * LEASE_DURATION:
            time.sleep(PATIENCE)
        # A signal that submitit lets pass (SIGTERM) does not end the job. A run in this process goes on by itself; processes of a run have saved
        # it and left, and are begun again.
        for _ in range(REQUEUES):
            if self.options.nproc == 1 or outcome.status != "interrupted":
                break
            outcome = self._once()
        return outcome

    def _once(self) -> RunOutcome:
        if self.options.nproc > 1:
            return _run_in_processes(self.number, self.planned, self.run_id, self.options)
        return execute_run(self.number, self.planned)

    def checkpoint(self) -> Any:
        """submitit's hook: what is to be queued again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _submit(planned_runs: Sequence[PlannedRun], run_ids: Sequence[RunId], options: ExecutorOptions) -> list[RunOutcome]:
    """Job arrays with one job a cell. With `detach` the jobs are submitted and left alone."""
    try:
        import submitit
    except ImportError as error:
        raise QgoftError(f"LAUNCHER={options.launcher} needs submitit, which is not installed: pip install submitit") from error
    is_slurm = options.launcher == "submitit_slurm"
    if is_slurm and shutil.which("sbatch") is None:
        raise QgoftError("there is no SLURM on this machine (no sbatch); use LAUNCHER=submitit_local, or joblib")
    if options.detach and not is_slurm and len(planned_runs) > options.jobs:
        raise QgoftError(
            f"DETACH=1 with LAUNCHER=submitit_local would start all {len(planned_runs)} runs at once, and JOBS is {options.jobs}; leave DETACH out, or use "
            "submitit_slurm, which has a queue"
        )
    settings = compose_launcher(options.launcher, list(options.overrides))
    folder = Path(planned_runs[0].settings.results.root).resolve() / "jobs"
    # A job that meets its time limit is queued again and goes on, each time further; one without checkpoints would begin anew every time.
    keeps = not options.accelerate and all(planned.settings.results.checkpoint_interval is not None for planned in planned_runs)
    more = {"slurm_max_num_timeout": REQUEUES if keeps else 0} if is_slurm else {}
    executor = submitit.AutoExecutor(folder=folder / "%j", cluster=options.launcher.removeprefix("submitit_"), **more)
    executor.update_parameters(name="qgoft", **(settings if is_slurm else _of_this_machine(settings, options)))
    # A cluster keeps a queue; the local executor would start everything at once.
    size = _largest_array() if is_slurm else len(planned_runs) if options.detach else options.jobs
    order = [number for number, _ in schedule_order(dict(enumerate(planned_runs)))]
    waves = [order[first : first + size] for first in range(0, len(order), size)]
    if is_slurm:
        executor.update_parameters(slurm_array_parallelism=max(1, options.jobs // len(waves)))
    # All arrays of a cluster are queued at once; this machine gets its next jobs when the ones before have ended.
    turns = [waves] if is_slurm else [[wave] for wave in waves]
    queued: list[Any] = []
    bad: dict[int, RunOutcome] = {}
    display, finished = Display(options.jobs), set()
    try:
        for turn in turns:
            numbers = {}
            for wave in turn:
                jobs = _queue(executor, [Job(n, planned_runs[n], options, run_ids[n]) for n in wave], len(queued))
                if not queued:
                    print(f"{len(planned_runs)} jobs, the first is {jobs[0].job_id}; their output is in {folder}", flush=True)
                queued += jobs
                numbers |= {id(job): number for job, number in zip(jobs, wave, strict=True)}
            if options.detach:
                print("they go on by themselves; the same command says what is done, and make status what runs", flush=True)
                return []
            for job in submitit.helpers.as_completed(queued[-len(numbers) :]):
                number = numbers[id(job)]
                outcome = _result(number, job)
                if outcome.status == "held":
                    outcome = _await(number, run_ids[number])
                finished.add(number)
                if outcome.status != "done":
                    bad[number] = outcome
                _print_outcome(len(finished), len(planned_runs), len(bad), display, planned_runs[number], outcome)
                if bad and options.failfast:
                    _cancel(queued)
                    return [*bad.values(), *(RunOutcome(n, "planned", FAILFAST) for n in order if n not in finished)]
    except KeyboardInterrupt:
        _cancel(queued)
        print(
            f"\nqgoft: {len(queued) - len(finished)} jobs are cancelled; with DETACH=1 they would go on by themselves",
            file=sys.stderr,
            flush=True,
        )
        raise
    return list(bad.values())


def _queue(executor: Any, work: Sequence[Job], before: int) -> list[Any]:
    """submitit's jobs of one array. `before`: how many are queued already.

    Raises:
        QgoftError: the cluster does not take them; with its own words.
    """
    try:
        with executor.batch():
            return [executor.submit(job) for job in work]
    except RuntimeError as error:  # sbatch's own words are in submitit's error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if "sbatch: error" in line), (lines or ["no reason"])[-1])
        left = f"; {before} jobs are queued and go on" if before else ""
        raise QgoftError(
            f"the jobs were not taken: {said}{left}; ARGS='hydra.launcher.partition=...' and its like say what to ask for"
        ) from error


def _cancel(queued: Sequence[Any]) -> None:
    for job in queued:
        job.cancel(check=False)


def _largest_array() -> int:
    """How many jobs SLURM takes in one array."""
    try:
        told = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    except OSError:
        told = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", told, flags=re.M)
    return max(1, int(found[1])) if found else DEFAULT_ARRAY


def _of_this_machine(settings: dict[str, Any], options: ExecutorOptions) -> dict[str, Any]:
    """The local executor's own defaults are those of a cluster: an hour, and every core for every job."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // (options.jobs * options.nproc))))
    return settings if "timeout_min" in _asked_of_launcher(options) else {**settings, "timeout_min": LOCAL_MINUTES}


def _asked_of_launcher(options: ExecutorOptions) -> set[str]:
    return {name_of(word).removeprefix("hydra.launcher.") for word in options.overrides}


def _result(number: int, job: Any) -> RunOutcome:
    """What a job came to; of one that died, the line of its log that says why."""
    try:
        outcome: RunOutcome = job.result()
    except Exception as error:  # submitit's errors carry the job's whole log
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reasons = [line for line in lines if re.match(r"\S*(Error|Exception|Interrupt)\b", line)]
        return RunOutcome(number, "failed", f"job {job.job_id}: {(reasons or lines or ['no log'])[-1]}")
    return outcome


def _await(number: int, run_id: RunId) -> RunOutcome:
    """Until whoever holds a run is done with it, or shows no sign of life."""
    while Lease(run_id.folder).owner() is not None:
        time.sleep(PATIENCE)
    status, reason = run_id.state()
    if status == "planned":
        reason = "who was at it ended without a record; the same command begins it again"
    return RunOutcome(number, status, reason)
