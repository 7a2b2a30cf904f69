"""A run that is interrupted anywhere resumes from its checkpoint to the same bits."""

import errno
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qgoft import records
from qgoft.config.compose import compose_settings
from qgoft.methods.registry import method_names
from qgoft.ops.givens.dispatch import choose_backend
from qgoft.pocket.data import pocket_files
from qgoft.records import provenance
from qgoft.run_id import identify
from qgoft.tasks import evaluate as evaluate_module
from qgoft.train import checkpoint as checkpoint_module
from qgoft.train import loop as fit_module
from qgoft.train import progress as progress_module
from qgoft.train import run as run_module
from qgoft.train import training_state as state_module
from qgoft.train.checkpoint import CheckpointManager
from qgoft.train.interrupts import SignalHandler, Stopped
from qgoft.train.loop import LoopHooks, fit
from qgoft.train.run import prepare, run, train_loader
from tests._processes import join_run, run_in_two
from tests.fault_injection.runs import write_rows

REPOSITORY = Path(__file__).resolve().parents[2]
# Dropout everywhere, two evaluations, the second at the end.
SHORT = [
    "train.max_steps=6",
    "train.num_evals=2",
    "train.hidden_dropout=0.1",
    "train.classifier_dropout=0.1",
    "results.checkpoint_interval=0",
]


@pytest.fixture(scope="module", autouse=True)
def rows(tmp_path_factory):
    """Runs of a second: 32 rows of each split, in a directory that this module's settings name."""
    directory = tmp_path_factory.mktemp("rows")
    for split in ("train", "validation", "test"):
        write_rows(pocket_files("glue", "stsb") / f"{split}.parquet", directory / "stsb" / f"{split}.parquet")
    WORDS[:] = ["task=glue/stsb", "data.source=hub", f"data.root={directory}", *SHORT]


def settings(root, *words):
    return compose_settings([f"results.root={root}", *WORDS, *words])


WORDS = []


def remains(s):
    """Return all files of a run that must be bit-equal, without its times."""
    directory = identify(s).directory
    record = records.read_record(directory / "record.json")
    for name in ("cost", "started", "finished"):
        del record[name]
    record["provenance"].pop("resumed", None)
    weights = {path.name: load_file(path) for path in sorted((directory / "adapter").glob("*.safetensors"))}
    predictions = gzip.decompress((directory / "predictions.jsonl.gz").read_bytes())
    return record, weights, predictions, (directory / "history.jsonl").read_text()


def assert_same(one, two):
    for a, b in zip(one[1].values(), two[1].values(), strict=True):
        assert {name: tensor.tolist() for name, tensor in a.items()} == {name: tensor.tolist() for name, tensor in b.items()}
    assert one[0] == two[0]
    assert one[2:] == two[2:]


class Killed(BaseException):
    """Ends a run as SIGKILL does: none of this project's handlers sees it."""


def break_off(monkeypatch, s, step, kind="loss"):
    """Execute the run up to a line of its log."""
    log = progress_module.Tracker.log

    def cut(self, line):
        if line["step"] == step and kind in line:
            raise Killed
        log(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(progress_module.Tracker, "log", cut)
        with pytest.raises(Killed):
            run(s)
    assert not (identify(s).directory / "record.json").exists()


def test_loggers_of_a_resumed_run_are_complete(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from wandb import Run

    told, log = {}, Run.log

    def spy(self, data, step):
        told.setdefault(self.id, []).append((step, data))
        log(self, data, step=step)

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(Run, "log", spy)
    s = settings(tmp_path, "wandb.mode=offline", "tensorboard.enabled=true")
    break_off(monkeypatch, s, 5)
    run(s)
    shown = EventAccumulator(str(identify(s).directory / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3, 4, 5, 6], "each step once"
    first, second = told.values()
    assert [step for step, data in first if "loss" in data] == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (identify(s).directory / "history.jsonl").read_text().splitlines()]
    assert second == [(line.pop("step"), {name: value for name, value in line.items() if value is not None}) for line in lines]
    assert [step for step, data in second if "loss" in data] == [1, 2, 3, 4, 5, 6]


def test_resume_keeps_peak_memory(tmp_path, monkeypatch):
    s = settings(tmp_path)
    peak = 2**50
    monkeypatch.setattr(state_module, "peak_memory", lambda: peak)
    break_off(monkeypatch, s, 5)
    peak = 1
    assert run(s)["cost"]["peak_memory_bytes"] == 2**50


def result(s, directory, last=None):
    """Train, up to a step if given. Return the trained parameters, the history, and the step of resumption."""
    prepared = prepare(s, identify(s))
    lines = []

    def log(line):
        if line["step"] == last:
            raise Killed
        lines.append(line)

    def rewind(kept):
        lines[:] = [json.loads(line) for line in kept]

    def written():
        return [json.dumps(line) for line in lines]

    checkpoints = CheckpointManager(directory, prepared.accelerator, every=0, origin={}, hardware={}, lines=written, rewind=rewind)
    # A score that uses random numbers, as an evaluation may, and that falls: the best before the interruption must survive it.
    hooks = LoopHooks(selection_score=lambda: float(torch.rand(())) - lines[-1]["step"], log=log, checkpoints=checkpoints)
    result = fit(prepared.adapted, train_loader(prepared), s, prepared.accelerator, hooks)
    assert result.steps == s.train.max_steps
    return {n: p.detach().clone() for n, p in prepared.adapted.model.named_parameters() if p.requires_grad}, lines, checkpoints.resumed


def assert_fit_goes_on(tmp_path, s, breaks):
    """Interrupt while the steps of `breaks` are logged, each time after the step before was saved."""
    whole, history, _ = result(s, tmp_path / "whole")
    for last in breaks:
        with pytest.raises(Killed):
            result(s, tmp_path / "broken", last)
    trained, lines, resumed = result(s, tmp_path / "broken")
    assert [part.step for part in resumed] == [last - 1 for last in breaks]
    assert lines == history
    assert trained.keys() == whole.keys()
    assert all(torch.equal(trained[name], value) for name, value in whole.items())


ALL_METHODS = [name for name in method_names() if name not in ("base", "linear")]


@pytest.mark.parametrize("method", [*ALL_METHODS, "linear"])
def test_resume_is_bit_exact(tmp_path, method):
    """For AdaLoRA, while its budget falls."""
    s = settings(tmp_path, f"method={method}", "train.max_steps=6", "train.num_evals=3", "train.batch_size=4")
    assert_fit_goes_on(tmp_path, s, [4])


DECODER = ["data.source=pocket", "data.root=null", "train.hidden_dropout=null", "train.classifier_dropout=null", "method=lora"]


@pytest.mark.parametrize(
    "more",
    [(), ("train.gradient_accumulation_steps=2", "train.drop_last=true"), ("task=math/gsm8k", "train.group_by_length=true", *DECODER)],
)
def test_resume_keeps_the_row_order(tmp_path, more):
    """At the start of an epoch, within it, and at its end; several times in one run."""
    s = settings(tmp_path, "train.max_steps=9", "train.num_evals=9", "train.batch_size=10", *more)
    assert_fit_goes_on(tmp_path, s, [2, 5, 9])


# --- complete runs --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return one undisturbed run."""
    s = settings(tmp_path_factory.mktemp("whole"))
    run(s)
    return remains(s)


def wait_for(directory, pattern, process):
    began = time.monotonic()
    while not list(directory.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - began < 120
        time.sleep(0.005)


def test_resume_after_kill(tmp_path, whole):
    """SIGKILL at some point after the first checkpoint."""
    s = settings(tmp_path)
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), f"results.root={tmp_path}", *WORDS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(identify(s).directory, "attempt-*/checkpoint/step-*.safetensors", process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (identify(s).directory / "record.json").exists()
    run(s)
    assert_same(remains(s), whole)


@pytest.mark.parametrize("moment", ["step", "scoring", "reporting"])
def test_resume_after_signal_at_any_time(tmp_path, whole, monkeypatch, moment, capfd):
    """During a step it waits for the end of the step; evaluation and reporting are interrupted."""
    s = settings(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        if moment == "step":
            patch.setattr(fit_module, "backward", signalling(fit_module.backward, 4))
        else:
            patch.setattr(run_module, "merged_for_eval", signalling(run_module.merged_for_eval, {"scoring": 2, "reporting": 3}[moment]))
        with pytest.raises(Stopped) as stop:
            run(s)
    assert stop.value.number == signal.SIGTERM
    record = records.read_record(identify(s).directory / "record.json")
    assert record["status"] == "interrupted"
    assert record["reason"] == str(stop.value)
    last = {"step": 4, "scoring": 6, "reporting": 6}[moment]
    assert f"after step {last}; the same" in record["reason"] or moment == "reporting"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    record = run(s)
    assert f"resuming after step {last}" in capfd.readouterr().err
    assert record["provenance"]["resumed"][0]["step"] == last
    assert_same(remains(s), whole)


def signalling(function, *nth, number=signal.SIGTERM):
    """Sends a signal to this process in the nth call."""
    calls = itertools.count(1)

    def call(*arguments):
        if next(calls) in nth:
            os.kill(os.getpid(), number)
        return function(*arguments)

    return call


@pytest.fixture
def ctrl_c():
    """As in a terminal; in the background of a shell, a process ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ignored_signals_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with SignalHandler() as signals, signals.defer():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.pending is None


@pytest.mark.usefixtures("ctrl_c")
def test_second_ctrl_c_ends_immediately():
    with SignalHandler() as signals, signals.defer():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same signal, forwarded by the parent
        assert signals.pending == signal.SIGINT
        signals._received_at -= 10
        with pytest.raises(Stopped, match="interrupted by Ctrl-C"):
            os.kill(os.getpid(), signal.SIGINT)


def test_previous_handler_runs_after_saving():
    """As submitit does, which requeues the job and exits. If the handler returns, the run continues."""
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        with SignalHandler() as signals, signals.defer():
            os.kill(os.getpid(), signal.SIGUSR2)
            assert not seen
            signals.raise_pending(" after step 3")
            assert seen == [signal.SIGUSR2]
            assert signals.pending is None
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize("moment", ["step", "scoring"])
def test_submitit_handler_runs_after_saving(tmp_path, whole, monkeypatch, moment):
    """It requeues the job and exits; with a handler that returns, the run continues to the same result."""
    s, seen = settings(tmp_path), []

    def take(number, frame):
        seen.append(identify(s).checkpoints()[-1].name)
        if len(seen) == 2:
            sys.exit(-1)

    before = signal.signal(signal.SIGUSR2, take)
    target, name, calls = {"step": (fit_module, "backward", (4, 6)), "scoring": (run_module, "merged_for_eval", (1, 3))}[moment]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, signalling(getattr(target, name), *calls, number=signal.SIGUSR2))
            with pytest.raises(SystemExit):
                run(s)
    finally:
        signal.signal(signal.SIGUSR2, before)
    steps = {"step": (4, 6), "scoring": (3, 6)}[moment]
    assert seen == [f"step-{step:08}.safetensors" for step in steps]
    assert not (identify(s).directory / "record.json").exists()
    run(s)
    assert_same(remains(s), whole)


def test_damaged_checkpoint_uses_the_previous(tmp_path, whole, monkeypatch, capfd):
    s = settings(tmp_path)
    break_off(monkeypatch, s, 5)
    older, newest = identify(s).checkpoints()
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    (newest.parent / "step-00000005.safetensors").write_bytes(older.read_bytes()[:1000])
    (newest.parent / "step-00000004.safetensorsabc.part").write_bytes(b"torn")
    record = run(s)
    told = capfd.readouterr().err
    assert "step-00000005.safetensors is corrupt and not used" in told
    assert "step-00000004.safetensors is corrupt and not used (CorruptCheckpoint: its checksum does not match)" in told
    assert record["provenance"]["resumed"][0]["step"] == 3
    assert_same(remains(s), whole)


def test_checkpoint_of_other_code(tmp_path, whole, monkeypatch, capfd):
    s = settings(tmp_path)
    break_off(monkeypatch, s, 3)
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "code_checksum", lambda: "another")
        assert "resumed" not in run(s)["provenance"]
    assert "was written with different code; the run starts again" in capfd.readouterr().err
    assert_same(remains(s), whole)


def test_checkpoints_of_other_code_are_replaced(tmp_path, whole, monkeypatch, capfd):
    """Interrupted late, restarted with other code, interrupted early: the few steps of the new code count, not the many of the old."""
    s = settings(tmp_path)
    break_off(monkeypatch, s, 6)
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "code_checksum", lambda: "another")
        break_off(monkeypatch, s, 3)
        assert run(s)["provenance"]["resumed"][0]["step"] == 2
    assert_same(remains(s), whole)


def test_resume_states_other_hardware(tmp_path, monkeypatch):
    s = settings(tmp_path)
    own = {**run_module.hardware(), "givens": choose_backend(torch.zeros(1))}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "hardware", lambda model: {**own, "threads": 64})
        break_off(monkeypatch, s, 3)
    record = run(s)
    assert record["provenance"]["resumed"] == [{"step": 2, "hardware": {**own, "threads": 64}}]
    assert record["provenance"]["hardware"] == own


def test_full_disk_skips_the_checkpoint(tmp_path, whole, monkeypatch, capfd):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_module, "_write", full)
    s = settings(tmp_path)
    run(s)
    assert (
        "no checkpoint could be written (OSError: [Errno 28] No space left on device); the run continues without it"
        in capfd.readouterr().err
    )
    assert_same(remains(s), whole)


def test_checkpoints_disabled(tmp_path, whole, monkeypatch):
    s = settings(tmp_path, "results.checkpoint_interval=null")
    break_off(monkeypatch, s, 5)
    assert not (identify(s).directory / "checkpoint").exists()
    run(s)
    assert remains(s)[2:] == whole[2:]


def test_checkpoint_time_is_limited(tmp_path):
    """However long a write takes, the next one waits until writing is 3% of the time."""
    prepared = prepare(settings(tmp_path), identify(settings(tmp_path)))
    checkpoints = CheckpointManager(tmp_path, prepared.accelerator, every=1.0, origin={}, hardware={})
    checkpoints._last = time.monotonic() - 20
    assert checkpoints.is_due
    checkpoints.write_seconds = 1.0
    assert not checkpoints.is_due
    checkpoints._last -= 20
    assert checkpoints.is_due


def test_signal_during_evaluation_keeps_dropout(tmp_path, monkeypatch):
    """submitit ignores SIGTERM: the run continues to train as before."""
    s, seen, modes = settings(tmp_path), [], []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    subset, backward = evaluate_module.Subset, fit_module.backward

    def rows(*arguments):
        if not seen:
            os.kill(os.getpid(), signal.SIGUSR2)
        return subset(*arguments)

    def noting(accelerator, model, *rest):
        modes.append(model.training)
        backward(accelerator, model, *rest)

    monkeypatch.setattr(evaluate_module, "Subset", rows)
    monkeypatch.setattr(fit_module, "backward", noting)
    try:
        assert run(s)["status"] == "done"
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen
    assert modes == [True] * s.train.max_steps


def test_shared_training_resumes_for_another_task(tmp_path, monkeypatch):
    words = [*SHORT, *DECODER]
    first, other = ([f"task=commonsense/{task}", *words, f"results.root={tmp_path / 'broken'}"] for task in ("boolq", "piqa"))
    break_off(monkeypatch, compose_settings(first), 5)
    record = run(compose_settings(other))
    assert record["provenance"]["training"]["shared"] is False
    assert record["provenance"]["resumed"][0]["step"] == 4
    assert not list(tmp_path.rglob("checkpoint"))
    third = run(compose_settings([*other, "task=commonsense/siqa"]))["provenance"]
    assert third["training"]["shared"] is True
    by = third["training"]["by"]
    assert {name: by[name] for name in ("commit", "packages", "hardware")} == {
        n: record["provenance"][n] for n in ("commit", "packages", "hardware")
    }
    assert by["resumed"] == record["provenance"]["resumed"], "what was gone on with is said by all that use it"
    whole = compose_settings([*other, f"results.root={tmp_path / 'whole'}"])
    run(whole)
    assert_same(remains(compose_settings(other)), remains(whole))


def worker(rank, port, root, words):
    WORDS[:] = words
    join_run(rank, port)
    run(settings(root / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, settings(root / "broken"), 5)
    run(settings(root / "broken"))
    torch.distributed.barrier()
    os._exit(0)  # without destructors, see test_parallel_and_compiled.py


def test_resume_two_processes(tmp_path, monkeypatch, capfd):
    """Each rank has its own random states; one of them reports."""
    run_in_two(worker, tmp_path, WORDS)
    assert capfd.readouterr().err.count("resuming after step 4") == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    broken = settings(tmp_path / "broken")
    assert records.read_record(identify(broken).directory / "record.json")["provenance"]["resumed"][0]["step"] == 4
    assert_same(remains(broken), remains(settings(tmp_path / "whole")))
