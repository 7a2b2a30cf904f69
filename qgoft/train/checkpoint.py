"""Checkpoints of a training: one file each, written atomically, verified by checksum before use."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qgoft.errors import format_exception
from qgoft.records import atomic_file, canonical_json
from qgoft.run_id import checkpoint_files
from qgoft.train.training_state import Plain, Tensors, TrainingState

FORMAT = "1"
# A corrupt file leaves its predecessor.
KEPT = 2
# Share of the run time that writing may take, and bytes per second of the first estimate.
SHARE, SPEED = 0.03, 200e6
UNREADABLE = (OSError, SafetensorError, KeyError, ValueError, TypeError)


def total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def checkpoint_bytes(trained: Iterable[Tensor]) -> int:
    """Return the bytes of one checkpoint: trainable parameters, their best values, and AdamW's two moments."""
    return 4 * total_bytes(trained)


class CorruptCheckpoint(ValueError):
    """The content of a checkpoint differs from what was written."""


@dataclass
class Resumed:
    """The step from which a training was resumed, and the hardware of the part before."""

    step: int
    hardware: dict[str, Any]


class CheckpointManager:
    """Checkpoints of one training, in their own directory.

    Args:
        directory: directory of the checkpoints.
        every: seconds between checkpoints; more if writing is slow, so that it takes at most 3% of the time. 0: after every step. None: no
            checkpoints.
        origin: code and packages, which must be unchanged for a bit-exact result.
        hardware: hardware of this part of the run. A part made on other hardware is resumed, and the record says so.
        notify: prints a line for the user.
        check: raises if another process has acquired the run; called before each write.
        lines: returns the lines of the history; `rewind` replaces them by those of a checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        accelerator: Accelerator,
        *,
        every: float | None,
        origin: Plain,
        hardware: dict[str, Any],
        notify: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
        lines: Callable[[], list[str]] = list,
        rewind: Callable[[list[str]], None] = lambda lines: None,
        check: Callable[[], None] = lambda: None,
    ):
        self.directory, self.accelerator, self.origin, self.hardware = directory, accelerator, origin, hardware
        # DeepSpeed keeps the optimiser's shards to itself; FSDP2's are gathered (training_state).
        self.every = None if accelerator.distributed_type == DistributedType.DEEPSPEED else every
        self.notify, self.lines, self.rewind, self.check = notify, lines, rewind, check
        self.resumed: list[Resumed] = []
        self.write_seconds: float | None = None
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """True if enough time has passed since the last checkpoint."""
        if self.every is None:
            return False
        return self.every == 0 or time.monotonic() - self._last >= max(self.every, (self.write_seconds or 0.0) / SHARE)

    def save(self, training: TrainingState, random_state: tuple[Tensors, Plain] | None = None) -> bool:
        """Write a checkpoint, and delete the oldest. All processes call it. Return False if it cannot be written; the run continues."""
        if self.every is None:
            return False
        began = time.monotonic()
        tensors, plain = training.pack(random_state)
        state = {
            **plain,
            "history": self.lines(),
            "origin": self.origin,
            "hardware": self.hardware,
            "resumed": [vars(part) for part in self.resumed],
        }
        is_written = True
        if self.accelerator.is_main_process:
            self.check()
            try:
                _write(self.directory / f"step-{training.result.steps:08}.safetensors", tensors, canonical_json(state))
                for old in checkpoint_files(self.directory)[:-KEPT]:
                    old.unlink(missing_ok=True)
            except (OSError, SafetensorError) as error:
                self.notify(f"qgoft: no checkpoint could be written ({format_exception(error)}); the run continues without it")
                is_written = False
        self._last = time.monotonic()
        self.write_seconds = self._last - began
        return is_written

    def estimate_write_time(self, training: TrainingState) -> None:
        """Estimate the time of the first checkpoint."""
        self.write_seconds = checkpoint_bytes(training.trained.values()) / SPEED

    def load(self, training: TrainingState) -> None:
        """Restore the latest valid checkpoint, if there is one. All processes call it. Skipped checkpoints are reported."""
        if self.every is None:
            return
        path, content = self._choose() if self.accelerator.is_main_process else (None, None)
        if self.accelerator.num_processes > 1:
            box = [path]
            broadcast_object_list(box)
            path = box[0]
        if path is None:
            return
        tensors, state = content or _read(path)
        training.unpack(tensors, state)
        self.rewind(state["history"])
        self.resumed = [Resumed(**part) for part in state["resumed"]]
        self.resumed.append(Resumed(training.result.steps, state["hardware"]))
        if self.accelerator.is_main_process:
            self.notify(f"resuming after step {training.result.steps}")

    def clear(self) -> None:
        """Delete all checkpoints."""
        if self.accelerator.is_main_process:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _choose(self) -> tuple[Path, tuple[Tensors, Plain]] | tuple[None, None]:
        """Return the latest valid checkpoint of the same code, with its content."""
        for path in reversed(checkpoint_files(self.directory)):
            try:
                tensors, state = _read(path)
            except UNREADABLE as error:
                self.notify(f"qgoft: {path.parent.name}/{path.name} is corrupt and not used ({format_exception(error)})")
                continue
            changed = sorted(name for name in {*self.origin, *state["origin"]} if self.origin.get(name) != state["origin"].get(name))
            if not changed:
                return path, (tensors, state)
            self.notify(
                f"qgoft: the checkpoint after step {state['fitted']['steps']} was written with different {', '.join(changed)}; the run starts again"
            )
            self.clear()  # the oldest would be deleted first, but new ones have lower steps
            break
        return None, None


def _write(path: Path, tensors: Tensors, state: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "state": state, "sha256": _checksum(tensors, state)})
    for left in path.parent.glob("*.part"):  # left by a process that was killed while writing
        left.unlink(missing_ok=True)


def _read(path: Path) -> tuple[Tensors, Plain]:
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if header.get("format") != FORMAT:
        raise CorruptCheckpoint(f"its format is {header.get('format')!r}; this version reads {FORMAT!r}")
    if _checksum(tensors, header["state"]) != header.get("sha256"):
        raise CorruptCheckpoint("its checksum does not match")
    state = json.loads(header["state"])
    return tensors, state


def _checksum(tensors: dict[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
