"""Identity of a run: its key, directory and status, known before it starts. Does not import torch, so that planning is fast.

The status of a run comes from its directory: planned (empty), running (an unexpired lease), or the status in its record.
"""

import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft.config.keys import settings_in_key
from qgoft.config.settings import RunSettings, settings_from_record
from qgoft.errors import QgoftError
from qgoft.lease import ATTEMPT_GLOB, Lease, parse, read_text
from qgoft.records import RecordError, compute_key, read_record, write_atomically
from qgoft.tasks.sources import DataFiles, ModelFiles, resolve_data, resolve_model, split_names

# Seconds without a heartbeat, by the wall clock, after which a run of another host is shown as stale. Display only, since clocks of hosts
# differ.
STALE_AFTER = 1800.0
FAILURE_GLOB = "failure.*.json"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class RunId:
    """A run tied to the exact rows and weights that it will use."""

    key: str
    directory: Path
    data: DataFiles
    model: ModelFiles

    def read(self) -> dict[str, Any] | None:
        """Return the record of this key, or None if the run has none.

        Raises:
            RecordError: the file is corrupt, not a record, or the record of another run.
        """
        path = self.directory / "record.json"
        if not path.is_file():
            return None
        record = read_record(path)
        if record["key"] != self.key:
            raise RecordError(f"{path} is the record of run {record['key'][:16]} (a copy?); run {self.key[:16]} has no record")
        return record

    @property
    def is_done(self) -> bool:
        """True if a valid record with status done exists. A run with a corrupt record is repeated."""
        try:
            record = self.read()
        except RecordError:
            return False
        return record is not None and record["status"] == "done"

    def delete_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run, which a kill right after writing the record leaves behind."""
        for path in (self.directory / CHECKPOINT, *self.directory.glob(ATTEMPT_GLOB)):
            shutil.rmtree(path, ignore_errors=True)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints of all attempts by step, the newest last."""
        places = (self.directory / CHECKPOINT, *self.directory.glob(f"{ATTEMPT_GLOB}/{CHECKPOINT}"))
        return sorted((path for place in places for path in checkpoint_files(place)), key=checkpoint_step)

    def write_rank_failure(self, rank: int, status: str, reason: str) -> None:
        """Write the failure of a rank that does not write the record."""
        write_atomically(self.directory / f"failure.{rank}.json", json.dumps({"status": status, "reason": f"process {rank}: {reason}"}))

    def pop_rank_failure(self) -> tuple[str, str] | None:
        """Return the (status, reason) that a rank has written, and delete it; None if there is none."""
        found = None
        for path in sorted([*self.directory.glob(FAILURE_GLOB), *self.directory.glob(f"{ATTEMPT_GLOB}/{FAILURE_GLOB}")], reverse=True):
            left = parse(read_text(path) or "")
            if {"status", "reason"} <= set(left):
                found = left["status"], left["reason"]
            path.unlink(missing_ok=True)
        return found

    def state(self) -> tuple[str, str]:
        """Return the status (planned, running, done, failed, ..., corrupt) and its reason: the owner, or the step to resume from."""
        try:
            record = self.read()
        except RecordError as error:
            return "corrupt", str(error)
        if record is not None and record["status"] == "done":
            return "done", ""
        lease = Lease(self.directory)
        owner, stale_seconds = lease.owner(), lease.seconds_since_heartbeat()
        if owner is not None and stale_seconds < STALE_AFTER:
            return "running", owner
        if record is not None:
            return record["status"], record["reason"] or ""
        files = self.checkpoints()
        words = [f"resumes after step {checkpoint_step(files[-1])}"] if files else []
        words += [f"started by {owner}; last heartbeat {stale_seconds / 3600:.1f} h ago"] if owner is not None else []
        return "planned", "; ".join(words)


def results_directory(settings: RunSettings) -> Path:
    """Return the directory of the runs."""
    return Path(settings.results.root) / "runs"


def identify(settings: RunSettings, *, processes: int | None = None) -> RunId:
    """Locate rows and weights (downloading or generating them once) and compute the key.

    Args:
        processes: number of processes of the run; None reads it from the environment.

    Raises:
        QgoftError: rows or weights are not available.
    """
    data = resolve_data(settings.task, settings.data, split_names(settings.task, settings.eval_scheme))
    model = resolve_model(settings.model)
    size = world_size() if processes is None else processes
    key = _key(settings, size, data, model)
    return RunId(key, results_directory(settings) / key, data, model)


def rekey(known: RunId, settings: RunSettings, *, processes: int) -> RunId:
    """Return the identity of other settings on the same rows and weights."""
    key = _key(settings, processes, known.data, known.model)
    return dataclasses.replace(known, key=key, directory=known.directory.parent / key)


def _key(settings: RunSettings, processes: int, data: DataFiles, model: ModelFiles) -> str:
    return compute_key(
        settings_in_key(settings),
        world_size=processes,
        data_fingerprint=data.fingerprint,
        model_sha256=model.sha256,
        model_files=model.files,
    )


def key_from_record(record: dict[str, Any]) -> str:
    """Compute the key that the current code gives to the content of a record."""
    made = record["provenance"]
    return compute_key(
        settings_in_key(settings_from_record(record)),
        world_size=made["hardware"]["processes"],
        data_fingerprint=made["data"]["fingerprint"],
        model_sha256=made["model"]["sha256"],
        model_files=made["model"].get("files"),
    )


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the checkpoints in a directory by step."""
    return sorted(path for path in directory.glob("step-*.safetensors") if re.fullmatch(r"step-\d{8}", path.stem))


def checkpoint_step(path: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def world_size() -> int:
    """Return the number of processes of this run, from the environment of torchrun.

    Raises:
        QgoftError: WORLD_SIZE is not a positive integer.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdigit() or int(size) < 1:
        raise QgoftError(f"WORLD_SIZE={size} in the environment is not a number of processes; unset WORLD_SIZE")
    return int(size)
