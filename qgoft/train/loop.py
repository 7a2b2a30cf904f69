"""The training loop."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor
from torch.utils.data import DataLoader

from qgoft.config.settings import RunSettings
from qgoft.errors import Diverged
from qgoft.methods import AdaptedModel
from qgoft.tasks.decoder.prompts import IGNORE_INDEX
from qgoft.train.checkpoint import CheckpointManager
from qgoft.train.distributed import backward
from qgoft.train.interrupts import SignalHandler, Stopped
from qgoft.train.optim import build_optimizer, build_schedule, count_steps, evaluation_steps
from qgoft.train.training_state import Plain, Tensors, TrainingState, TrainResult, read_random, write_random

Batch = dict[str, Tensor]
CONTINUE, SAVE, STOP = range(3)
# Each overflow halves fp16's loss scale, which starts at 2^16: after 50 overflows in a row it is exhausted.
MAX_OVERFLOWS = 50


@dataclass(frozen=True)
class LoopHooks:
    """Callbacks of the loop.

    Attributes:
        selection_score: returns the selection score, higher is better; with it, the best-scoring weights are restored at the end.
        log: takes a line of the history.
        measure_drift: returns a drift such as the orthogonality error, evaluated together with the selection score; None is not logged.
        checkpoints: saves and resumes the training run.
        signals: end the training after the current step, with a checkpoint.
    """

    selection_score: Callable[[], float | None] | None = None
    log: Callable[[dict[str, Any]], None] = lambda line: None
    measure_drift: Callable[[], float | None] | None = None
    checkpoints: CheckpointManager | None = None
    signals: SignalHandler = field(default_factory=SignalHandler)


def fit(adapted: AdaptedModel, loader: DataLoader, settings: RunSettings, accelerator: Accelerator, hooks: LoopHooks) -> TrainResult:
    """Train `adapted.model` in place.

    Raises:
        Diverged: a loss or gradient norm is not finite, or under fp16 the gradients overflow in every step.
        Stopped: a signal was received.
    """
    if any(p.requires_grad for p in adapted.model.parameters()):
        return Loop(adapted, loader, settings, accelerator, hooks).run()
    accelerator.prepare(adapted.model)
    return TrainResult(0, 0.0)


class Loop:
    """Runs the optimisation steps of one training run, whose state is a `TrainingState`."""

    def __init__(
        self, adapted: AdaptedModel, loader: DataLoader, settings: RunSettings, accelerator: Accelerator, hooks: LoopHooks
    ) -> None:
        self.adapted, self.settings, self.accelerator, self.hooks = adapted, settings, accelerator, hooks
        generator = loader.sampler.generator  # type: ignore[attr-defined]
        base_optimizer = build_optimizer(adapted, settings.optim)
        # Prepared together: FSDP2 and DeepSpeed replace the parameters, and only a prepared loader has the length of one process's share.
        self.model, self.optimizer, self.loader = accelerator.prepare(adapted.model, base_optimizer, loader)
        self.total_steps, per_epoch = count_steps(settings.train, len(self.loader))
        self.eval_steps = evaluation_steps(settings.train, self.total_steps, per_epoch)
        self.schedule = build_schedule(base_optimizer, settings.optim, self.total_steps)
        # Under fp16 accelerate restores the unwrapped optimizer.step after every step, so the schedule misses its own patch of it.
        warnings.filterwarnings("ignore", message=r"Seems like `optimizer\.step\(\)` has been overridden")
        self.state = TrainingState(adapted, base_optimizer, self.schedule, accelerator, generator)
        self.trained = list(self.state.trained.values())
        self.overflows = 0  # consecutive
        self.penalty: Tensor | None = None  # of the last micro-batch, unweighted

    def run(self) -> TrainResult:
        """Train from the last checkpoint, or from the start, to the end."""
        state, checkpoints = self.state, self.hooks.checkpoints
        if checkpoints:
            checkpoints.estimate_write_time(state)
            checkpoints.load(state)
        self.model.train()
        with self.hooks.signals.defer():
            state.start_timer()
            if not state.is_evaluated:
                self.evaluate()
            for micro_batches in self.step_batches():
                loss = self.forward_backward(micro_batches)
                norm = self.optimizer_step(loss)
                if norm is not None:
                    self.log_step(loss, norm)
                    state.is_evaluated = state.result.steps not in self.eval_steps
                self.checkpoint_or_stop()
                if not state.is_evaluated:
                    self.evaluate()
            state.stop_timer()
            state.restore_best()
            if not state.is_finished:
                state.is_finished = True
                self.checkpoint_or_stop()
        return state.result

    def step_batches(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of every remaining step, epoch by epoch."""
        state = self.state
        # Starting an epoch draws from the random generators, so a resumed training restores them after its first batch is fetched.
        random_state = read_random() if state.batches else None
        while state.result.steps < self.total_steps and not state.is_finished:
            if hasattr(self.loader, "set_epoch"):
                self.loader.set_epoch(state.epoch)
            state.shuffle = state.generator.get_state()
            batches = skip_first_batches(self.loader, state.batches) if state.batches else self.loader
            for group in _chunks(batches, self.settings.train.gradient_accumulation_steps):
                if random_state is not None:
                    write_random(random_state)
                    random_state = None
                state.batches += len(group)
                yield group
                if state.result.steps >= self.total_steps:
                    break
            if random_state is not None:
                write_random(random_state)
                random_state = None
            state.epoch, state.batches = state.epoch + 1, 0

    def forward_backward(self, group: list[Batch]) -> float:
        """Accumulate the gradients of loss and penalty over the micro-batches of a step; return the mean loss of its items."""
        adapted, accelerator, losses = self.adapted, self.accelerator, []
        for number, (batch, weight) in enumerate(zip(group, _loss_weights(group, accelerator), strict=True), start=1):
            is_last = number == len(group)
            accelerator.sync_gradients = is_last
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                loss = weight * self.model(**batch).loss
                losses.append(loss.detach())
                self.penalty = adapted.penalty(adapted.model) if adapted.penalty and adapted.penalty_weight else None
                weighted = None if self.penalty is None else adapted.penalty_weight * self.penalty
                # accelerate divides by gradient_accumulation_steps, but an epoch may end with fewer micro-batches.
                backward(accelerator, self.model, loss, weighted, self.settings.train.gradient_accumulation_steps / len(group))
        mean = torch.stack(losses).mean()
        return float((mean if accelerator.num_processes == 1 else accelerator.reduce(mean, "mean")).item())

    def optimizer_step(self, loss: float) -> float | None:
        """Clip the gradients and step; return their norm, or None if fp16 has skipped the step."""
        accelerator, state = self.accelerator, self.state
        norm = float(accelerator.clip_grad_norm_(self.trained, self.settings.optim.max_grad_norm or math.inf))
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {state.result.steps + 1}")
        # fp16 increases the loss scale until a gradient overflows, and skips that step, so overflows are normal.
        if not accelerator.scaler and not math.isfinite(norm):
            raise Diverged(f"the norm of the gradient is {norm} at step {state.result.steps + 1}")
        self.optimizer.step()
        # A fused optimiser is called even for a skipped step and leaves the parameters unchanged; only the norm shows it.
        is_step = not accelerator.optimizer_step_was_skipped and math.isfinite(norm)
        if is_step:
            self.schedule.step()
            state.result.steps += 1
            if self.adapted.after_step:
                self.adapted.after_step(self.adapted.model, state.result.steps)
        self.optimizer.zero_grad()
        self.overflows = 0 if is_step else self.overflows + 1
        if self.overflows == MAX_OVERFLOWS:
            raise Diverged(f"the gradients of {MAX_OVERFLOWS} steps in a row overflow in fp16, after step {state.result.steps}")
        return norm if is_step else None

    def log_step(self, loss: float, norm: float) -> None:
        """Log loss, unweighted penalty, gradient norm and learning rate of a step."""
        step, lr = self.state.result.steps, self.schedule.get_last_lr()[0]
        penalty = 0.0 if self.penalty is None else self.penalty.item()
        self.hooks.log({"step": step, "total": self.total_steps, "loss": loss, "penalty": penalty, "norm": norm, "lr": lr})

    def evaluate(self) -> None:
        """Measure the drift and the selection score.

        A signal interrupts the evaluation, which may take long; the checkpoint then holds the state before it.
        """
        state, hooks, before = self.state, self.hooks, read_random()
        state.stop_timer()
        while True:
            try:
                # One of several processes must not leave the others waiting in a collective.
                with hooks.signals.immediate() if self.accelerator.num_processes == 1 else nullcontext():
                    drift = hooks.measure_drift() if hooks.measure_drift else None
                    score = hooks.selection_score() if hooks.selection_score else None
                break
            except Stopped:
                self._save_and_raise(before)
                write_random(before)  # the handler decided to continue
        step = state.result.steps
        if drift is not None:
            hooks.log({"step": step, "total": self.total_steps, "orthogonality": drift})
        if hooks.selection_score:
            state.result.scores.append((step, score))
            hooks.log({"step": step, "total": self.total_steps, "score": score})
            best = state.result.best_score
            if step >= self.adapted.selectable_from and score is not None and (best is None or score > best):
                state.save_best(score)
        state.is_evaluated = True
        state.start_timer()

    def checkpoint_or_stop(self) -> None:
        """Write a checkpoint if one is due; after a signal to any process, write one and stop."""
        checkpoints, signals = self.hooks.checkpoints, self.hooks.signals
        action = STOP if signals.pending is not None else SAVE if checkpoints and checkpoints.is_due else CONTINUE
        if self.accelerator.num_processes > 1:  # all processes take the strongest action of any
            action = int(self.accelerator.gather(torch.tensor([action], device=self.accelerator.device)).max())
        if action == CONTINUE:
            return
        self.state.stop_timer()
        if action == STOP:
            self._save_and_raise(None)
        elif checkpoints:
            checkpoints.save(self.state)
        self.state.start_timer()

    def _save_and_raise(self, random_state: tuple[Tensors, Plain] | None) -> None:
        is_saved = self.hooks.checkpoints is not None and self.hooks.checkpoints.save(self.state, random_state)
        resume = "; the same command resumes from there" if is_saved else ""
        self.hooks.signals.raise_pending(f" after step {self.state.result.steps}{resume}")


def _chunks(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` batches; the last may be shorter."""
    batches = iter(batches)
    while group := list(itertools.islice(batches, size)):
        yield group


def count_items(batch: Batch) -> int:
    """Return the number of items in the mean loss of a batch: answer tokens if there is a label per token, otherwise rows."""
    labels = batch.get("labels")
    if labels is not None and labels.shape == batch.get("input_ids", labels[:0]).shape:
        return int((labels[:, 1:] != IGNORE_INDEX).sum())
    return len(next(iter(batch.values())))


def _loss_weights(group: list[Batch], accelerator: Accelerator) -> list[float]:
    """Return the weights of the micro-batch losses, with mean 1, so that all items of a step count equally however they are divided.

    A mean of means would give more weight to the tokens of short answers.
    """
    if len(group) == 1 and accelerator.num_processes == 1:
        return [1.0]
    items = torch.tensor([float(count_items(batch)) for batch in group], device=accelerator.device)
    total = accelerator.reduce(items.sum()) if accelerator.num_processes > 1 else items.sum()
    weights: list[float] = (items * len(group) * accelerator.num_processes / total).tolist()
    return weights
