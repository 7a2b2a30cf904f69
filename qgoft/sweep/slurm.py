"""Sweeps as submitit jobs, on SLURM or with submitit's local executor."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qgoft.config.compose import launcher_settings, override_name
from qgoft.config.locations import COMMAND
from qgoft.errors import QgoftError
from qgoft.lease import LEASE_DURATION, Lease
from qgoft.machine import available_cores
from qgoft.run_id import RunId
from qgoft.sweep.display import Display
from qgoft.sweep.executor import POLL_INTERVAL, ExecutorOptions, RunOutcome, execute_run, run_processes
from qgoft.sweep.local import FAILFAST, print_outcome
from qgoft.sweep.planned_run import PlannedRun
from qgoft.sweep.schedule import schedule_order

# Largest number of requeues after a time limit or preemption.
REQUEUES = 100
# SLURM's default limit of jobs per array, if it does not report one.
DEFAULT_ARRAY = 1001
# Time limit of submitit's local jobs: 30 days.
LOCAL_MINUTES = 60 * 24 * 30
# Options that submitit's executors share.
SHARED_OPTIONS = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "stderr_to_stdout")
GPUS = "CUDA_VISIBLE_DEVICES"


class Job:
    """One run as a job. submitit submits it again after preemption or its time limit."""

    def __init__(self, number: int, planned: PlannedRun, options: ExecutorOptions, run_id: RunId):
        self.number, self.planned, self.options, self.run_id = number, planned, options, run_id
        # submitit's local executor hides the GPUs unless some are requested.
        self.hides_gpus = options.launcher == "submitit_local" and "gpus_per_node" not in _given(options)
        self.gpus = os.environ.get(GPUS)

    def __call__(self) -> RunOutcome:
        if self.hides_gpus and self.gpus is None:
            os.environ.pop(GPUS, None)
        elif self.hides_gpus:
            os.environ[GPUS] = self.gpus or ""
        began = time.monotonic()
        # The lease of a lost node expires after a while.
        while (outcome := self._execute()).status == "held" and time.monotonic() - began < 2 * LEASE_DURATION:
            time.sleep(POLL_INTERVAL)
        # submitit ignores SIGTERM. A run in this process resumes by itself; the processes of a distributed run have saved and are restarted.
        for _ in range(REQUEUES):
            if self.options.nproc == 1 or outcome.status != "interrupted":
                break
            outcome = self._execute()
        return outcome

    def _execute(self) -> RunOutcome:
        if self.options.nproc > 1:
            return run_processes(self.number, self.planned, self.run_id, self.options)
        return execute_run(self.number, self.planned)

    def checkpoint(self) -> Any:
        """Return the job to requeue; called by submitit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class ClusterSweep:
    """A sweep of submitit jobs, one per run, in job arrays.

    Raises:
        QgoftError: submitit or SLURM is missing, or DETACH would exceed JOBS.
    """

    def __init__(self, planned_runs: Sequence[PlannedRun], run_ids: Sequence[RunId], options: ExecutorOptions):
        self.planned_runs, self.run_ids, self.options = planned_runs, run_ids, options
        self.is_slurm = options.launcher == "submitit_slurm"
        self.submitit = _import_submitit(options.launcher)
        if self.is_slurm and shutil.which("sbatch") is None:
            raise QgoftError("sbatch is not installed on this machine; use LAUNCHER=submitit_local or joblib")
        if options.detach and not self.is_slurm and len(planned_runs) > options.jobs:
            raise QgoftError(
                f"DETACH=1 with LAUNCHER=submitit_local would start all {len(planned_runs)} runs at once, and JOBS is {options.jobs}; "
                "omit DETACH, or use submitit_slurm, which has a queue"
            )
        self.order = [number for number, _ in schedule_order(dict(enumerate(planned_runs)))]
        # A cluster has a queue; the local executor would start everything at once.
        size = _max_array_size() if self.is_slurm else len(planned_runs) if options.detach else options.jobs
        self.arrays = [self.order[first : first + size] for first in range(0, len(self.order), size)]
        self.directory = Path(planned_runs[0].settings.results.root).resolve() / "jobs"
        self.executor = self._executor()
        self.queued: list[Any] = []
        self.failed: dict[int, RunOutcome] = {}
        self.finished: set[int] = set()
        self.display = Display(options.jobs)

    def _executor(self) -> Any:
        options = self.options
        settings = _submitit_names(options.launcher, launcher_settings(options.launcher, options.overrides))
        # A requeued job resumes from its checkpoint; without checkpoints it would restart every time.
        has_checkpoints = not options.accelerate.startswith("deepspeed") and all(
            planned.settings.results.checkpoint_interval is not None for planned in self.planned_runs
        )
        limits = {"slurm_max_num_timeout": REQUEUES if has_checkpoints else 0} if self.is_slurm else {}
        executor = self.submitit.AutoExecutor(folder=self.directory / "%j", cluster=options.launcher.removeprefix("submitit_"), **limits)
        executor.update_parameters(name="qgoft", **(settings if self.is_slurm else _local_settings(settings, options)))
        if self.is_slurm:
            executor.update_parameters(slurm_array_parallelism=max(1, options.jobs // len(self.arrays)))
        return executor

    def run(self) -> list[RunOutcome]:
        """Submit the jobs and return the outcomes of the runs that are not done. With `detach` return after submission."""
        # All arrays of a cluster are queued at once; on this machine each waits for the one before.
        groups = [self.arrays] if self.is_slurm else [[array] for array in self.arrays]
        try:
            for group in groups:
                numbers = self._submit(group)
                if self.options.detach:
                    print(f"detached; repeat the command to see finished runs, or run {COMMAND} status", flush=True)
                    return []
                for job in self.submitit.helpers.as_completed(self.queued[-len(numbers) :]):
                    self._finish(numbers[id(job)], job)
                    if self.failed and self.options.failfast:
                        self._cancel()
                        left = (RunOutcome(n, "planned", FAILFAST) for n in self.order if n not in self.finished)
                        return [*self.failed.values(), *left]
        except KeyboardInterrupt:
            self._cancel()
            left_jobs = len(self.queued) - len(self.finished)
            print(f"\nqgoft: cancelled {left_jobs} jobs; with DETACH=1 they would continue", file=sys.stderr, flush=True)
            raise
        return list(self.failed.values())

    def _submit(self, arrays: list[list[int]]) -> dict[int, int]:
        """Submit some arrays. Return id of a job -> number of its run."""
        numbers: dict[int, int] = {}
        for array in arrays:
            jobs = _queue(self.executor, [self._job(number) for number in array], len(self.queued))
            if not self.queued:
                print(f"{len(self.planned_runs)} jobs, the first is {jobs[0].job_id}; output in {self.directory}", flush=True)
            self.queued += jobs
            numbers |= {id(job): number for job, number in zip(jobs, array, strict=True)}
        return numbers

    def _job(self, number: int) -> Job:
        return Job(number, self.planned_runs[number], self.options, self.run_ids[number])

    def _finish(self, number: int, job: Any) -> None:
        outcome = _outcome_of(number, job)
        if outcome.status == "held":
            outcome = _wait_for_owner(number, self.run_ids[number])
        self.finished.add(number)
        if outcome.status != "done":
            self.failed[number] = outcome
        done, total = len(self.finished), len(self.planned_runs)
        print_outcome(done, total, len(self.failed), self.display, self.planned_runs[number], outcome)

    def _cancel(self) -> None:
        for job in self.queued:
            job.cancel(check=False)


def _submitit_names(launcher: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a launcher with the names of submitit: partition -> slurm_partition. JOBS replaces array_parallelism."""
    settings = {name: value for name, value in settings.items() if name != "array_parallelism"}
    return {name if name in SHARED_OPTIONS else f"{launcher.removeprefix('submitit_')}_{name}": value for name, value in settings.items()}


def _import_submitit(launcher: str) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise QgoftError(f"LAUNCHER={launcher} needs submitit, which is not installed; run pip install submitit") from error
    return submitit


def _queue(executor: Any, jobs: Sequence[Job], queued: int) -> list[Any]:
    """Submit the jobs of one array.

    Args:
        queued: number of jobs in the queue.

    Raises:
        QgoftError: the cluster refuses them, with the message of sbatch.
    """
    try:
        with executor.batch():
            return [executor.submit(job) for job in jobs]
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = next((line for line in lines if "sbatch: error" in line), (lines or ["no reason"])[-1])
        left = f"; {queued} queued jobs continue" if queued else ""
        raise QgoftError(f"the jobs were refused: {message}{left}; set ARGS='hydra.launcher.partition=...' or similar options") from error


def _max_array_size() -> int:
    """Return how many jobs SLURM accepts in one array."""
    try:
        config = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    except OSError:
        config = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, flags=re.M)
    return max(1, int(found[1])) if found else DEFAULT_ARRAY


def _local_settings(settings: dict[str, Any], options: ExecutorOptions) -> dict[str, Any]:
    """Replace the local executor's defaults, which are those of a cluster: an hour, and every core for every job."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // (options.jobs * options.nproc))))
    return settings if "timeout_min" in _given(options) else {**settings, "timeout_min": LOCAL_MINUTES}


def _given(options: ExecutorOptions) -> set[str]:
    return {override_name(override).removeprefix("hydra.launcher.") for override in options.overrides}


def _outcome_of(number: int, job: Any) -> RunOutcome:
    """Return the outcome of a job; if the job died, with the line of its log that states the error."""
    try:
        outcome: RunOutcome = job.result()
    except Exception as error:  # submitit's errors contain the job's whole log
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reasons = [line for line in lines if re.match(r"\S*(Error|Exception|Interrupt)\b", line)]
        return RunOutcome(number, "failed", f"job {job.job_id}: {(reasons or lines or ['no log'])[-1]}")
    return outcome


def _wait_for_owner(number: int, run_id: RunId) -> RunOutcome:
    """Wait until the owner of a run has finished it or its lease has expired."""
    while Lease(run_id.directory).owner() is not None:
        time.sleep(POLL_INTERVAL)
    status, reason = run_id.state()
    if status == "planned":
        reason = "its owner ended without a record; repeat the command to retry"
    return RunOutcome(number, status, reason)
