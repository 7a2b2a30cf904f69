"""Run a sweep locally or on a cluster. Concurrent sweeps on one results directory share the work."""

from collections.abc import Sequence

from qgoft.run_id import RunId
from qgoft.sweep.display import Display
from qgoft.sweep.executor import ExecutorOptions, RunOutcome
from qgoft.sweep.local import LocalSweep
from qgoft.sweep.planned_run import PlannedRun
from qgoft.sweep.slurm import ClusterSweep


def run_sweep(planned_runs: Sequence[PlannedRun], run_ids: Sequence[RunId], options: ExecutorOptions) -> list[RunOutcome]:
    """Execute planned runs, and wait for those that another sweep holds. Return the outcomes of the runs that are not done.

    Raises:
        QgoftError: the launcher is not available.
    """
    if options.is_cluster:
        return ClusterSweep(planned_runs, run_ids, options).run()
    with Display(min(options.parallel_runs, len(planned_runs))) as display:
        return LocalSweep(planned_runs, run_ids, options, display).run()
