"""Boards that show a run elsewhere: wandb and TensorBoard, the same scalars on both, and the record at the end."""

import os
from pathlib import Path
from typing import Any, Protocol

from qgoft.errors import QgoftError, one_line
from qgoft.records import canonical_json
from qgoft.settings import RunSettings, method_label

# Name of the sweep that a run belongs to, in the environment of its process.
SWEEP = "QGOFT_SWEEP"


class Board(Protocol):
    """Where scalars of a run go beside its history."""

    def log(self, scalars: dict[str, float], step: int) -> None: ...

    def rewind(self, step: int) -> None:
        """The run goes on after this step; what came later is void."""

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        """The metrics of the reported set, and the record."""


def open_boards(settings: RunSettings, folder: Path) -> list[Board]:
    """Those that are asked for.

    Raises:
        QgoftError: one is not installed.
    """
    boards: list[Board] = []
    if settings.wandb.mode != "disabled":
        boards.append(Wandb(settings, folder))
    if settings.tensorboard.enabled:
        boards.append(TensorBoard(settings, folder))
    return boards


class Wandb:
    """Offline needs no key and asks nothing. The settings that are sent hold no path and no secret."""

    def __init__(self, settings: RunSettings, folder: Path):
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        config = {"protocol": settings.protocol, "task": settings.task.full_name, "method": settings.method.name, "seed": settings.seed}
        try:
            self.run = wandb.init(
                project=settings.wandb.project,
                group=os.environ.get(SWEEP),  # so that the runs of a table stand together
                name=f"{settings.task.full_name} {method_label(settings.method.name, settings.method.variant)} seed {settings.seed}",
                mode=settings.wandb.mode,
                dir=str(folder),
                config=config,
            )
        except wandb.Error as error:  # no login, no network, no such project
            raise QgoftError(
                f"wandb.mode={settings.wandb.mode}: {one_line(error)}; log in, or set wandb.mode=offline or disabled"
            ) from error

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.run.log(scalars, step=step)

    def rewind(self, step: int) -> None:
        """A run that is gone on with is another run of wandb, in the same group."""

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        self.run.summary.update({"status": record["status"], **scalars, "record": record})
        self.run.finish()


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir results/runs` shows all of them."""

    def __init__(self, settings: RunSettings, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise QgoftError("tensorboard.enabled=true needs tensorboard, which is not installed: pip install tensorboard") from error
        self.folder, self.open = str(folder / "tensorboard"), SummaryWriter
        self.writer = SummaryWriter(self.folder)
        self.writer.add_text("sweep", os.environ.get(SWEEP, "none"))

    def log(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        self.writer.close()
        self.writer = self.open(self.folder, purge_step=step + 1)

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(f"reported/{name}", value, record["cost"]["steps"] or 0)
        self.writer.add_text("record", canonical_json(record))
        self.writer.close()
