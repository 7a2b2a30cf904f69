"""Signals: a run finishes its step and saves a checkpoint before it ends.

SIGINT is Ctrl-C; kill, torchrun and clusters send SIGTERM; SLURM sends SIGUSR1 or SIGUSR2 before a time limit or preemption.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# The same interrupt may arrive twice, from the terminal and from the process that forwards it.
DUPLICATE_WINDOW = 2.0
OWN = (signal.default_int_handler, signal.SIG_DFL, None)


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end. `number` is the signal, `where` the progress of the run."""

    def __init__(self, number: int, where: str = ""):
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"interrupted by {name}{where}")
        self.number = number


class SignalHandler:
    """Handler of these signals inside the block, in the main thread of a process; no effect in other threads.

    Raises `Stopped` immediately. Inside `defer()` the signal is stored in `pending`; `raise_pending()` or a second signal acts on it. A
    signal that was blocked before the block (a sweep starts its workers so, that none is killed before it has a run) arrives at the start
    of the block, and is blocked again after it.

    Args:
        forward: called when a signal is deferred, to notify other processes.
    """

    def __init__(self, forward: Callable[[], None] = lambda: None) -> None:
        self.forward = forward
        self.pending: int | None = None
        self._received_at = 0.0
        self._is_deferring = self._is_training = False
        self._before: dict[int, Any] = {}
        self._blocked: set[int] = set()

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            # Keep an inherited SIG_IGN, as of a shell's background job.
            taken = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._take) for number in taken}
            self._blocked = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])} & set(taken)
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, self._blocked)
            except Stopped:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Defer signals until `raise_pending()`."""
        self._is_training = True
        try:
            yield from self._set_deferring(True)
        finally:
            self._is_training = False

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside `defer()`: raise immediately, and store the signal, so that `raise_pending()` can follow after saving."""
        yield from self._set_deferring(False)

    def _set_deferring(self, is_deferring: bool) -> Iterator[None]:
        before, self._is_deferring = self._is_deferring, is_deferring
        try:
            yield
        finally:
            self._is_deferring = before

    def raise_pending(self, where: str = "") -> None:
        """Act on the pending signal after everything is saved. If another handler was installed before (submitit's, which requeues the
        job), call it; if it returns, the run continues.

        Raises:
            Stopped: no other handler, or it failed.
        """
        if self.pending is None:  # another process of this run received it
            raise Stopped(signal.SIGTERM, where)
        number, self.pending = self.pending, None
        foreign: Callable[[int, FrameType | None], Any] | None = self._before.get(number)
        if foreign in OWN or not callable(foreign):
            raise Stopped(number, where)
        try:
            foreign(number, None)
        except Exception as error:
            raise Stopped(number, f"{where} ({error})") from error

    def _take(self, number: int, frame: FrameType | None) -> None:
        is_repeated = self.pending is not None and time.monotonic() - self._received_at > DUPLICATE_WINDOW
        if self._is_deferring and not is_repeated:
            if self.pending is None:
                self.pending, self._received_at = number, time.monotonic()
                self.forward()
            return
        foreign = self._before.get(number)
        if self._is_training:
            # The first signal decides who acts on it: a cluster's, before its limit, requeues the job.
            self.pending, self._received_at = self.pending or number, time.monotonic()
        elif foreign not in OWN and callable(foreign):
            foreign(number, frame)
            return
        raise Stopped(number)
