"""Sweeps as submitit jobs, against a stand-in for submitit's executor."""

import contextlib
import os
import sys
from types import SimpleNamespace

import pytest

from qgoft.errors import QgoftError
from qgoft.sweep import planned_run, slurm
from qgoft.sweep.executor import ExecutorOptions, RunOutcome
from qgoft.sweep.launch import run_sweep


class Cluster:
    """Records the calls of submitit's executor; its jobs have prescribed outcomes."""

    def __init__(self, monkeypatch, array=1001, ends=lambda number: RunOutcome(number, "done", ""), refuses=None):
        self.asked, self.parameters, self.arrays, self.cancelled, self.refuses = {}, {}, [], [], refuses
        self.ends = ends
        helpers = SimpleNamespace(as_completed=list)
        monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=self.begin, helpers=helpers))
        monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
        told = SimpleNamespace(stdout=f"MaxArraySize            = {array}\n")
        monkeypatch.setattr(slurm.subprocess, "run", lambda *_, **__: told)
        monkeypatch.setenv("PYTHONPATH", "")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def begin(self, **asked):
        self.asked = asked
        return self

    def update_parameters(self, **parameters):
        self.parameters |= parameters

    @contextlib.contextmanager
    def batch(self):
        self.arrays.append([])
        yield
        if self.refuses and len(self.arrays) == self.refuses:
            raise RuntimeError(
                "Error during bash call:\nsbatch: error: invalid partition specified: gpuu\nsbatch: error: Batch job submission failed"
            )

    def submit(self, job):
        self.arrays[-1].append(job.number)
        return SimpleNamespace(
            job_id=str(job.number), result=lambda: self.ends(job.number), cancel=lambda check: self.cancelled.append(job.number)
        )


def of_cluster(cluster, tmp_path, count, *words, launcher="submitit_slurm", **means):
    asked = [("task=glue/rte", "method=qgoft", f"results.root={tmp_path}", *words)]
    cells = planned_run.compose_runs(asked, [str(seed) for seed in range(count)], 1)
    return run_sweep(cells, [None] * count, ExecutorOptions(4, launcher=launcher, **means))


def test_job_arrays_respect_slurms_limit(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch, array=3)
    assert of_cluster(cluster, tmp_path, 8) == []
    assert cluster.arrays == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert cluster.parameters["slurm_array_parallelism"] == 1, "four at a time among three arrays"


def test_sbatch_error_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(
        QgoftError, match=r"the jobs were refused: sbatch: error: invalid partition specified: gpuu; 3 queued jobs continue"
    ):
        of_cluster(Cluster(monkeypatch, array=3, refuses=2), tmp_path, 8)


def test_requeue_needs_checkpoints(monkeypatch, tmp_path):
    for words, means, times in (
        ((), {}, slurm.REQUEUES),
        (("results.checkpoint_interval=null",), {}, 0),
        ((), {"accelerate": "fsdp2"}, slurm.REQUEUES),
        ((), {"accelerate": "deepspeed_zero2"}, 0),
    ):
        cluster = Cluster(monkeypatch)
        of_cluster(cluster, tmp_path, 1, *words, **means)
        assert cluster.asked["slurm_max_num_timeout"] == times


def test_cluster_failfast_lists_pending(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch, ends=lambda number: RunOutcome(number, "diverged", "a test"))
    found = of_cluster(cluster, tmp_path, 3, failfast=True)
    assert [(o.number, o.status) for o in found] == [(0, "diverged"), (1, "planned"), (2, "planned")]
    assert cluster.cancelled == [0, 1, 2]


def test_ctrl_c_cancels_jobs(monkeypatch, tmp_path, capsys):
    def stop(number):
        if number:
            raise KeyboardInterrupt
        return RunOutcome(0, "done", "")

    cluster = Cluster(monkeypatch, ends=stop)
    with pytest.raises(KeyboardInterrupt):
        of_cluster(cluster, tmp_path, 3)
    assert cluster.cancelled == [0, 1, 2]
    assert "cancelled 2 jobs; with DETACH=1 they would continue" in capsys.readouterr().err


def test_local_jobs_share_cores(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(slurm, "available_cores", lambda: 16)
    of_cluster(cluster, tmp_path, 1, launcher="submitit_local", overrides=("hydra.launcher.timeout_min=7",))
    assert cluster.parameters["timeout_min"] == 7
    assert os.environ["OMP_NUM_THREADS"] == "4", "sixteen cores among four jobs"
    of_cluster(cluster, tmp_path, 1, launcher="submitit_local")
    assert cluster.parameters["timeout_min"] == slurm.LOCAL_MINUTES
    with pytest.raises(QgoftError, match=r"would start all 8 runs at once, and JOBS is 4"):
        of_cluster(cluster, tmp_path, 8, launcher="submitit_local", detach=True)


@pytest.mark.parametrize(
    ("given", "asked", "seen"), [("2,5", (), "2,5"), (None, (), None), ("2,5", ("hydra.launcher.gpus_per_node=1",), "0")]
)
def test_local_jobs_see_gpus(monkeypatch, given, asked, seen):
    """submitit's local executor sets the variable for its jobs, to an empty value if no GPUs are requested."""
    monkeypatch.setenv(slurm.GPUS, given or "")
    if given is None:
        monkeypatch.delenv(slurm.GPUS)
    job = slurm.Job(0, None, ExecutorOptions(1, launcher="submitit_local", overrides=asked), None)
    monkeypatch.setenv(slurm.GPUS, "0" if asked else "")
    monkeypatch.setattr(slurm, "execute_run", lambda *_: RunOutcome(0, "done", str(os.environ.get(slurm.GPUS))))
    assert job().reason == str(seen)


def test_ranks_restart_after_a_signal(monkeypatch):
    """submitit ignores SIGTERM; a run of several processes has saved its state and ended."""
    came = [RunOutcome(0, status, "") for status in ("done", "interrupted", "interrupted")]
    monkeypatch.setattr(slurm, "run_processes", lambda *_: came.pop())
    assert slurm.Job(0, None, ExecutorOptions(1, nproc=2), None)().status == "done"
    monkeypatch.setattr(slurm, "execute_run", lambda *_: RunOutcome(0, "interrupted", ""))
    assert slurm.Job(0, None, ExecutorOptions(1), None)().status == "interrupted"


def test_jobs_keep_the_sweeps_order(monkeypatch, tmp_path):
    """One seed of everything before the next, and one task of a shared training before the others, which would wait while holding GPUs."""
    asked = [
        (f"task=commonsense/{task}", f"method={method}", f"results.root={tmp_path}")
        for method in ("lora", "full")
        for task in ("boolq", "piqa")
    ]
    cells = planned_run.compose_runs(asked, ["0", "1"], 1)
    cluster = Cluster(monkeypatch)
    run_sweep(cells, [None] * len(cells), ExecutorOptions(len(cells), launcher="submitit_local", detach=True))
    every = [cells[number].settings for array in cluster.arrays for number in array]
    submitted = [(settings.seed, settings.method.name, settings.task.name) for settings in every]
    of_a_seed = [("lora", "boolq"), ("full", "boolq"), ("lora", "piqa"), ("full", "piqa")]
    assert submitted == [(seed, *names) for seed in (0, 1) for names in of_a_seed]
