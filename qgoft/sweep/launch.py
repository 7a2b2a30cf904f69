"""Launch of a sweep. Two sweeps on one results directory share the work."""

from collections.abc import Sequence

from qgoft.run_id import RunId
from qgoft.sweep.display import Display
from qgoft.sweep.executor import ExecutorOptions, RunOutcome
from qgoft.sweep.local import LocalSweep
from qgoft.sweep.planned_run import PlannedRun
from qgoft.sweep.slurm import ClusterSweep


def sweep(planned_runs: Sequence[PlannedRun], run_ids: Sequence[RunId], options: ExecutorOptions) -> list[RunOutcome]:
    """Execute planned runs, and wait for those that another sweep holds. Return the outcomes of the runs that are not done.

    Raises:
        QgoftError: the launcher is not available.
    """
    if options.launcher.startswith("submitit"):
        return ClusterSweep(planned_runs, run_ids, options).run()
    workers = 1 if options.launcher == "basic" or options.nproc > 1 else min(options.jobs, len(planned_runs))
    with Display(workers) as display:
        return LocalSweep(planned_runs, run_ids, options, display).run()
