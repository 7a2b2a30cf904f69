"""A process that is suspended past its lease and resumes must not change the run that another process has finished."""

import os
import signal
import time

import pytest

from qgoft import lease as ledger
from qgoft.config.compose import compose_settings
from qgoft.lease import Lease, LeaseHeld, LeaseLost
from qgoft.pocket.data import pocket_files
from qgoft.records import find_records, read_record
from qgoft.run_id import identify
from qgoft.train import progress as progress_module
from qgoft.train import run as run_module
from qgoft.train.run import run
from tests.fault_injection.runs import write_rows

LOST = 7


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    for split in ("train", "validation", "test"):
        write_rows(pocket_files("glue", "stsb") / f"{split}.parquet", directory / "stsb" / f"{split}.parquet")
    return directory


def settings(root, rows):
    words = ["train.max_steps=6", "train.num_evals=2", "results.checkpoint_interval=0"]
    return compose_settings([f"results.root={root}", "task=glue/stsb", "data.source=hub", f"data.root={rows}", *words])


def stop_here(function, *, calls=1, before=True):
    """Wrap a function so that the process suspends itself at one of its calls."""
    count = [0]

    def wrapped(*arguments, **keywords):
        count[0] += 1
        if count[0] == calls and before:
            os.kill(os.getpid(), signal.SIGSTOP)
        result = function(*arguments, **keywords)
        if count[0] == calls and not before:
            os.kill(os.getpid(), signal.SIGSTOP)
        return result

    return wrapped


# Moment of the suspension -> wrapped function. publish() renames the files one by one, the record last.
MOMENTS = {
    "start": (run_module, "prepare", {}),
    "first step": (progress_module.Tracker, "log", {"calls": 3}),
    "last step": (progress_module.Tracker, "log", {"calls": 9}),
    "adapter": (run_module, "save_adapter", {}),
    "predictions": (run_module, "_write_predictions", {}),
    "record": (Lease, "publish", {}),
    "first rename": (Lease, "_rename", {"calls": 2}),
    "last rename": (Lease, "_rename", {"calls": 4}),
    "published": (Lease, "publish", {"before": False}),
}


def on_another_host(name):
    def machine():
        return {"host": name, "space": name}

    return machine


def snapshot(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file() and not path.match("lease.*")}


@pytest.mark.parametrize("moment", MOMENTS)
def test_suspended_owner_changes_nothing(tmp_path, rows, monkeypatch, moment):
    monkeypatch.setattr(Lease.__init__, "__kwdefaults__", {"heartbeat_interval": 0.05, "lease_duration": 0.4, "acquire_timeout": 0.0})
    s = settings(tmp_path, rows)
    place, name, how = MOMENTS[moment]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ledger.this_machine = on_another_host("one")
            setattr(place, name, stop_here(getattr(place, name), **how))
            code = 0 if run(s)["status"] == "done" else 2
        except LeaseLost:
            code = LOST
        finally:
            os._exit(code)
    try:
        _, state = os.waitpid(child, os.WUNTRACED)
        assert os.WIFSTOPPED(state), "the process ended before the moment came"
        monkeypatch.setattr(ledger, "this_machine", on_another_host("two"))
        directory = identify(s).directory
        record = run(s, acquire_timeout=20)
        assert record["status"] == "done"
        before = snapshot(directory)
        os.kill(child, signal.SIGCONT)
        began = time.monotonic()
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            assert time.monotonic() - began < 60
            time.sleep(0.01)
        child = 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert os.WEXITSTATUS(ended[1]) == (0 if moment == "published" else LOST)
    after = snapshot(directory)
    assert {path: content for path, content in after.items() if not path.parts[0].startswith("attempt-")} == before
    assert not find_records(tmp_path).problems
    assert read_record(directory / "record.json")["finished"] == record["finished"]


def test_two_owners_keep_their_files(tmp_path):
    with Lease(tmp_path, heartbeat_interval=3600) as old:
        (old.workspace / "history.jsonl").write_text("one")
        with pytest.raises(LeaseHeld), Lease(tmp_path, lease_duration=0.05):
            pass
        time.sleep(0.1)
        with Lease(tmp_path, lease_duration=0.05) as new:
            assert (new.workspace / "history.jsonl").read_text() == "one"
            old.workspace.mkdir()  # as a library that creates missing directories does
            (old.workspace / "history.jsonl").write_text("two")
            for write in (old.assert_held, old.adopt, old.publish):
                with pytest.raises(LeaseLost):
                    write()
            old.__exit__(None, None, None)
            new.publish()
            assert (tmp_path / "history.jsonl").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir() if path != old.workspace] == ["history.jsonl"]


def test_owner_suspended_after_publishing(tmp_path, monkeypatch):
    """The run was interrupted, so the next owner has moved the published files into its own workspace."""
    with Lease(tmp_path, heartbeat_interval=3600) as old:
        (old.workspace / "history.jsonl").write_text("one")
        (old.workspace / "checkpoint").mkdir()
        new = Lease(tmp_path, lease_duration=0.05)
        with pytest.raises(LeaseHeld):
            new.__enter__()
        rename = Lease._rename

        def rename_and_sleep(self, source, target):
            rename(self, source, target)
            if self is old and target.name == "history.jsonl":  # the last of its files
                time.sleep(0.1)
                new.__enter__()
                new.adopt()

        monkeypatch.setattr(Lease, "_rename", rename_and_sleep)
        old.publish(discard=("checkpoint",))
        with pytest.raises(LeaseLost):
            old.assert_held()
        assert (new.workspace / "history.jsonl").read_text() == "one"
        new.assert_held()
        new.__exit__(None, None, None)


def test_lease_on_a_full_disk(tmp_path, monkeypatch):
    """An empty file would look like the lease of another machine for two minutes."""
    monkeypatch.setattr(Lease, "_content", lambda self: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"), Lease(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
