"""The loop, on a page."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
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
from qgoft.train.training_state import TrainingState, TrainResult, read_random, write_random

Batch = dict[str, Tensor]
Log = Callable[[dict[str, Any]], None]
GO_ON, SAVE, STOP = range(3)
# Each one halves fp16's scale of the loss, which starts at 2^16: what still overflows then has no gradient to be found.
SKIPPED = 50


def fit(
    adapted: AdaptedModel,
    loader: DataLoader,
    settings: RunSettings,
    accelerator: Accelerator,
    choose: Callable[[], float | None] | None,
    log: Log,
    measure_drift: Callable[[], float | None] | None = None,
    checkpoints: CheckpointManager | None = None,
    signals: SignalHandler | None = None,
) -> TrainResult:
    """Train `adapted.model` in place. Where `choose` scores it, the model ends with the weights of its best score, else with the last.

    `measure_drift` measures what drifts, such as the error of orthogonality, at the same steps; None is not logged. With `checkpoints`, the training
    goes on from the last one, and leaves some; with `signals`, a signal ends it after the step that it is at, saved.

    Raises:
        Diverged: at the first loss or gradient norm that is not finite; under fp16, where gradients overflow without end.
        Stopped: a signal asked for it.
    """
    optim, signals = settings.optim, signals or SignalHandler()
    if not any(p.requires_grad for p in adapted.model.parameters()):
        accelerator.prepare(adapted.model)
        return TrainResult(0, 0.0)
    generator = loader.sampler.generator
    # Together: FSDP2 and DeepSpeed change the parameters, and only a prepared loader has the length of one process's share.
    plain = build_optimizer(adapted, optim)
    model, optimizer, loader = accelerator.prepare(adapted.model, plain, loader)
    total, per_epoch = count_steps(settings.train, len(loader))
    eval_steps = evaluation_steps(settings.train, total, per_epoch)
    schedule = build_schedule(plain, optim, total)
    # Under fp16 accelerate puts back the step that the optimiser had before a schedule counted it, after every step; the order is right.
    warnings.filterwarnings("ignore", message=r"Seems like `optimizer\.step\(\)` has been overridden")
    at = TrainingState(adapted, plain, schedule, accelerator, generator)
    trained = list(at.trained.values())
    skipped = 0  # steps in a row whose gradients overflowed

    def save_or_stop() -> None:
        """Where a checkpoint is due, or a signal came to any of the processes."""
        wish = STOP if signals.pending is not None else SAVE if checkpoints and checkpoints.is_due else GO_ON
        wish = _the_most(wish, accelerator)
        if wish == GO_ON:
            return
        at.stop_timer()
        is_saved = checkpoints is not None and checkpoints.save(at)
        if wish == STOP:
            signals.raise_pending(_where(at, is_saved))
        at.start_timer()

    def look() -> None:
        """Measure what drifts, and score for the choice. It may take long: a signal breaks it off, and what is saved is the training before."""
        at.stop_timer()
        before = read_random()
        try:
            # Of several processes, one that leaves would keep the others waiting.
            with signals.immediate() if accelerator.num_processes == 1 else nullcontext():
                error = measure_drift() if measure_drift else None
                score = choose() if choose else None
        except Stopped:
            is_saved = checkpoints is not None and checkpoints.save(at, before)
            signals.raise_pending(_where(at, is_saved))
            write_random(before)  # whoever was asked lets the run go on
            look()
            return
        step = at.result.steps
        if error is not None:
            log({"step": step, "total": total, "orthogonality": error})
        if choose:
            at.result.scores.append((step, score))
            log({"step": step, "total": total, "score": score})
            if step >= adapted.selectable_from and score is not None and (at.result.best_score is None or score > at.result.best_score):
                at.save_best(score)
        at.is_scored = True
        at.start_timer()

    if checkpoints:
        checkpoints.forecast(at)
        checkpoints.load(at)
    model.train()
    with signals.defer():
        at.start_timer()
        if not at.is_scored:
            look()
        # To start an epoch draws from the random generators too: they are put back once it has been started again.
        random_state = read_random() if at.batches else None
        while at.result.steps < total and not at.is_over:
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(at.epoch)
            at.shuffle = generator.get_state()
            batches = skip_first_batches(loader, at.batches) if at.batches else loader
            for group in _groups(batches, settings.train.gradient_accumulation_steps):
                if random_state is not None:
                    random_state = write_random(random_state)
                at.batches += len(group)
                losses = []
                for number, (batch, weight) in enumerate(zip(group, _weights(group, accelerator), strict=True), start=1):
                    is_last = accelerator.sync_gradients = number == len(group)
                    with nullcontext() if is_last else accelerator.no_sync(model):
                        loss = weight * model(**batch).loss
                        losses.append(loss.detach())
                        penalty = adapted.penalty(adapted.model) if adapted.penalty and adapted.penalty_weight else None
                        pull = None if penalty is None else adapted.penalty_weight * penalty
                        # accelerate divides by the accumulation of a whole step; an epoch may end within one.
                        backward(accelerator, model, loss, pull, settings.train.gradient_accumulation_steps / len(group))
                norm = accelerator.clip_grad_norm_(trained, optim.max_grad_norm or math.inf)
                mean = _mean(losses, accelerator)
                # fp16 scales the loss up until a gradient overflows, and skips that step: not the end of the run.
                _stop_unless_finite(mean, None if accelerator.scaler else norm, at.result.steps + 1)
                optimizer.step()
                # A fused optimiser is called even then, and leaves the parameters alone: only the gradients, unscaled by now, tell.
                is_step = not accelerator.optimizer_step_was_skipped and (accelerator.scaler is None or math.isfinite(float(norm)))
                if is_step:
                    schedule.step()
                    at.result.steps += 1
                    if adapted.after_step:
                        adapted.after_step(adapted.model, at.result.steps)
                optimizer.zero_grad()
                if not is_step:
                    skipped += 1
                    if skipped == SKIPPED:
                        raise Diverged(f"the gradients of {SKIPPED} batches in a row overflow in fp16, after step {at.result.steps}")
                    save_or_stop()
                    continue
                skipped = 0
                lr, of_blocks = schedule.get_last_lr()[0], 0.0 if penalty is None else penalty.item()
                step = at.result.steps
                log({"step": step, "total": total, "loss": mean, "penalty": of_blocks, "norm": float(norm), "lr": lr})
                at.is_scored = step not in eval_steps
                save_or_stop()
                if not at.is_scored:
                    look()
                if step >= total:
                    break
            if random_state is not None:
                random_state = write_random(random_state)
            at.epoch, at.batches = at.epoch + 1, 0
        at.stop_timer()
        at.restore_best()
        if not at.is_over:
            at.is_over = True
            save_or_stop()
    return at.result


def _the_most(wish: int, accelerator: Accelerator) -> int:
    """The strongest wish of all processes, so that all do the same."""
    if accelerator.num_processes == 1:
        return wish
    return int(
        accelerator.reduce(torch.tensor([float(wish == level) for level in (GO_ON, SAVE, STOP)], device=accelerator.device)).nonzero().max()
    )


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches that make one step; at the end of an epoch there may be fewer."""
    batches = iter(batches)
    while group := list(itertools.islice(batches, size)):
        yield group


def count_items(batch: Batch) -> int:
    """What the mean loss of a batch is a mean of: the words of its answers, where labels stand under every word, else its rows."""
    labels = batch.get("labels")
    if labels is not None and labels.shape == batch.get("input_ids", labels[:0]).shape:
        return int((labels[:, 1:] != IGNORE_INDEX).sum())
    return len(next(iter(batch.values())))


def _weights(group: list[Batch], accelerator: Accelerator) -> list[float]:
    """What the losses of a step's batches count for, so that all its items count alike, however they are divided among passes and processes:
    a mean of means would give the words of short answers more. The mean of the weights is 1."""
    if len(group) == 1 and accelerator.num_processes == 1:
        return [1.0]
    items = torch.tensor([float(count_items(batch)) for batch in group], device=accelerator.device)
    total = accelerator.reduce(items.sum()) if accelerator.num_processes > 1 else items.sum()
    return (items * len(group) * accelerator.num_processes / total).tolist()


def _mean(losses: list[Tensor], accelerator: Accelerator) -> float:
    """The loss of all items of a step."""
    mean = torch.stack(losses).mean()
    return (mean if accelerator.num_processes == 1 else accelerator.reduce(mean, "mean")).item()


def _where(at: TrainingState, is_saved: bool) -> str:
    return f" after step {at.result.steps}{'; the same command goes on from there' if is_saved else ''}"


def _stop_unless_finite(loss: float, norm: Tensor | None, step: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} at step {step}")
    if norm is not None and not math.isfinite(float(norm)):
        raise Diverged(f"the norm of the gradient is {float(norm)} at step {step}")
