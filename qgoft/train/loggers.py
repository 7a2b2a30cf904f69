"""Experiment loggers: wandb and TensorBoard, with the same scalars, and the record at the end."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

from qgoft.config.settings import RunSettings, method_label
from qgoft.console import say
from qgoft.errors import QgoftError, format_exception
from qgoft.records import canonical_json

# Environment variable with the name of the sweep.
SWEEP = "QGOFT_SWEEP"
# Seconds.
WRITTEN_WITHIN = 20.0


class ExperimentLogger(Protocol):
    """Destination of a run's scalars in addition to its history. A resumed run is logged again from the start."""

    def log(self, scalars: dict[str, float], step: int) -> None: ...

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        """Log the test metrics and the record."""


def open_loggers(settings: RunSettings, directory: Path) -> list[ExperimentLogger]:
    """Return the loggers of the settings.

    Raises:
        QgoftError: one is not installed.
    """
    loggers: list[ExperimentLogger] = []
    if settings.wandb.mode != "disabled":
        loggers.append(Wandb(settings, directory))
    if settings.tensorboard.enabled:
        loggers.append(TensorBoard(settings, directory))
    return loggers


class Wandb:
    """Weights & Biases. Offline mode needs no key. The settings that are sent hold no path and no secret.

    A restarted or resumed run is a new run with the same name and group, because wandb accepts no earlier steps and cannot resume offline.
    The last one is complete.
    """

    def __init__(self, settings: RunSettings, directory: Path):
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        config = {"protocol": settings.protocol, "task": settings.task.full_name, "method": settings.method.name, "seed": settings.seed}
        try:
            self.run = wandb.init(
                project=settings.wandb.project,
                group=os.environ.get(SWEEP),  # groups the runs of a table
                name=f"{settings.task.full_name} {method_label(settings.method.name, settings.method.variant)} seed {settings.seed}",
                mode=cast(Any, settings.wandb.mode),
                dir=str(directory),
                config=config,
                reinit="finish_previous",  # a run that did not finish must not receive the data of the next one in this process
            )
        except wandb.Error as error:  # no login, no network, no such project
            raise QgoftError(
                f"wandb.mode={settings.wandb.mode}: {format_exception(error)}; log in, or set wandb.mode=offline or disabled"
            ) from error

        self.log_file = Path(self.run.settings.sync_file) if settings.wandb.mode == "offline" else None

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.run.log(scalars, step=step)

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        self.run.summary.update({"status": record["status"], **scalars, "record": record})
        self.run.finish(exit_code=0 if record["status"] == "done" else 1)
        if self.log_file is not None:
            _await_text(self.log_file, record["key"])


def _await_text(path: Path, text: str) -> None:
    """Wait until wandb's own process has written a text, since `finish` may not wait and a kill would lose it."""
    began = time.monotonic()
    while time.monotonic() - began < WRITTEN_WITHIN:
        with suppress(OSError):
            if text.encode() in path.read_bytes():
                return
        time.sleep(0.02)
    say(f"qgoft: wandb has not written the end of the run to {path} within {WRITTEN_WITHIN:.0f} s; its offline log may be incomplete")


class TensorBoard:
    """TensorBoard event files in the run's directory: `tensorboard --logdir results/runs` shows all runs."""

    def __init__(self, settings: RunSettings, directory: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise QgoftError("tensorboard.enabled=true needs tensorboard, which is not installed: pip install tensorboard") from error
        # Events of an earlier attempt would appear in the same curve.
        shutil.rmtree(directory / "tensorboard", ignore_errors=True)
        self.writer = SummaryWriter(str(directory / "tensorboard"))
        self.writer.add_text("sweep", os.environ.get(SWEEP, "none"))

    def log(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(f"reported/{name}", value, record["cost"]["steps"] or 0)
        self.writer.add_text("record", canonical_json(record))
        self.writer.close()
