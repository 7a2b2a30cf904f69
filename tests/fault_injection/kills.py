"""Sweeps that are killed at random moments, and the cost of checkpoints."""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from qgoft.config.compose import compose_settings
from qgoft.config.locations import REPOSITORY
from qgoft.errors import QgoftError
from qgoft.lease import ATTEMPT_GLOB
from qgoft.records import find_records, read_curve, read_record
from qgoft.run_id import checkpoint_step, identify
from tests.fault_injection.runs import clear, execute, outcome


def kill_sweeps(arguments: argparse.Namespace) -> int:
    """A sweep that is killed at random moments, and one that is not."""
    rng = random.Random(arguments.seed)
    clear(arguments.directory)
    # A single run would finish before a checkpoint is due.
    overrides = ["glue", "--method", arguments.method, "--jobs", "2", "results.checkpoint_interval=1", *arguments.overrides]
    if sweep(overrides, arguments.directory / "undisturbed").wait():
        raise QgoftError(f"the undisturbed sweep failed; see {arguments.directory / 'undisturbed.log'}")
    began, kills, starts = time.monotonic(), Counter[str](), 0
    killed = arguments.directory / "killed"
    while kills.total() < arguments.number:
        process = sweep(overrides, killed)
        starts += 1
        try:
            process.wait(timeout=rng.uniform(4, 16))
        except subprocess.TimeoutExpired:
            kills[interrupt_sweep(process, rng)] += 1
            continue
        if kills.total() < arguments.number:  # it was done: start again
            check_same(arguments.directory / "undisturbed", killed)
            shutil.rmtree(killed)
    if sweep(overrides, killed).wait():
        raise QgoftError(f"the sweep did not finish; see {arguments.directory / 'killed.log'}")
    resumed = sum("resumed" in record["provenance"] for record in find_records(killed / "runs").records)
    check_same(arguments.directory / "undisturbed", killed)
    kinds = ", ".join(f"{number} of {name}" for name, number in sorted(kills.items()))
    print(f"seed {arguments.seed}: {kills.total()} kills ({kinds}) in {time.monotonic() - began:.0f} s, {starts} starts")
    print(f"the tables are equal to the byte, and all records except their times; {resumed} of the last runs were resumed")
    return 0


def measure_costs(arguments: argparse.Namespace) -> int:
    """Measure a checkpoint per second (the default is one in thirty) of at most 3% of the time; then kill a run after its first one and
    restart it."""
    from qgoft.train.checkpoint import CheckpointManager
    from qgoft.train.quiet import quiet_libraries

    quiet_libraries()
    spent: list[float] = []
    save = CheckpointManager.save

    def timed(*overrides: Any) -> bool:
        began = time.monotonic()
        try:
            return save(*overrides)
        finally:
            spent.append(time.monotonic() - began)

    clear(arguments.directory)
    overrides = [f"method={arguments.method}", "task=glue/rte", "results.checkpoint_interval=1", *arguments.overrides]
    with mock.patch.object(CheckpointManager, "save", timed):
        for number in range(arguments.number):
            spent.clear()
            settings = compose_settings([*overrides, f"results.root={arguments.directory / str(number)}"])
            execute(settings)
            seconds = read_record(identify(settings).directory / "record.json")["cost"]["seconds"]
            print(f"{len(spent)} checkpoints in {seconds:.1f} s took {sum(spent):.3f} s, {100 * sum(spent) / seconds:.2f}%", flush=True)
    for number in range(arguments.number):
        root = arguments.directory / f"killed{number}"
        run_id = identify(compose_settings([*overrides, f"results.root={root}"]))
        process = single_run([*overrides, f"results.root={root}"])
        while not run_id.checkpoints():
            if process.poll() is not None:
                raise QgoftError("a run ended before its first checkpoint")
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        last = checkpoint_step(run_id.checkpoints()[-1])
        began = time.monotonic()
        process = single_run([*overrides, f"results.root={root}"])
        # The new attempt rewrites the curve from its checkpoint, and then resumes.
        while max((step for place in run_id.directory.glob(ATTEMPT_GLOB) for step, _ in read_curve(place, "loss")), default=0) <= last:
            if process.poll() is not None:
                raise QgoftError("the resumed run ended early")
            time.sleep(0.01)
        print(f"from the command to step {last + 1}: {time.monotonic() - began:.1f} s", flush=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return 0


def single_run(overrides: list[str]) -> "subprocess.Popen[bytes]":
    """Start one run by its command, in its own process group."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *overrides]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=REPOSITORY, start_new_session=True)


def sweep(overrides: list[str], root: Path) -> "subprocess.Popen[bytes]":
    """Start a command in its own process group, so that all of it can be killed."""
    with open(root.with_suffix(".log"), "a") as log:
        command = [sys.executable, str(REPOSITORY / "scripts" / "sweep.py"), *overrides, f"results.root={root}"]
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY, start_new_session=True)


def interrupt_sweep(process: "subprocess.Popen[bytes]", rng: random.Random) -> str:
    """Kill the content group or one worker, or send SIGTERM. Return which."""
    kind = rng.choice(["kill of all", "kill of a worker", "SIGTERM"])
    if kind == "kill of a worker":
        workers = [int(pid) for pid in children(process.pid)]
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            time.sleep(2)
    elif kind == "SIGTERM":
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise QgoftError("the sweep did not end within a minute of SIGTERM") from None
        return kind
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return kind


def children(pid: int) -> list[str]:
    """Return the processes that this one has started."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def check_same(one: Path, two: Path) -> None:
    """Compare tables and records; raises QgoftError at the first that differs."""
    for path in sorted((one / "tables").iterdir()):
        other = two / "tables" / path.name
        if not other.is_file() or path.read_bytes() != other.read_bytes():
            raise QgoftError(f"{path} and {other} differ")
    for path in sorted((one / "runs").iterdir()):
        if outcome(path) != outcome(two / "runs" / path.name):
            raise QgoftError(f"the run {path.name} differs below {two}")
