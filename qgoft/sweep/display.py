"""Progress of a sweep. Workers write their state to files, and the parent process draws them on the terminal."""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from qgoft.console import CHANNEL, RunState, say
from qgoft.sweep.forecast import format_duration

# Seconds between two reads of the files.
INTERVAL = 0.25


class Display:
    """Progress on a terminal: one line per active run and one for the sweep, redrawn below the messages. Otherwise plain lines.

    Args:
        workers: runs at a time.
    """

    def __init__(self, workers: int):
        self.workers, self.began = workers, time.monotonic()
        self.is_drawn = workers > 1 and sys.stderr.isatty()
        self.summary = ""
        self._is_over = threading.Event()
        self._live: Any = None

    def __enter__(self) -> "Display":
        if self.is_drawn:
            from rich.console import Console
            from rich.live import Live

            self._directory = TemporaryDirectory(prefix="qgoft-")
            self._read: dict[Path, int] = {}
            os.environ[CHANNEL] = self._directory.name
            self._live = Live(console=Console(stderr=True), transient=True, refresh_per_second=4)
            self._live.start()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is None:
            return
        self._is_over.set()
        self._thread.join()
        self._draw()
        self._live.stop()
        self._live = None
        os.environ.pop(CHANNEL, None)
        self._directory.cleanup()

    def say(self, text: str) -> None:
        """Print a line above the redrawn ones."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def ended(self, done: int, total: int, failed: int) -> None:
        """Show that one more run has ended. The remaining time counts active runs as half done."""
        active = min(self.workers, total - done) / 2
        left = (time.monotonic() - self.began) / (done + active) * (total - done - active)
        failures = f", {failed} of them not done" if failed else ""
        self.summary = f"{done} of {total} runs ended{failures}" + (f", about {format_duration(left)} left" if done < total else "")
        if self._live is None:
            say(self.summary)

    def _watch(self) -> None:
        while not self._is_over.wait(INTERVAL):
            self._draw()

    def _draw(self) -> None:
        from rich.console import Group

        lines = []
        for path in sorted(Path(self._directory.name).iterdir()):
            if path.suffix == ".log":
                with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                    file.seek(self._read.get(path, 0))
                    for line in file.read().splitlines():
                        self.say(line)
                    self._read[path] = file.tell()
            elif path.suffix == ".json":
                with suppress(OSError, ValueError, TypeError):
                    lines.append(RunState(**json.loads(path.read_text("utf-8"))).line())
        if self._live is not None:
            self._live.update(Group(*lines, self.summary))
