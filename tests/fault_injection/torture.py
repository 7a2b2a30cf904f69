#!/usr/bin/env python3
"""Whether anything can be lost, or come out wrong: random faults with a seed, and the results of undisturbed runs beside.

    python -m tests.fault_injection.torture faults --number 1000 --seed 0     short runs, each struck by faults in a process of its own, then gone on with
    python -m tests.fault_injection.torture kills --number 50 --seed 0        a pocket GLUE sweep, killed at random moments and begun again
    python -m tests.fault_injection.torture cost --number 3                   what checkpoints cost a pocket run, and how long it takes to go on

After every fault the run must have said what happened, no other record may have changed, and what it comes to when it is gone on with must be
what it came to undisturbed, to the bit.
"""

import argparse
import ctypes
import errno
import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from qgoft.cli import Parser, exit_code, run_cli
from qgoft.config.compose import compose_settings
from qgoft.config.locations import REPOSITORY
from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError
from qgoft.lease import ATTEMPTS, this_machine
from qgoft.pocket.data import pocket_files
from qgoft.records import canonical_json, find_records, read_curve, read_record
from qgoft.run_id import checkpoint_step, identify

TASKS, PICTURES, ROWS = ("rte", "stsb", "mrpc", "sst2"), "dtd", 32
METHODS = ("qgoft", "lora", "adalora", "full", "goft")
STEPS = 8
SHORT = (f"train.max_steps={STEPS}", "train.num_evals=2", "train.batch_size=4", "results.checkpoint_interval=0")
# What a record may tell differently when the same run is made again.
PARTS = ("record", "weights", "predictions", "history")  # of an outcome
STRUCK = "[struck]"
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000  # of Linux
OF_ITS_TIME = ("cost", "started", "finished")


# --- short runs --------------------------------------------------------------------------------------------------------------------------


def short_runs(root: Path, data: Path) -> list[RunSettings]:
    """Runs of a second: a few rows of pocket tasks, and a few pictures of one, in a directory."""
    for task in TASKS:
        for split in ("train", "validation", "test"):
            write_rows(pocket_files("glue", task) / f"{split}.parquet", data / task / f"{split}.parquet")
    write_pictures(pocket_files("vtab", PICTURES), data / PICTURES)
    texts = [[f"task=glue/{task}", f"method={method}", "train.hidden_dropout=0.1"] for task in TASKS for method in METHODS]
    images = [[f"task=vtab/{PICTURES}", f"method={method}"] for method in METHODS]
    return [
        compose_settings([*words, "data.source=hub", f"data.root={data}", f"results.root={root}", *SHORT]) for words in (*texts, *images)
    ]


def write_rows(source: Path, target: Path) -> None:
    import pyarrow.parquet

    target.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(source).slice(0, ROWS), target)


def write_pictures(source: Path, target: Path) -> None:
    """The layout of VTAB-1K's archive: files, and a list for each split."""
    import pyarrow.parquet

    (target / "images").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    for part, name in (("train", "train800"), ("train", "val200"), ("test", "test")):
        first = ROWS if name == "val200" else 0
        rows = pyarrow.parquet.read_table(source / f"{part}.parquet").slice(first, ROWS).to_pylist()
        for i, row in enumerate(rows):
            (target / "images" / f"{name}_{i}.png").write_bytes(row["image"]["bytes"])
        lines[name] = [f"images/{name}_{i}.png {row['label']}" for i, row in enumerate(rows)]
    for name, found in {**lines, "train800val200": lines["train800"] + lines["val200"]}.items():
        (target / f"{name}.txt").write_text("\n".join(found) + "\n")


@dataclass(frozen=True)
class Result:
    """What came of a run in a process of its own."""

    code: int  # of its end; negative: the signal that killed it
    told: str  # all that it printed

    @property
    def is_killed(self) -> bool:
        return self.code == -signal.SIGKILL


def in_child(work: Callable[[], None], log: Path) -> Result:
    """Do it in a copy of this process, so that it can die of it."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background of a shell
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115 - ends with the process
            work()
            code = 0
        except QgoftError as error:
            os.write(2, f"qgoft: {error}\n".encode())
            code = 2
        except KeyboardInterrupt as stop:
            code = exit_code(stop)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return Result(os.waitstatus_to_exitcode(status), log.read_text())


def do_run(settings: RunSettings) -> None:
    from qgoft.train.run import run

    run(settings)


def outcome(folder: Path) -> Any:
    """All that a run leaves, but for its times."""
    record = read_record(folder / "record.json")
    for name in OF_ITS_TIME:
        del record[name]
    record["provenance"].pop("resumed", None)
    weights = {path.name: path.read_bytes() for path in sorted((folder / "adapter").glob("*.safetensors"))}
    predictions = gzip.decompress((folder / "predictions.jsonl.gz").read_bytes())
    return canonical_json(record), weights, predictions, (folder / "history.jsonl").read_text()


# --- faults ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in a run.

    Attributes:
        name: for the count.
        strike: a context in which the run is made, from a random generator and the run's folder.
        says: what must be told then, in the run's record or on its terminal; None where nothing can be (the process was killed).
    """

    name: str
    strike: Callable[[random.Random, Path], Any]
    says: str | None


def _nth(rng: random.Random, highest: int, function: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """`instead` in one of the first calls."""
    left = [rng.randint(1, highest)]

    def call(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0]:
            return function(*arguments, **named)
        os.write(2, f"{STRUCK}\n".encode())
        return instead(function, *arguments, **named)

    return call


def _die(*arguments: Any, **named: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def killed_at_a_step(rng: random.Random, folder: Path) -> Iterator[None]:
    from qgoft.train import loop as fit

    with mock.patch.object(fit, "backward", _nth(rng, STEPS, fit.backward, _die)):
        yield


@contextmanager
def killed_at_a_write(rng: random.Random, folder: Path) -> Iterator[None]:
    """Before, within and after every kind of write: a half of the bytes is there, or the file but not yet under its name."""
    from qgoft.train import checkpoint, run

    def half_of_a_file(function: Any, tensors: Any, path: Any, **more: Any) -> None:
        function(tensors, path, **more)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        _die()

    def after(function: Any, *arguments: Any, **named: Any) -> None:
        function(*arguments, **named)
        _die()

    def half_of_the_answers(function: Any, path: Path, outcomes: Any) -> None:
        function(path, outcomes)
        path.write_bytes(path.read_bytes()[:40])
        _die()

    place = rng.choice(["rename before", "rename after", "checkpoint", "adapter", "predictions", "sync"])
    if place.startswith("rename"):
        target, name, instead, highest = os, "replace", _die if place.endswith("before") else after, 10
    elif place == "sync":
        target, name, instead, highest = os, "fsync", _die, 9
    elif place == "checkpoint":
        target, name, instead, highest = checkpoint, "save_file", half_of_a_file, STEPS
    elif place == "adapter":
        target, name, instead, highest = run, "save_adapter", after, 1
    else:
        target, name, instead, highest = run, "_write_predictions", half_of_the_answers, 1
    with mock.patch.object(target, name, _nth(rng, highest, getattr(target, name), instead)):
        yield


@contextmanager
def signalled(rng: random.Random, folder: Path) -> Iterator[None]:
    from qgoft.train import loop as fit
    from qgoft.train import run

    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])

    def send(function: Any, *arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), number)
        return function(*arguments, **named)

    # In a step, in the scoring in between, in the scoring at the end.
    target, name, highest = rng.choice([(fit, "backward", STEPS), (run, "predict_test_sets", 1), (run, "merged_for_eval", 3)])
    with mock.patch.object(target, name, _nth(rng, highest, getattr(target, name), send)):
        yield


@contextmanager
def disk_error(rng: random.Random, folder: Path) -> Iterator[None]:
    """The nth file that is to be synced or renamed cannot be: the disk is full, over its quota, or read-only."""
    number = rng.choice([errno.ENOSPC, errno.EDQUOT, errno.EROFS])

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise OSError(number, os.strerror(number))

    name = rng.choice(["fsync", "replace"])
    with mock.patch.object(os, name, _nth(rng, 9, getattr(os, name), refuse)):
        yield


@contextmanager
def small_disk(rng: random.Random, folder: Path) -> Iterator[None]:
    """No file can grow beyond a few thousand bytes, as the system sees to."""
    size = rng.choice([300, 3_000, 30_000, 60_000])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    yield


@contextmanager
def full_disk(rng: random.Random, folder: Path) -> Iterator[None]:
    """The run's folder lies on a file system of its own that is too small, seen by this process alone and gone with it."""
    mount_small(folder, rng.choice([4, 20, 40, 60]))
    yield


def mount_small(folder: Path, kilobytes: int) -> None:
    """A file system in memory over a folder, in a namespace of this process.

    Raises:
        OSError: this process may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(parents=True, exist_ok=True)
    calls = (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=%dk" % kilobytes),
    )
    for call in calls:
        if call():
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def may_mount(folder: Path) -> bool:
    """Tried in a process of its own."""
    if not sys.platform.startswith("linux"):
        return False
    pid = os.fork()
    if pid == 0:
        try:
            mount_small(folder, 4)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@contextmanager
def out_of_memory(rng: random.Random, folder: Path) -> Iterator[None]:
    import torch

    from qgoft.train import loop as fit

    error = rng.choice([torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError("cannot allocate")])

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise error

    with mock.patch.object(fit, "backward", _nth(rng, STEPS - 1, fit.backward, refuse)):
        yield


@contextmanager
def not_a_number(rng: random.Random, folder: Path) -> Iterator[None]:
    from qgoft.train import loop as fit

    def spoil(function: Any, accelerator: Any, model: Any, loss: Any, *more: Any) -> None:
        function(accelerator, model, loss * float("nan"), *more)

    with mock.patch.object(fit, "backward", _nth(rng, STEPS, fit.backward, spoil)):
        yield


@contextmanager
def clock_set_back(rng: random.Random, folder: Path) -> Iterator[None]:
    """The run's own clock goes backwards: its times say nothing, its figures stand."""
    from qgoft.train import record, run

    def times() -> Iterator[str]:
        yield "2026-01-01T12:00:00+00:00"
        os.write(2, f"{STRUCK}\n".encode())
        yield "2026-01-01T11:00:00+00:00"

    now = times()
    with mock.patch.object(run, "now", side_effect=now), mock.patch.object(record, "now", side_effect=now):
        yield


FAULTS = (
    Fault("killed at a step", killed_at_a_step, None),
    Fault("killed at a write", killed_at_a_write, None),
    Fault("signal", signalled, r"stopped (by SIG|from the keyboard)"),
    Fault("disk error", disk_error, r"No space left|quota exceeded|Read-only file system"),
    Fault("file size", small_disk, r"File too large"),
    Fault("full disk", full_disk, r"No space left"),
    Fault("out of memory", out_of_memory, r"oom: .*(out of memory|cannot allocate)"),
    Fault("not a number", not_a_number, r"diverged: the norm of the gradient is nan"),
    Fault("clock", clock_set_back, None),
)


def damage(rng: random.Random, path: Path) -> None:
    """Flip a bit, cut off the end, or empty the file."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "empty"])
    if kind == "flip" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: rng.randrange(len(content))] if kind == "cut" and content else b"")


class Torment:
    """Strikes runs, and checks each time that nothing is lost or wrong."""

    def __init__(self, folder: Path, seed: int):
        self.rng = random.Random(seed)
        self.folder, self.data = folder, folder / "data"
        clear(folder)
        self.log = folder / "log.txt"
        self.runs = short_runs(folder / "results", self.data)
        self.expected: dict[str, Any] = {}
        self.count: Counter[str] = Counter()
        self.faulty: list[str] = []
        self.faults = [fault for fault in FAULTS if fault.strike is not full_disk or may_mount(folder / "mounted")]
        if len(self.faults) < len(FAULTS):
            print("left out: full disk (this process may not mount a file system); disk error and file size are struck")

    def _finish(self, settings: RunSettings) -> Result:
        result = in_child(lambda: do_run(settings), self.log)
        if result.code:
            raise RuntimeError(
                f"an undisturbed run of {settings.method.name} on {settings.task.name} ended with {result.code}: {result.told}"
            )
        return result

    def _records(self) -> dict[str, str]:
        found = find_records(self.folder / "results")
        return {record["key"]: canonical_json(record) for record in found.records}

    def strike(self) -> None:
        """One run: up to three faults, one of them perhaps a damage to what it left; then it is gone on with and compared."""
        settings = self.rng.choice(self.runs)
        run_id = identify(settings)
        if run_id.key not in self.expected:
            self._finish(settings)
            self.expected[run_id.key] = outcome(run_id.folder)
        self.blows: list[str] = []
        others = {key: text for key, text in self._records().items() if key != run_id.key}
        what = f"{settings.method.name} on {settings.task.name}"
        if self.rng.random() < 0.15:
            self._damage_a_record(settings, what)
        else:
            shutil.rmtree(run_id.folder)
        for _ in range(self.rng.randint(1, 3)):
            fault = self.rng.choice(self.faults)
            if run_id.is_done:  # what struck before let it finish
                shutil.rmtree(run_id.folder)
            result = in_child(lambda fault=fault: self._struck(settings, fault), self.log)  # type: ignore[misc]
            self._check_told(fault, result, settings, what)
            if self.rng.random() < 0.3:
                self._damage_what_is_left(settings, what)
        told = self._finish(settings).told
        found, expected = outcome(run_id.folder), self.expected[run_id.key]
        differing = [name for name, one, two in zip(PARTS, found, expected, strict=True) if one != two]
        self._check(not differing, f"{what} after {', '.join(self.blows)}: {', '.join(differing)} differ; at last it told: {told[-300:]}")
        self._check(not list(run_id.folder.glob("checkpoint/*")), f"{what}: a checkpoint is left of a run that is done")
        self._check(
            {key: text for key, text in self._records().items() if key != run_id.key} == others, f"{what}: other records have changed"
        )

    def _struck(self, settings: RunSettings, fault: Fault) -> None:
        with fault.strike(self.rng, identify(settings).folder):
            do_run(settings)

    def _check_told(self, fault: Fault, result: Result, settings: RunSettings, what: str) -> None:
        """A fault that came to pass was named; what did not know of it is done."""
        path = identify(settings).folder / "record.json"
        self._check("Traceback" not in result.told, f"{what}, {fault.name}: not told in a line: {result.told[-900:]}")
        # What a small file system has room for may still be done, on it, and is gone with it.
        is_struck = STRUCK in result.told or result.code != 0 or fault.strike is full_disk
        if is_struck:  # it may have been set for a write that did not come
            self._note(fault.name)
        if fault.says is None or not is_struck:
            self._check(result.is_killed or identify(settings).is_done, f"{what}, {fault.name}: ended without a word: {result.told[-600:]}")
        else:
            self._check(re.search(fault.says, result.told) is not None, f"{what}, {fault.name}: not named: {result.told[-600:]}")
        if fault.name == "clock" and STRUCK in result.told:
            named = any("the clock was set back" in problem for problem in find_records(path.parent).problems)
            self._check(named, f"{what}: a clock that was set back is not named")

    def _damage_a_record(self, settings: RunSettings, what: str) -> None:
        """Wherever a bit was flipped, also where it would make another number."""
        self._note("damaged record")
        path = identify(settings).folder / "record.json"
        before = path.read_text()
        damage(self.rng, path)
        problems = find_records(self.folder / "results").problems
        self._check(any(str(path) in problem for problem in problems), f"{what}: a damaged record is not named: {before}")
        self._check(identify(settings).state()[0] == "torn", f"{what}: a damaged record counts")

    def _damage_what_is_left(self, settings: RunSettings, what: str) -> None:
        run_id = identify(settings)
        folder = run_id.folder
        kind = self.rng.choice(["checkpoint", "lease", "rows", "history"])
        checkpoints = run_id.checkpoints()
        if kind == "checkpoint" and checkpoints:
            damage(self.rng, checkpoints[-1])
            self._note("damaged checkpoint")
            result = in_child(lambda: self._struck(settings, FAULTS[0]), self.log)
            self._check("is damaged and not used" in result.told, f"{what}: a damaged checkpoint is not named: {result.told[-600:]}")
        elif kind == "lease" and folder.is_dir():
            (folder / "lease.7.json").write_text(json.dumps({**this_machine(), "pid": 2**22 - 1}))
            self._note("lease of a dead process")
            self._check(run_id.state()[0] != "running", f"{what}: a lease that nobody holds keeps the run from going on")
        elif kind == "rows":
            self._note("damaged picture" if settings.task.suite == "vtab" else "damaged rows")
            of_task = self.data / settings.task.name
            path = self.rng.choice(sorted(of_task.glob("images/*"))) if settings.task.suite == "vtab" else of_task / "train.parquet"
            whole = path.read_bytes()
            path.write_bytes(whole[: self.rng.randrange(len(whole) // 2)])
            result = in_child(lambda: do_run(settings), self.log)
            path.write_bytes(whole)
            said = result.code == 2 and re.search(r"train\.parquet|cannot be read|pictures cannot be decoded", result.told)
            self._check(bool(said), f"{what}: damaged rows are not named: {result.told[-600:]}")
        elif kind == "history" and (folder / "history.jsonl").is_file():
            self._note("damaged history")
            before = (folder / "history.jsonl").read_bytes()
            damage(self.rng, folder / "history.jsonl")
            if run_id.is_done and (folder / "history.jsonl").read_bytes() != before:
                problems = find_records(folder).problems
                self._check(
                    any("history.jsonl: it is not as the run left it" in p for p in problems), f"{what}: a changed curve is not named"
                )
                shutil.rmtree(folder)

    def _note(self, name: str) -> None:
        self.count[name] += 1
        self.blows.append(name)

    def _check(self, is_right: bool, otherwise: str) -> None:
        if not is_right:
            self.faulty.append(otherwise)
            print(f"WRONG: {otherwise}", flush=True)


def torment(arguments: argparse.Namespace) -> int:
    """Faults until there were so many."""
    import torch

    from qgoft.train import run  # noqa: F401 - once, here: every child has it then
    from qgoft.train.quiet import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)
    began = time.monotonic()
    work = Torment(arguments.folder, arguments.seed)
    while work.count.total() < arguments.number:
        work.strike()
        if arguments.verbose:
            print(f"{work.count.total()} faults, {len(work.faulty)} wrong", flush=True)
    print(f"seed {arguments.seed}: {work.count.total()} faults in {time.monotonic() - began:.0f} s over {len(work.expected)} runs")
    for name, number in sorted(work.count.items()):
        print(f"  {name:<24} {number:>5}")
    print(
        f"{len(work.faulty)} of them left something wrong" if work.faulty else "every result was as undisturbed, and every fault was named"
    )
    return 1 if work.faulty else 0


# --- kills -------------------------------------------------------------------------------------------------------------------------------


def kill_sweeps(arguments: argparse.Namespace) -> int:
    """A sweep that is killed at random moments, and one that is not."""
    rng = random.Random(arguments.seed)
    clear(arguments.folder)
    # A run of its own would be over before a checkpoint is due.
    words = ["glue", "--method", arguments.method, "--jobs", "2", "results.checkpoint_interval=1", *arguments.overrides]
    if sweep(words, arguments.folder / "whole").wait():
        raise QgoftError(f"the undisturbed sweep failed; see {arguments.folder / 'whole.log'}")
    began, struck, starts = time.monotonic(), Counter[str](), 0
    broken = arguments.folder / "broken"
    while struck.total() < arguments.number:
        process = sweep(words, broken)
        starts += 1
        try:
            process.wait(timeout=rng.uniform(4, 16))
        except subprocess.TimeoutExpired:
            struck[strike_sweep(process, rng)] += 1
            continue
        if struck.total() < arguments.number:  # it was done: once more from the start
            check_same(arguments.folder / "whole", broken)
            shutil.rmtree(broken)
    if sweep(words, broken).wait():
        raise QgoftError(f"the sweep could not be finished; see {arguments.folder / 'broken.log'}")
    gone_on = sum("resumed" in record["provenance"] for record in find_records(broken / "runs").records)
    check_same(arguments.folder / "whole", broken)
    told = ", ".join(f"{number} of {name}" for name, number in sorted(struck.items()))
    print(f"seed {arguments.seed}: {struck.total()} blows ({told}) in {time.monotonic() - began:.0f} s, {starts} starts")
    print(f"the tables are equal to the byte, and all records but for their times; {gone_on} of the last runs were gone on with")
    return 0


def measure_costs(arguments: argparse.Namespace) -> int:
    """A checkpoint a second (the default is one in thirty), at most 3% of the time; then a run is killed behind its first one and begun again."""
    from qgoft.train.checkpoint import CheckpointManager
    from qgoft.train.quiet import quiet_libraries

    quiet_libraries()
    spent: list[float] = []
    save = CheckpointManager.save

    def timed(*words: Any) -> bool:
        began = time.monotonic()
        try:
            return save(*words)
        finally:
            spent.append(time.monotonic() - began)

    clear(arguments.folder)
    words = [f"method={arguments.method}", "task=glue/rte", "results.checkpoint_interval=1", *arguments.overrides]
    with mock.patch.object(CheckpointManager, "save", timed):
        for number in range(arguments.number):
            spent.clear()
            settings = compose_settings([*words, f"results.root={arguments.folder / str(number)}"])
            do_run(settings)
            seconds = read_record(identify(settings).folder / "record.json")["cost"]["seconds"]
            print(f"{len(spent)} checkpoints in {seconds:.1f} s took {sum(spent):.3f} s, {100 * sum(spent) / seconds:.2f}%", flush=True)
    for number in range(arguments.number):
        root = arguments.folder / f"killed{number}"
        run_id = identify(compose_settings([*words, f"results.root={root}"]))
        process = single_run([*words, f"results.root={root}"])
        while not run_id.checkpoints():
            if process.poll() is not None:
                raise QgoftError("a run ended before its first checkpoint")
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        last = checkpoint_step(run_id.checkpoints()[-1])
        began = time.monotonic()
        process = single_run([*words, f"results.root={root}"])
        # The new attempt rewrites the curve from its checkpoint, and then resumes.
        while max((step for place in run_id.folder.glob(ATTEMPTS) for step, _ in read_curve(place, "loss")), default=0) <= last:
            if process.poll() is not None:
                raise QgoftError("a run that was to go on has ended")
            time.sleep(0.01)
        print(f"from the command to step {last + 1}: {time.monotonic() - began:.1f} s", flush=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return 0


def clear(folder: Path) -> None:
    """Make a directory of this script empty.

    Raises:
        QgoftError: it holds files and was not made by this script.
    """
    mark = folder / ".torture"
    if folder.exists() and not mark.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise QgoftError(f"--folder={folder} was not made by this script and is not empty; name a new or an empty directory")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()


def single_run(words: list[str]) -> "subprocess.Popen[bytes]":
    """One run by its own command, in a process group of its own."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *words]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=REPOSITORY, start_new_session=True)


def sweep(words: list[str], root: Path) -> "subprocess.Popen[bytes]":
    """In a process group of its own, so that all of it can be killed."""
    with open(root.with_suffix(".log"), "a") as log:
        command = [sys.executable, str(REPOSITORY / "scripts" / "sweep.py"), *words, f"results.root={root}"]
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY, start_new_session=True)


def strike_sweep(process: "subprocess.Popen[bytes]", rng: random.Random) -> str:
    """The whole of it dies, or one worker, or it is asked to stop. Returns which."""
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
            raise QgoftError("a sweep that was asked to stop has not ended within a minute") from None
        return kind
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return kind


def children(pid: int) -> list[str]:
    """Processes that this one has started."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def check_same(one: Path, two: Path) -> None:
    """Raises QgoftError at the first table or record that differs."""
    for path in sorted((one / "tables").iterdir()):
        other = two / "tables" / path.name
        if not other.is_file() or path.read_bytes() != other.read_bytes():
            raise QgoftError(f"{path} and {other} differ")
    for path in sorted((one / "runs").iterdir()):
        if outcome(path) != outcome(two / "runs" / path.name):
            raise QgoftError(f"the run {path.name} has come out differently below {two}")


def parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["faults", "kills", "cost"])
    parser.add_argument("overrides", nargs="*", help="of the sweep or the run, such as train.max_steps=60")
    parser.add_argument("--number", type=int, required=True, help="of faults or kills, or of runs to be timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="qgoft", help="of the sweep that is killed, or the run that is timed")
    parser.add_argument("--folder", type=Path, default=Path("results") / "torture", help="is emptied")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_intermixed_args(words)


def main(words: list[str]) -> int:
    arguments = parse(words)
    return {"faults": torment, "kills": kill_sweeps, "cost": measure_costs}[arguments.kind](arguments)


if __name__ == "__main__":
    run_cli(lambda: main(sys.argv[1:]), interrupted="interrupted")
