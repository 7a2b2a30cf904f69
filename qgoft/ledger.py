"""What a run is, before it is run: its key, its folder, whether it is done. No torch, so that planning takes no time."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft.records import compute_key, read_record
from qgoft.settings import RunSettings, results_folder, settings_in_key
from qgoft.tasks.sources import DataFiles, ModelFiles, find_data, find_model, split_names


@dataclass(frozen=True)
class Identity:
    """A run tied to the very rows and weights it will use."""

    key: str
    folder: Path
    data: DataFiles
    model: ModelFiles

    def read(self) -> dict[str, Any] | None:
        """The record of this key, if there is one."""
        path = self.folder / "record.json"
        return read_record(path) if path.is_file() else None

    @property
    def is_done(self) -> bool:
        record = self.read()
        return record is not None and record["status"] == "done"


def identify(settings: RunSettings, *, processes: int | None = None) -> Identity:
    """Locate data and weights (downloading or generating them once) and compute the key.

    Args:
        processes: of the run, where it is planned from outside; None asks the environment.

    Raises:
        QgoftError: data or weights cannot be had.
    """
    data = find_data(settings.task, settings.data, split_names(settings.task, settings.splits))
    model = find_model(settings.model)
    size = world_size() if processes is None else processes
    key = compute_key(settings_in_key(settings), world_size=size, data_fingerprint=data.fingerprint, model_sha256=model.sha256)
    return Identity(key, results_folder(settings) / key, data, model)


def world_size() -> int:
    """Number of processes of one run, as torchrun tells it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
