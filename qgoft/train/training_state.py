"""State of a training as plain tensors and data, so that it can be resumed bit-exactly.

The frozen base is not part of it: it is rebuilt from its files and the seed.
"""

import dataclasses
import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from qgoft.methods import AdaptedModel
from qgoft.train.distributed import shard_like, unshard
from qgoft.train.memory import peak_memory

Tensors = dict[str, Tensor]
Plain = dict[str, Any]  # JSON data


@dataclass
class TrainResult:
    """Result of a training. `seconds` excludes evaluations; `peak_memory` is in bytes, the maximum over all parts of a resumed training."""

    steps: int
    seconds: float
    best_step: int | None = None
    best_score: float | None = None
    scores: list[tuple[int, float | None]] = field(default_factory=list)
    peak_memory: int | None = None

    def note_memory(self) -> None:
        """Include the peak memory of this process."""
        peaks = [peak for peak in (self.peak_memory, peak_memory()) if peak is not None]
        self.peak_memory = max(peaks, default=None)

    @classmethod
    def from_plain(cls, data: Plain) -> "TrainResult":
        """Build the result from plain data; raises TypeError, KeyError or ValueError if the data are invalid."""
        return cls(**{**data, "scores": [(step, score) for step, score in data["scores"]]})


@dataclass
class TrainingState:
    """A training between two optimiser steps.

    Attributes:
        generator: shuffles the rows; `shuffle` is its state at the start of the epoch.
        batches: batches of this epoch that this process has used.
        is_evaluated: False if an evaluation after the last step is due.
        is_finished: training has finished.
        best: trainable parameters of the best score.
    """

    adapted: AdaptedModel
    optimizer: Optimizer
    schedule: LRScheduler
    accelerator: Accelerator
    generator: torch.Generator
    result: TrainResult = field(default_factory=lambda: TrainResult(0, 0.0))
    best: Tensors | None = None
    epoch: int = 0
    batches: int = 0
    shuffle: Tensor | None = None
    is_evaluated: bool = True
    is_finished: bool = False
    _since: float | None = None

    def __post_init__(self) -> None:
        self.trained = {name: p for name, p in self.adapted.model.named_parameters() if p.requires_grad}

    def start_timer(self) -> None:
        """Start the timer."""
        self._since = time.perf_counter()

    def stop_timer(self) -> None:
        """Stop the timer."""
        if self._since is not None:
            self.result.seconds += time.perf_counter() - self._since
        self._since = None

    def save_best(self, score: float) -> None:
        self.result.best_step, self.result.best_score = self.result.steps, score
        self.best = {name: p.detach().clone() for name, p in self.trained.items()}

    def restore_best(self) -> None:
        """Restore the parameters of the best score, if a selection has stored them."""
        if self.best is not None:
            _copy(self.trained, self.best)

    def pack(self, random_state: tuple[Tensors, Plain] | None = None) -> tuple[Tensors, Plain]:
        """Return the state as tensors in main memory and plain data. All processes call it.

        Args:
            random_state: state of the random generators to save instead of the current one.
        """
        tensors: Tensors = {f"trained.{name}": p.detach() for name, p in self.trained.items()}
        if self.best is not None and not self.is_finished:
            tensors |= {f"best.{name}": value for name, value in self.best.items()}
        self.result.note_memory()
        plain: Plain = {
            "fitted": dataclasses.asdict(self.result),
            "epoch": self.epoch,
            "batches": self.batches,
            "is_evaluated": self.is_evaluated,
            "is_finished": self.is_finished,
        }
        if self.adapted.extra_state is not None:
            remembered, plain["memory"] = self.adapted.extra_state.read(self.adapted.model)
            tensors |= {f"memory.{name}": value for name, value in remembered.items()}
        if not self.is_finished:
            state = self.optimizer.state_dict()
            for number, values in state["state"].items():
                tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
            plain["groups"] = state["param_groups"]
            plain["schedule"] = self.schedule.state_dict()
            plain["scaler"] = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
            assert self.shuffle is not None
            tensors["shuffle"] = self.shuffle
        mine = random_state or read_random()
        plain["random"] = []
        for rank, (states, more) in enumerate(gather_object([mine]) if self.accelerator.num_processes > 1 else [mine]):
            tensors |= {f"random.{rank}.{name}": value for name, value in states.items()}
            plain["random"].append(more)
        return {name: unshard(value.detach()).cpu().contiguous() for name, value in tensors.items()}, plain

    def unpack(self, tensors: Tensors, plain: Plain) -> None:
        """Restore the state of `pack`. All processes call it.

        Raises:
            KeyError, ValueError, TypeError, RuntimeError: the state belongs to another training.
        """
        _copy(self.trained, _below(tensors, "trained."))
        self.best = _below(tensors, "best.") or None
        if self.best is not None:
            self.best = {name: shard_like(self.trained[name], value) for name, value in self.best.items()}
        self.result = TrainResult.from_plain(plain["fitted"])
        self.epoch, self.batches = plain["epoch"], plain["batches"]
        self.is_evaluated, self.is_finished = plain["is_evaluated"], plain["is_finished"]
        if self.adapted.extra_state is not None:
            self.adapted.extra_state.write(self.adapted.model, _below(tensors, "memory."), plain["memory"])
        if not self.is_finished:
            states: dict[int, Tensors] = {}
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            for name, value in _below(tensors, "optimizer.").items():
                number, _, last = name.partition(".")
                moment = value.shape == parameters[int(number)].shape
                states.setdefault(int(number), {})[last] = shard_like(parameters[int(number)], value) if moment else value
            groups = [{name: tuple(v) if isinstance(v, list) and name != "params" else v for name, v in g.items()} for g in plain["groups"]]
            self.optimizer.load_state_dict({"state": states, "param_groups": groups})
            self.schedule.load_state_dict(plain["schedule"])
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(plain["scaler"])
            self.shuffle = tensors["shuffle"]
            self.generator.set_state(self.shuffle)
        rank = self.accelerator.process_index
        write_random((_below(tensors, f"random.{rank}."), plain["random"][rank]))


def read_random() -> tuple[Tensors, Plain]:
    """Return the state of every random generator used in training (mainly for dropout)."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, words, spare = random.getstate()
    tensors["python"] = torch.tensor(words, dtype=torch.int64)
    return tensors, {"numpy": [int(position), int(has_gauss), float(gauss)], "python": [version, spare]}


def write_random(state: tuple[Tensors, Plain]) -> None:
    """Restore the state of `read_random`."""
    tensors, plain = state
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available() and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"])
    position, has_gauss, gauss = plain["numpy"]
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, spare = plain["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), spare))


@torch.no_grad()
def _copy(parameters: dict[str, torch.nn.Parameter], values: Tensors) -> None:
    if set(parameters) != set(values):
        raise KeyError(sorted(set(parameters) ^ set(values))[0])
    for name, parameter in parameters.items():
        if parameter.shape != values[name].shape:
            raise ValueError(f"{name} has the shape {tuple(values[name].shape)}, not {tuple(parameter.shape)}")
        parameter.copy_(shard_like(parameter, values[name]))


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
