"""Training, and measurement of retention, in a sweep's worker process."""

from collections.abc import Sequence
from typing import Any

from qgoft.config.compose import own_overrides
from qgoft.config.settings import RunSettings
from qgoft.console import guard_output
from qgoft.run_id import results_directory
from qgoft.sweep.planned_run import PlannedRun


def train(settings: RunSettings, overrides: Sequence[str] = (), acquire_timeout: float = 0.0) -> dict[str, Any]:
    """Train and return the record. torch is imported here, so that invalid settings are reported immediately."""
    from qgoft.train.quiet import quiet_libraries
    from qgoft.train.run import run

    guard_output()
    quiet_libraries()
    return run(settings, acquire_timeout=acquire_timeout, overrides=own_overrides(overrides))


def measure(planned: PlannedRun) -> None:
    """Measure the retention of a finished run (`planned.retention`), and write it next to the record."""
    from qgoft.retention.measure import measure_retention
    from qgoft.train.interrupts import SignalHandler
    from qgoft.train.quiet import quiet_libraries
    from qgoft.train.rescore import Sources, open_run

    assert planned.retention is not None
    assert planned.key is not None
    guard_output()
    quiet_libraries()
    settings = planned.settings
    sources = Sources(settings.model.path, settings.data.root, settings.task.path)
    with SignalHandler():
        measure_retention(open_run(results_directory(settings) / planned.key, sources), planned.retention)
