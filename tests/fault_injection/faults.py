"""Faults of a run: kills, signals, disk and memory errors, invalid numbers, a clock that is set back."""

import ctypes
import errno
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fault_injection.runs import STEPS

# Printed by a process in which the fault has occurred.
INJECTED = "[fault]"
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000  # on Linux


@dataclass(frozen=True)
class Fault:
    """A fault of a run.

    Attributes:
        name: for the count.
        inject: context in which the run is executed, from a random generator and the run's directory.
        says: message expected in the run's record or on its terminal; None if there can be none (the process was killed).
    """

    name: str
    inject: Callable[[random.Random, Path], Any]
    says: str | None


def _nth(rng: random.Random, highest: int, function: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Call `instead` in place of one of the first calls."""
    left = [rng.randint(1, highest)]

    def call(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0]:
            return function(*arguments, **named)
        os.write(2, f"{INJECTED}\n".encode())
        return instead(function, *arguments, **named)

    return call


def _die(*arguments: Any, **named: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def killed_at_a_step(rng: random.Random, directory: Path) -> Iterator[None]:
    from qgoft.train import loop

    with mock.patch.object(loop, "backward", _nth(rng, STEPS, loop.backward, _die)):
        yield


@contextmanager
def killed_at_a_write(rng: random.Random, directory: Path) -> Iterator[None]:
    """Kill before, during and after every kind of write: half of the bytes are written, or the file does not have its final name yet."""
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
def signalled(rng: random.Random, directory: Path) -> Iterator[None]:
    from qgoft.train import loop, run

    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])

    def send(function: Any, *arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), number)
        return function(*arguments, **named)

    # Send a signal during a step, an evaluation, or the final evaluation.
    target, name, highest = rng.choice([(loop, "backward", STEPS), (run, "predict_test_sets", 1), (run, "merged_for_eval", 3)])
    with mock.patch.object(target, name, _nth(rng, highest, getattr(target, name), send)):
        yield


@contextmanager
def disk_error(rng: random.Random, directory: Path) -> Iterator[None]:
    """Make the nth file that is synced or renamed fail: disk full, quota exceeded, or read-only."""
    number = rng.choice([errno.ENOSPC, errno.EDQUOT, errno.EROFS])

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise OSError(number, os.strerror(number))

    name = rng.choice(["fsync", "replace"])
    with mock.patch.object(os, name, _nth(rng, 9, getattr(os, name), refuse)):
        yield


@contextmanager
def small_disk(rng: random.Random, directory: Path) -> Iterator[None]:
    """Limit the size of files to a few thousand bytes."""
    size = rng.choice([300, 3_000, 30_000, 60_000])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    yield


@contextmanager
def full_disk(rng: random.Random, directory: Path) -> Iterator[None]:
    """Put the run's directory on a file system that is too small, in this process's own mount namespace."""
    mount_small(directory, rng.choice([4, 20, 40, 60]))
    yield


def mount_small(directory: Path, kilobytes: int) -> None:
    """Mount a file system in memory over a directory, in a namespace of this process.

    Raises:
        OSError: this process may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    directory.mkdir(parents=True, exist_ok=True)
    calls = (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"none", os.fsencode(directory), b"tmpfs", 0, b"size=%dk" % kilobytes),
    )
    for call in calls:
        if call():
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def may_mount(directory: Path) -> bool:
    """Tested in a new process."""
    if not sys.platform.startswith("linux"):
        return False
    pid = os.fork()
    if pid == 0:
        try:
            mount_small(directory, 4)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@contextmanager
def out_of_memory(rng: random.Random, directory: Path) -> Iterator[None]:
    import torch

    from qgoft.train import loop

    error = rng.choice([torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError("cannot allocate")])

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise error

    with mock.patch.object(loop, "backward", _nth(rng, STEPS - 1, loop.backward, refuse)):
        yield


@contextmanager
def not_a_number(rng: random.Random, directory: Path) -> Iterator[None]:
    from qgoft.train import loop

    def spoil(function: Any, accelerator: Any, model: Any, loss: Any, *more: Any) -> None:
        function(accelerator, model, loss * float("nan"), *more)

    with mock.patch.object(loop, "backward", _nth(rng, STEPS, loop.backward, spoil)):
        yield


@contextmanager
def clock_set_back(rng: random.Random, directory: Path) -> Iterator[None]:
    """Set the run's clock back: its times are meaningless, its scores remain."""
    from qgoft.train import record, run

    def times() -> Iterator[str]:
        yield "2026-01-01T12:00:00+00:00"
        os.write(2, f"{INJECTED}\n".encode())
        yield "2026-01-01T11:00:00+00:00"

    now = times()
    with mock.patch.object(run, "now", side_effect=now), mock.patch.object(record, "now", side_effect=now):
        yield


FAULTS = (
    Fault("killed at a step", killed_at_a_step, None),
    Fault("killed at a write", killed_at_a_write, None),
    Fault("signal", signalled, r"interrupted by (SIG|Ctrl-C)"),
    Fault("disk error", disk_error, r"No space left|quota exceeded|Read-only file system"),
    Fault("file size", small_disk, r"File too large"),
    Fault("full disk", full_disk, r"No space left"),
    Fault("out of memory", out_of_memory, r"oom: .*(out of memory|cannot allocate)"),
    Fault("not a number", not_a_number, r"diverged: the norm of the gradient is nan"),
    Fault("clock", clock_set_back, None),
)
