"""Sweeps on this machine: order, killed workers, runs of several processes."""

import contextlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from qgoft.errors import QgoftError
from qgoft.sweep import executor, local, planned_run
from qgoft.sweep.executor import ExecutorOptions, RunOutcome, launch_command, run_processes
from qgoft.sweep.launch import run_sweep
from qgoft.sweep.schedule import schedule_order


def test_schedule_orders_by_seed(monkeypatch):
    asked = [(f"task={task}", f"method={method}") for method in ("qgoft", "lora") for task in ("math/gsm8k", "math/math")]
    cells = planned_run.compose_runs(asked, ["0", "1"], 1)
    order = schedule_order(dict(enumerate(cells)))
    assert [cell.settings.seed for _, cell in order] == [0] * 4 + [1] * 4
    assert [cell.settings.method.name for _, cell in order[:4]] == ["qgoft", "lora", "qgoft", "lora"]
    assert [cell.settings.task.name for _, cell in order[:4]] == ["gsm8k", "gsm8k", "math", "math"]


def test_torchrun_command():
    assert "--nproc_per_node=2" in launch_command(ExecutorOptions(1, nproc=2))
    assert any(word.endswith("fsdp2.yaml") for word in launch_command(ExecutorOptions(1, nproc=2, accelerate="fsdp2")))


@pytest.mark.slow
def test_unexpected_error_ends_only_its_run(monkeypatch, capsys):
    """Before a run has a record: a decomposition that does not converge, a parameter count that does not match, no memory for weights."""
    cells = planned_run.compose_runs([("task=glue/rte", "method=qgoft"), ("task=glue/cola", "method=qgoft")], ["0"], 1)
    run_ids = [SimpleNamespace(is_done=False, directory=Path("nowhere"), key=str(n)) for n in range(2)]

    def train(settings, words):
        if settings.task.name == "rte":
            raise RuntimeError("SVD did not converge")
        return {"status": "done", "reason": None}

    monkeypatch.setattr("qgoft.sweep.worker.train", train)
    (bad,) = run_sweep(cells, run_ids, ExecutorOptions(1))
    assert (bad.number, bad.status, bad.reason) == (0, "failed", "RuntimeError: SVD did not converge")
    assert "2 of 2 runs ended, 1 of them not done" in capsys.readouterr().err


def test_multiprocess_run_of_another_sweep(monkeypatch, tmp_path):
    cell = planned_run.compose_runs([("task=glue/rte", "method=qgoft")], ["0"], 1)[0]
    for state, status in ((("running", "process 8 on a"), "held"), (("done", ""), "done"), (("planned", ""), "refused")):
        monkeypatch.setattr(executor, "launch_command", lambda means: ["false"])
        run_id = SimpleNamespace(state=lambda state=state: state, directory=tmp_path, read=lambda: None, pop_rank_failure=lambda: None)
        assert run_processes(0, cell, run_id, ExecutorOptions(1, nproc=2)).status == status
    # Files of an earlier attempt do not count.
    old = {"status": "interrupted", "started": "yesterday"}
    left = [("oom", "process 1: no memory"), None]
    interrupted = ("interrupted", "interrupted by Ctrl-C")
    run_id = SimpleNamespace(state=lambda: interrupted, directory=tmp_path, read=lambda: old, pop_rank_failure=left.pop)
    outcome = run_processes(0, cell, run_id, ExecutorOptions(1, nproc=2))
    assert (outcome.status, outcome.reason) == ("refused", "it ended with exit code 1 and left no record; see above")
    outcome = run_processes(0, cell, run_id, ExecutorOptions(1, nproc=2))
    assert (outcome.status, outcome.reason) == ("oom", "process 1: no memory")
    monkeypatch.setattr(executor, "launch_command", lambda means: pytest.fail("started beside another one"))
    (tmp_path / "lease.0.json").write_text(json.dumps({"host": "elsewhere", "pid": 8}))
    assert run_processes(0, cell, run_id, ExecutorOptions(1, nproc=2)) == RunOutcome(0, "held", "process 8 on elsewhere")


class Marked:
    """A run that writes files instead of records."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()

    @property
    def is_done(self):
        return (self.directory / "done").is_file()


def sweep_of(monkeypatch, directories, execute_run, **means):
    """Sweep with two processes over runs that are a function of their number."""
    cells = planned_run.compose_runs([("task=glue/rte", "method=qgoft")], [str(n) for n in range(len(directories))], 1)
    monkeypatch.setattr(local, "execute_run", execute_run)
    return run_sweep(cells, directories, ExecutorOptions(2, **means))


def test_killed_runs_are_retried_one_by_one(monkeypatch, tmp_path, capsys):
    """The system kills a process for lack of memory, and the pool and all its running runs end."""
    marked = [Marked(tmp_path / str(n)) for n in range(3)]

    def execute_run(number, cell):
        import time

        from qgoft.sweep.executor import RunOutcome

        (tmp_path / str(number) / "lease.0.json").write_text("{}")
        while not (tmp_path / "0" / "lease.0.json").is_file() or not (tmp_path / "1" / "lease.0.json").is_file():
            time.sleep(0.01)
        if number == 1:
            os.kill(os.getpid(), 9)
        time.sleep(0.5)
        (tmp_path / str(number) / "done").touch()
        return RunOutcome(number, "done", "")

    (bad,) = sweep_of(monkeypatch, marked, execute_run)
    assert (bad.number, bad.status) == (1, "failed")
    assert "its worker was killed 2 times" in bad.reason
    assert [one.is_done for one in marked] == [True, False, True]
    assert capsys.readouterr().err.count("retrying the run") == 2


def test_dying_workers_end_the_sweep(monkeypatch, tmp_path):
    def execute_run(number, cell):

        os.kill(os.getpid(), 9)

    with pytest.raises(QgoftError, match=r"killed 2 times before any run started.*reduce JOBS"):
        sweep_of(monkeypatch, [Marked(tmp_path / str(n)) for n in range(2)], execute_run)


def test_failfast_interrupts_running_runs(monkeypatch, tmp_path):
    def execute_run(number, cell):

        from qgoft.sweep.executor import RunOutcome
        from qgoft.train.interrupts import SignalHandler

        (tmp_path / str(number) / "begun").touch()
        if number == 0:
            while not (tmp_path / "1" / "begun").is_file():
                time.sleep(0.01)
            return RunOutcome(0, "diverged", "a test")
        with contextlib.suppress(KeyboardInterrupt), SignalHandler() as signals, signals.defer():
            while signals.pending is None:
                time.sleep(0.01)
        return RunOutcome(number, "interrupted", "saved")

    found = {o.number: o.status for o in sweep_of(monkeypatch, [Marked(tmp_path / str(n)) for n in range(4)], execute_run, failfast=True)}
    assert (found[0], found[1], found[3]) == ("diverged", "interrupted", "planned")
    assert found[2] in ("interrupted", "planned")
