"""Retention of planned runs: which measurements are missing, and their execution by the executors of runs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qgoft.config.retention import RetentionSettings
from qgoft.lease import Lease
from qgoft.records import RecordError
from qgoft.records.retention import LEASE_DIRECTORY, Retention, read_retention, retention_key
from qgoft.run_id import RunId
from qgoft.sweep.executor import ExecutorOptions
from qgoft.sweep.forecast import format_runs
from qgoft.sweep.launch import run_sweep
from qgoft.sweep.planned_run import PlannedRun


@dataclass(frozen=True)
class RetentionId(RunId):
    """Identity of a measurement; `key` is that of the run, `directory` holds the lease of the measurement.

    Attributes:
        run_directory: directory of the run.
        wanted: key of the measurement.
    """

    run_directory: Path
    wanted: str

    @classmethod
    def of(cls, run_id: RunId, asked: RetentionSettings) -> "RetentionId":
        """Return the identity of the measurement of a run."""
        key = retention_key(run_id.key, dataclasses.asdict(asked))
        return cls(run_id.key, run_id.directory / LEASE_DIRECTORY, run_id.data, run_id.model, run_id.directory, key)

    def find(self) -> Retention | None:
        """Return the measurement, or None if it is missing or has other settings.

        Raises:
            RecordError: it is corrupt.
        """
        found = read_retention(self.run_directory, self.key)
        return found if found is not None and found["key"] == self.wanted else None

    @property
    def is_done(self) -> bool:
        """True if the measurement is valid and has the wanted settings. A corrupt one is repeated."""
        try:
            return self.find() is not None
        except RecordError:
            return False

    def state(self) -> tuple[str, str]:
        if self.is_done:
            return "done", ""
        owner = Lease(self.directory).owner()
        return ("planned", "") if owner is None else ("running", owner)


def measure_pending(
    title: str, runs: Sequence[PlannedRun], run_ids: Sequence[RunId], asked: RetentionSettings, options: ExecutorOptions
) -> list[tuple[PlannedRun, str]]:
    """Measure the missing retention of finished runs. Return the runs without one afterwards, with the reason.

    Raises:
        QgoftError: the launcher is not available.
    """
    options = dataclasses.replace(options, nproc=1, accelerate="")  # whatever the processes of a run
    targets = [RetentionId.of(run_id, asked) for run_id in run_ids]
    pending = [number for number, target in enumerate(targets) if not target.is_done]
    print(f"{title}: retention of {format_runs(len(runs))}, {len(runs) - len(pending)} measured", flush=True)
    if not pending:
        return []
    measured = [dataclasses.replace(runs[number], retention=asked) for number in pending]
    ids = [targets[number] for number in pending]
    reasons = {outcome.number: f"{outcome.status}: {outcome.reason}" for outcome in run_sweep(measured, ids, options)}
    if options.detach:
        return []
    return [(run, reasons.get(number, "it was not measured")) for number, run in enumerate(measured) if not ids[number].is_done]
