"""Leases: one process at a time executes a run, and the run of a dead process is acquired."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

from qgoft.config.compose import compose_settings
from qgoft.lease import Lease, LeaseHeld, LeaseLost, this_machine
from qgoft.records import write_record
from qgoft.run_id import RunId
from qgoft.tasks import sources
from qgoft.tasks.sources import DataFiles, ModelFiles
from tests.records.test_records import RECORD


def foreign(directory, *, beats=0, number=0):
    """Write the lease of another machine, whose processes cannot be probed."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"token": "theirs", "host": "elsewhere", "pid": 1, "beats": beats}
    (directory / f"lease.{number}.json").write_text(json.dumps(content) + "\n")


def test_lease_names_its_owner(tmp_path):
    with Lease(tmp_path / "run"):
        with pytest.raises(LeaseHeld, match=f"process {os.getpid()} on "), Lease(tmp_path / "run"):
            pass
        assert f"process {os.getpid()}" in Lease(tmp_path / "run").owner()
    assert Lease(tmp_path / "run").owner() is None
    assert not list((tmp_path / "run").iterdir())


def test_lease_of_a_dead_local_process(tmp_path):
    program = f"import os; from qgoft.lease import Lease; from pathlib import Path; Lease(Path({str(tmp_path)!r})).__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 9
    assert list(tmp_path.glob("lease.*.json"))
    with Lease(tmp_path) as lease:
        lease.assert_held()
        assert [path.name for path in tmp_path.glob("lease.*.json")] == ["lease.1.json"]


def test_lease_after_two_dead_owners(tmp_path):
    """One was killed while acquiring from the other, so both files remain."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    content = json.dumps({"token": "dead", **this_machine(), "pid": gone.pid, "beats": 0})
    for number in (0, 1):
        (tmp_path / f"lease.{number}.json").write_text(content)
    with Lease(tmp_path) as lease:
        lease.assert_held()
        assert [path.name for path in tmp_path.glob("lease.*.json")] == ["lease.2.json"]


def test_lease_of_another_machine_expires(tmp_path):
    foreign(tmp_path)
    with pytest.raises(LeaseHeld), Lease(tmp_path, lease_duration=0.2):
        pass
    time.sleep(0.1)
    foreign(tmp_path, beats=1)  # a heartbeat: waiting starts again
    with pytest.raises(LeaseHeld, match="process 1 on elsewhere"), Lease(tmp_path, lease_duration=0.2):
        pass
    time.sleep(0.3)
    with Lease(tmp_path, lease_duration=0.2) as lease:
        lease.assert_held()


def test_lease_acquire_timeout(tmp_path):
    """A new process, such as the same command on another node, must look twice."""
    foreign(tmp_path)
    with Lease(tmp_path, lease_duration=0.3, heartbeat_interval=0.05, acquire_timeout=2) as lease:
        lease.assert_held()
    foreign(tmp_path, number=5)
    signs = threading.Timer(0.2, foreign, (tmp_path,), {"beats": 1, "number": 5})
    signs.start()
    began = time.monotonic()
    with (
        pytest.raises(LeaseHeld, match="process 1 on elsewhere"),
        Lease(tmp_path, lease_duration=30, heartbeat_interval=0.05, acquire_timeout=30),
    ):
        pass
    assert time.monotonic() - began < 10, "a heartbeat ends the waiting"
    signs.join()


def test_lease_of_another_container(tmp_path, monkeypatch):
    """Containers of one machine may share its host name, and each numbers its processes from 1."""
    content = {"token": "theirs", **this_machine(), "pid": 2**22 + 1, "beats": 0}
    (tmp_path / "lease.0.json").write_text(json.dumps({**content, "space": "another boot pid:[1]"}))
    assert Lease(tmp_path).owner() is not None
    (tmp_path / "lease.0.json").write_text(json.dumps(content))
    assert Lease(tmp_path).owner() is None, "no such process here"


def test_heartbeat_survives_an_io_error(tmp_path, monkeypatch):
    with Lease(tmp_path, heartbeat_interval=0.05) as lease:
        look, bad = lease._files, [OSError(116, "stale file handle")]
        monkeypatch.setattr(lease, "_files", lambda: look() if not bad else (_ for _ in ()).throw(bad.pop()))
        before = lease.heartbeat_count
        time.sleep(0.4)
        assert not bad
        assert lease.heartbeat_count > before
        assert not lease.is_lost


def test_lease_age_uses_the_observers_clock(tmp_path):
    """A file with a time of yesterday, or of tomorrow, is alive as long as it changes."""
    foreign(tmp_path)
    for moment in (0, time.time() + 86400):
        os.utime(tmp_path / "lease.0.json", (moment, moment))
        with pytest.raises(LeaseHeld), Lease(tmp_path, lease_duration=5):
            pass


def test_lease_lost_is_reported(tmp_path):
    with Lease(tmp_path, heartbeat_interval=0.05) as lease:
        foreign(tmp_path, number=1)
        time.sleep(0.2)
        assert lease.is_lost
        with pytest.raises(LeaseLost, match="acquired this run after the lease of this one expired"):
            lease.assert_held()
    assert (tmp_path / "lease.1.json").is_file(), "the other's lease is left alone"


def test_heartbeat_changes_the_file(tmp_path):
    with Lease(tmp_path, heartbeat_interval=0.05):
        before = (tmp_path / "lease.0.json").read_text()
        time.sleep(0.3)
        assert (tmp_path / "lease.0.json").read_text() != before


def _work(directory, out, barrier):
    barrier.wait()
    for _ in range(200):
        try:
            with Lease(directory):
                with open(out, "a") as file:
                    file.write("begin\n")
                time.sleep(0.002)
                with open(out, "a") as file:
                    file.write("end\n")
                return
        except LeaseHeld:
            time.sleep(0.003)
    raise AssertionError("never got the lease")


def test_lease_serialises_eight_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    workers = [context.Process(target=_work, args=(tmp_path / "run", tmp_path / "out", barrier)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 8
    lines = (tmp_path / "out").read_text().split()
    assert lines == ["begin", "end"] * 8


def test_expired_lease_is_acquired_once(tmp_path):
    winners = 0
    for turn in range(10):
        directory = tmp_path / str(turn)
        foreign(directory)
        Lease(directory, lease_duration=0.1).owner()  # seen once
        time.sleep(0.11)
        inside, most, wins = [], [], []

        def take(directory=directory, inside=inside, most=most, wins=wins):
            try:
                with Lease(directory, lease_duration=0.1):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.005)
                    inside.pop()
                    wins.append(1)
            except LeaseHeld:
                pass

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most, default=0) <= 1
        winners += len(wins)
    assert winners, "now and then all step back, but not always"


def test_status_of_a_silent_remote_run(tmp_path):
    run_id = RunId(RECORD["key"], tmp_path, DataFiles("pocket", None, "f", {}), ModelFiles("pocket", None, "m", tmp_path))
    lease = tmp_path / "lease.0.json"
    lease.write_text(json.dumps({"host": "node7", "pid": 12, "beats": 3}))
    assert run_id.state() == ("running", "process 12 on node7")
    hours_ago = time.time() - 3 * 3600
    os.utime(lease, (hours_ago, hours_ago))
    assert run_id.state() == ("planned", "started by process 12 on node7; last heartbeat 3.0 h ago")


def test_rank_failure_is_popped_once(tmp_path):
    run_id = RunId(RECORD["key"], tmp_path, DataFiles("pocket", None, "f", {}), ModelFiles("pocket", None, "m", tmp_path))
    assert run_id.pop_rank_failure() is None
    run_id.write_rank_failure(3, "failed", "connection closed")
    run_id.write_rank_failure(1, "oom", "no memory")
    (tmp_path / "failure.2.json").write_text('{"status": "oo')
    assert run_id.pop_rank_failure() == ("oom", "process 1: no memory")
    assert run_id.pop_rank_failure() is None


def test_run_status(tmp_path):
    run_id = RunId(RECORD["key"], tmp_path, DataFiles("pocket", None, "f", {}), ModelFiles("pocket", None, "m", tmp_path))
    assert run_id.state() == ("planned", "")
    with Lease(tmp_path):
        assert run_id.state()[0] == "running"
    (tmp_path / "record.json").write_text('{"key": "cut sh')
    assert run_id.state()[0] == "corrupt"
    assert not run_id.is_done, "a torn record is made again"
    write_record(tmp_path, {**RECORD, "status": "oom", "reason": "too large"})
    assert run_id.state() == ("oom", "too large")
    write_record(tmp_path, RECORD)
    assert run_id.state() == ("done", "")


def test_key_of_a_hub_snapshot(tmp_path, monkeypatch):
    """Another tokenizer next to the same weights is another key; a file downloaded by another program is not."""
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(sources, "_download", lambda *_: tmp_path)
    model = compose_settings(["protocol=goft_icml24", "method=qgoft", "task=glue/mrpc"]).model
    before = sources.resolve_model(model).files
    (tmp_path / "chat_template.jinja").write_text("of another program")
    assert sources.resolve_model(model).files == before
    (tmp_path / "tokenizer.json").write_text("another one")
    assert sources.resolve_model(model).files not in (before, None)
