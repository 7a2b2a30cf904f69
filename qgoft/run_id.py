"""What a run is, before it is run: its key, its folder, its state; and who works on it. No torch, so that planning takes no time.

The ledger of a sweep is the folder of its runs. A run is planned (nothing there), running (a lease that is alive), or what its record
says: done, failed, oom, diverged, interrupted. Two sweeps on one folder never run one key at the same time (`Lease`).
"""

import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft.config.settings import RunSettings, results_folder, settings_from_record, settings_in_key
from qgoft.errors import QgoftError
from qgoft.lease import ATTEMPTS, Lease, parse, read_text
from qgoft.records import RecordError, compute_key, read_record, write_atomically
from qgoft.tasks.sources import DataFiles, ModelFiles, resolve_data, resolve_model, split_names

# After how many seconds by the clock a run of another machine is shown as dead. For showing alone: clocks of machines differ.
STALE_AFTER = 1800.0
FAILURES = "failure.*.json"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class RunId:
    """A run tied to the very rows and weights it will use."""

    key: str
    folder: Path
    data: DataFiles
    model: ModelFiles

    def read(self) -> dict[str, Any] | None:
        """Return the record of this key, or None if the run has none.

        Raises:
            RecordError: the file is corrupt, not a record, or the record of another run.
        """
        path = self.folder / "record.json"
        if not path.is_file():
            return None
        record = read_record(path)
        if record["key"] != self.key:
            raise RecordError(f"{path}: it is the record of run {record['key'][:16]}, copied here; run {self.key[:16]} is not done")
        return record

    @property
    def is_done(self) -> bool:
        """Whether a whole record says so. A torn one does not: the run is made again and replaces it."""
        try:
            record = self.read()
        except RecordError:
            return False
        return record is not None and record["status"] == "done"

    def delete_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run, which a kill right after its record leaves."""
        for path in (self.folder / CHECKPOINT, *self.folder.glob(ATTEMPTS)):
            shutil.rmtree(path, ignore_errors=True)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints of all attempts by step, the newest last."""
        places = (self.folder / CHECKPOINT, *self.folder.glob(f"{ATTEMPTS}/{CHECKPOINT}"))
        return sorted((path for place in places for path in checkpoint_files(place)), key=checkpoint_step)

    def write_rank_failure(self, rank: int, status: str, reason: str) -> None:
        """A process of the run, not the one that writes the record, says what went wrong in it."""
        write_atomically(self.folder / f"failure.{rank}.json", json.dumps({"status": status, "reason": f"process {rank}: {reason}"}))

    def pop_rank_failure(self) -> tuple[str, str] | None:
        """(status, reason) that a process of the run left; it is removed."""
        found = None
        for path in sorted([*self.folder.glob(FAILURES), *self.folder.glob(f"{ATTEMPTS}/{FAILURES}")], reverse=True):
            left = parse(read_text(path) or "")
            if {"status", "reason"} <= set(left):
                found = left["status"], left["reason"]
            path.unlink(missing_ok=True)
        return found

    def state(self) -> tuple[str, str]:
        """(planned, running, done, failed, ..., torn) and the reason, who runs it, or from where it goes on."""
        try:
            record = self.read()
        except RecordError as error:
            return "torn", str(error)
        if record is not None and record["status"] == "done":
            return "done", ""
        lease = Lease(self.folder)
        owner, stale_seconds = lease.owner(), lease.seconds_since_heartbeat()
        if owner is not None and stale_seconds < STALE_AFTER:
            return "running", owner
        if record is not None:
            return record["status"], record["reason"] or ""
        files = self.checkpoints()
        words = [f"goes on after step {checkpoint_step(files[-1])}"] if files else []
        words += [f"{owner} began it and has shown no sign of life for {stale_seconds / 3600:.1f} h"] if owner is not None else []
        return "planned", "; ".join(words)


def identify(settings: RunSettings, *, processes: int | None = None) -> RunId:
    """Locate data and weights (downloading or generating them once) and compute the key.

    Args:
        processes: of the run, where it is planned from outside; None asks the environment.

    Raises:
        QgoftError: data or weights cannot be had.
    """
    data = resolve_data(settings.task, settings.data, split_names(settings.task, settings.eval_scheme))
    model = resolve_model(settings.model)
    size = world_size() if processes is None else processes
    key = _key(settings, size, data, model)
    return RunId(key, results_folder(settings) / key, data, model)


def rekey(known: RunId, settings: RunSettings, *, processes: int) -> RunId:
    """The identity of other settings on the same rows and weights."""
    key = _key(settings, processes, known.data, known.model)
    return dataclasses.replace(known, key=key, folder=known.folder.parent / key)


def _key(settings: RunSettings, processes: int, data: DataFiles, model: ModelFiles) -> str:
    return compute_key(
        settings_in_key(settings),
        world_size=processes,
        data_fingerprint=data.fingerprint,
        model_sha256=model.sha256,
        model_files=model.files,
    )


def key_from_record(record: dict[str, Any]) -> str:
    """The key that this version of the code gives to what a record says."""
    made = record["provenance"]
    return compute_key(
        settings_in_key(settings_from_record(record)),
        world_size=made["hardware"]["processes"],
        data_fingerprint=made["data"]["fingerprint"],
        model_sha256=made["model"]["sha256"],
        model_files=made["model"].get("files"),
    )


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their step."""
    return sorted(path for path in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d{8}", path.stem))


def checkpoint_step(path: Path) -> int:
    """After which step it was made."""
    return int(path.stem.removeprefix("step-"))


def world_size() -> int:
    """Return the number of processes of one run, from torchrun's environment.

    Raises:
        QgoftError: the variable is not such a number.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdigit() or int(size) < 1:
        raise QgoftError(f"WORLD_SIZE={size} in the environment is not a number of processes; unset WORLD_SIZE")
    return int(size)
