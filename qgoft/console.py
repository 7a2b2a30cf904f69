"""Console output that cannot end a run: a closed pipe or a full disk behind a log must not cost the training."""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.table import Table

# Environment variable of sweep workers: directory of the state files that the parent displays.
CHANNEL = "QGOFT_DISPLAY"


class _Guarded:
    """Text stream whose writes do not raise. After the first failure its file descriptor is redirected to /dev/null."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._is_over = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:  # terminal with another encoding
            encoding = self._stream.encoding or "ascii"
            return self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def guard_output() -> None:
    """Guard stdout and stderr of this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Guarded):
            setattr(sys, name, _Guarded(stream))


def say(text: str) -> None:
    """Print a line to stderr."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class RunState:
    """State of a training run, as shown on a terminal."""

    name: str
    seed: int
    step: int
    total: int
    loss: float
    score: str
    left: float | None  # seconds

    def line(self) -> "Table":
        """Return the run as one line of at most 80 columns; longer texts are truncated within their column."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 1, 0, 0))
        for width in (26, 8, 9, 10, 15, None):
            grid.add_column(width=width, no_wrap=True, overflow="ellipsis")
        left = "" if self.left is None else f"{int(self.left) // 60}:{int(self.left) % 60:02}"
        bar = ProgressBar(total=self.total, completed=self.step, width=8)
        grid.add_row(f"{self.name} #{self.seed}", bar, f"{self.step}/{self.total}", f"loss {self.loss:.3f}", self.score, left)
        return grid
