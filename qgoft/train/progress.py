"""Progress of a run: a bar or lines for people, history.jsonl, and the experiment loggers."""

import dataclasses
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator
from rich.console import Console
from rich.live import Live

from qgoft.config.settings import RunSettings, method_label
from qgoft.config.suites import suite_info
from qgoft.console import CHANNEL, RunState, say
from qgoft.records import write_atomically
from qgoft.train.loggers import open_loggers

# Lines of history.jsonl besides the evaluations: enough for a curve, small enough to commit.
HISTORY_LINES = 100
# Seconds between two updates of the terminal.
REDRAWN = 0.3


def run_name(settings: RunSettings) -> str:
    full = method_label(settings.method.name, settings.method.variant)
    return f"{settings.task.full_name:<11} {full}{' (random)' if settings.model.init == 'random' else ''}"


def _shown(settings: RunSettings, score: float) -> str:
    """Return the selection score in words: decoders select by the loss on held-out answers."""
    if suite_info(settings.task.suite).is_decoder:
        return f"held-out loss {-score:.3f}"
    return f"{'' if settings.selection == 'best_reported' else 'validation '}{settings.task.primary} {score:.2f}"


class Progress:
    """Progress of one run: a redrawn line on a terminal, otherwise one line per evaluation and at the end.

    In a worker of a sweep on a terminal (`CHANNEL` in the environment), nothing is printed: the state and the lines go to files that the
    parent displays (sweep/display.py).
    """

    def __init__(self, settings: RunSettings):
        self.settings = settings
        self.channel = Path(os.environ[CHANNEL]) if os.environ.get(CHANNEL) else None
        self.live: Live | None = None
        self.score: float | None = None
        self.first, self.started = 0, time.perf_counter()
        self._told = 0.0

    @property
    def is_terminal(self) -> bool:
        return self.channel is None and sys.stderr.isatty()

    def goes_on(self, step: int) -> None:
        """Set the step at which this process started."""
        self.first, self.started = step, time.perf_counter()

    def step(self, step: int, total: int, loss: float) -> None:
        is_due = time.perf_counter() - self._told >= REDRAWN or step == total
        if not is_due or not (self.channel or self.is_terminal):
            return
        self._told = time.perf_counter()
        shown = "" if self.score is None else _shown(self.settings, self.score)
        state = RunState(run_name(self.settings), self.settings.seed, step, total, loss, shown, self._left(step, total))
        if self.channel is not None:
            with suppress(OSError):
                write_atomically(self.channel / f"{os.getpid()}.json", json.dumps(dataclasses.asdict(state)))
            return
        if self.live is None:
            self.live = Live(console=Console(stderr=True), transient=True, refresh_per_second=4)
            self.live.start()
        self.live.update(state.line())

    def _left(self, step: int, total: int) -> float | None:
        passed = time.perf_counter() - self.started
        return passed / (step - self.first) * (total - step) if step > self.first else None

    def evaluated(self, step: int, total: int, score: float | None) -> None:
        self.score = score
        if self.channel is None and not self.is_terminal:
            shown = f"{self.settings.task.primary} undefined" if score is None else _shown(self.settings, score)
            left = self._left(step, total)
            self.say(f"{run_name(self.settings)}  step {step}/{total}  {shown}{'' if left is None else f'  {left:.0f} s left'}")

    def say(self, text: str) -> None:
        if self.channel is not None:
            with suppress(OSError), open(self.channel / f"{os.getpid()}.log", "a", encoding="utf-8", errors="replace") as file:
                file.write(text + "\n")
        elif self.live is not None:
            self.live.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
        if self.channel is not None:
            with suppress(OSError):
                (self.channel / f"{os.getpid()}.json").unlink(missing_ok=True)


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """Return the scalars of a line of the history."""
    return {name: value for name, value in line.items() if name != "step" and value is not None}


class Tracker:
    """Passes what `fit` logs to the progress bar, to history.jsonl and to the loggers. Only the main process logs."""

    def __init__(self, settings: RunSettings, directory: Path, accelerator: Accelerator, progress: Progress, loggers: Path | None = None):
        self.settings, self.progress = settings, progress
        self.is_main = accelerator.is_main_process
        self.loggers = open_loggers(settings, loggers or directory) if self.is_main else []
        self.path = directory / "history.jsonl"
        self.file = self._open() if self.is_main else None
        self.lines: list[str] = []

    def _open(self) -> TextIO:
        """Start a new file: a process that lost this run may still have the old one open."""
        self.path.unlink(missing_ok=True)
        return open(self.path, "w", buffering=1, encoding="utf-8")  # closed in close()

    def log(self, line: dict[str, Any]) -> None:
        if not self.is_main or self.file is None:
            return
        step, total = line["step"], line["total"]
        if "score" in line:
            self.progress.evaluated(step, total, line["score"])
        elif "loss" in line:
            self.progress.step(step, total, line["loss"])
        if "loss" not in line or step == total or step % max(1, total // HISTORY_LINES) == 0:
            kept = {name: value for name, value in line.items() if name != "total"}
            self.lines.append(json.dumps(kept))
            self.file.write(self.lines[-1] + "\n")
            for logger in self.loggers:
                logger.log(_scalars(kept), step)

    def rewind(self, lines: list[str]) -> None:
        """Replace the history by that of a checkpoint."""
        if self.file is None:
            return
        self.lines = list(lines)
        self.file.seek(0)
        self.file.truncate()
        self.file.writelines(line + "\n" for line in lines)
        told = [json.loads(line) for line in lines]
        if told:
            self.progress.goes_on(told[-1]["step"])
        for logger in self.loggers:
            for line in told:
                logger.log(_scalars(line), line["step"])

    def close(self) -> None:
        self.progress.close()
        if self.file is not None:
            self.file.close()

    def finish(self, record: dict[str, Any]) -> None:
        if not self.is_main:
            return
        if record["status"] == "done":
            value = record["metrics"][record["primary"]]["value"]
            text = f"{record['primary']} {value:.2f}  {record['cost']['seconds']:.1f} s"
        else:
            text = f"{record['status']}: {record['reason']}"
        self.progress.say(f"{run_name(self.settings)}  seed {record['seed']}  {text}")
        for logger in self.loggers:  # the record is written by now: a logger may be slow, or fail
            logger.finish({n: m["value"] for n, m in record["metrics"].items() if m["value"] is not None}, record)
