"""The loop, on a page."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from qgoft.errors import Diverged
from qgoft.methods import Adapted
from qgoft.settings import RunSettings
from qgoft.train.optim import build_optimizer, build_schedule, count_steps, evaluation_steps
from qgoft.train.sharding import backward

Log = Callable[[dict[str, Any]], None]


@dataclass
class Fitted:
    """What a finished loop says about itself. `seconds` is training alone, without the evaluations."""

    steps: int
    seconds: float
    best_step: int | None = None
    best_score: float | None = None
    scores: list[tuple[int, float | None]] = field(default_factory=list)


def fit(
    adapted: Adapted,
    loader: DataLoader,
    settings: RunSettings,
    accelerator: Accelerator,
    choose: Callable[[], float | None] | None,
    log: Log,
    watch: Callable[[], float | None] | None = None,
) -> Fitted:
    """Train `adapted.model` in place. Where `choose` scores it, the model ends with the weights of its best score, else with the last.

    `watch` measures what drifts, such as the error of orthogonality, at the same steps; None is not logged.

    Raises:
        Diverged: at the first loss or gradient norm that is not finite.
    """
    optim = settings.optim
    if not any(p.requires_grad for p in adapted.model.parameters()):
        accelerator.prepare(adapted.model)
        return Fitted(0, 0.0)
    # Together: FSDP2 and DeepSpeed change the parameters, and only a prepared loader has the length of one process's share.
    plain = build_optimizer(adapted, optim)
    model, optimizer, loader = accelerator.prepare(adapted.model, plain, loader)
    total, per_epoch = count_steps(settings.train, len(loader))
    marks = evaluation_steps(settings.train, total, per_epoch)
    schedule = build_schedule(plain, optim, total)
    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    fitted, best, epoch = Fitted(0, 0.0), None, 0
    clock = time.perf_counter()
    model.train()
    while fitted.steps < total:
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                penalty = adapted.penalty(adapted.model) if adapted.penalty and settings.method.penalty else None
                backward(accelerator, model, loss, None if penalty is None else settings.method.penalty * penalty)
                norm = accelerator.clip_grad_norm_(trained, optim.clip or math.inf) if accelerator.sync_gradients else None
                # fp16 scales the loss up until a gradient overflows, and skips that step: not the end of the run.
                _stop_unless_finite(loss, None if accelerator.scaler else norm, fitted.steps + 1)
                optimizer.step()
                is_step = accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped
                if is_step:
                    schedule.step()
                    fitted.steps += 1
                    if adapted.after_step:
                        adapted.after_step(adapted.model, fitted.steps)
                optimizer.zero_grad()
            if not is_step:
                continue
            lr, of_blocks = schedule.get_last_lr()[0], 0.0 if penalty is None else penalty.item()
            log({"step": fitted.steps, "total": total, "loss": loss.item(), "penalty": of_blocks, "norm": float(norm), "lr": lr})
            if fitted.steps not in marks:
                continue
            fitted.seconds += time.perf_counter() - clock
            error = watch() if watch else None
            if error is not None:
                log({"step": fitted.steps, "total": total, "orthogonality": error})
            if choose:
                score = choose()
                fitted.scores.append((fitted.steps, score))
                log({"step": fitted.steps, "total": total, "score": score})
                is_settled = fitted.steps >= adapted.settled_at
                if is_settled and score is not None and (fitted.best_score is None or score > fitted.best_score):
                    fitted.best_step, fitted.best_score = fitted.steps, score
                    best = [p.detach().clone() for p in trained]
            clock = time.perf_counter()
            if fitted.steps >= total:
                break
        epoch += 1
    fitted.seconds += time.perf_counter() - clock
    if best is not None:
        with torch.no_grad():
            for parameter, value in zip(trained, best, strict=True):
                parameter.copy_(value)
    return fitted


def _stop_unless_finite(loss: Tensor, norm: Tensor | None, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise Diverged(f"the loss is {loss.item()} at step {step}")
    if norm is not None and not math.isfinite(float(norm)):
        raise Diverged(f"the norm of the gradient is {float(norm)} at step {step}")
