"""Optimiser, learning rate schedule, and evaluation steps."""

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from qgoft.config.settings import OptimSettings, TrainSettings
from qgoft.errors import QgoftError
from qgoft.methods import AdaptedModel


def count_steps(train: TrainSettings, batches_per_epoch: int) -> tuple[int, int]:
    """Return the optimiser steps of the run and of one epoch. With epochs and max_steps both set, the earlier end counts."""
    per_epoch = math.ceil(batches_per_epoch / train.gradient_accumulation_steps)
    limits = []
    if train.epochs is not None:
        limits.append(math.ceil(train.epochs * per_epoch))
    if train.max_steps is not None:
        limits.append(train.max_steps)
    return min(limits), per_epoch


def check_schedule(train: TrainSettings, optim: OptimSettings, total: int, per_epoch: int) -> None:
    """Reject a training length that rounds to zero, and a warmup that does not end.

    Raises:
        QgoftError: names the setting.
    """
    if train.max_steps is None and train.epochs is not None and train.epochs * per_epoch < 1:
        raise QgoftError(f"train.epochs={train.epochs:g} is less than one of the {per_epoch} steps of an epoch; increase train.epochs")
    # A deliberately short run (make smoke) keeps the recipe's warmup.
    if train.max_steps is None and optim.warmup >= 1 and optim.warmup > total:
        raise QgoftError(f"optim.warmup={optim.warmup:g} steps exceed the {total} steps of training; reduce it, or set a fraction")


def evaluation_steps(train: TrainSettings, total: int, per_epoch: int) -> set[int]:
    """Return the steps after which validation is evaluated. They include the last step, except with `eval_steps` if it has multiples."""
    if train.eval_steps is not None:
        return set(range(train.eval_steps, total + 1, train.eval_steps)) or {total}
    if train.num_evals is None:
        return {*range(per_epoch, total + 1, per_epoch), total}
    return {round(total * (k + 1) / train.num_evals) for k in range(train.num_evals)} | {total}


def build_optimizer(adapted: AdaptedModel, optim: OptimSettings) -> Optimizer:
    """Build a fused AdamW with two learning rates, of the method and of the head.

    Weight decay pulls free blocks towards zero, and angles towards the identity.
    """
    spared = set() if optim.weight_decay_on_biases else _biases_and_norms(adapted.model)
    rates, decays = (optim.lr, optim.head_lr), (optim.weight_decay, 0.0)
    groups: list[dict[str, Any]] = [{"params": [], "lr": rate, "weight_decay": decay} for decay in decays for rate in rates]
    for name, parameter in adapted.model.named_parameters():
        if parameter.requires_grad:
            groups[(name in adapted.head_names) + 2 * (name in spared)]["params"].append(parameter)
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def _biases_and_norms(model: nn.Module) -> set[str]:
    """Return the parameters without weight decay, by the rule of transformers' Trainer."""
    norms = {f"{name}.{part}" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm) for part in ("weight", "bias")}
    return norms | {name for name, _ in model.named_parameters() if "bias" in name}


def build_schedule(optimizer: Optimizer, optim: OptimSettings, total: int) -> LRScheduler:
    rounded = {"up": math.ceil, "down": math.floor}[optim.warmup_rounding]
    warmup = rounded(optim.warmup * total) if optim.warmup < 1 else int(optim.warmup)
    warmup = min(warmup, total)
    if optim.min_lr:
        # transformers' schedule would end each group at the same fraction of its learning rate.
        floors = [optim.min_lr / group["lr"] for group in optimizer.param_groups]
        return LambdaLR(optimizer, [partial(_cosine_to, floor, warmup, total) for floor in floors])
    name = "constant_with_warmup" if optim.schedule == "constant" else optim.schedule
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)


def _cosine_to(floor: float, warmup: int, total: int, step: int) -> float:
    """Return the learning rate factor after a step: linear warmup, then a half cosine down to the minimum. The cosine is counted from the
    first step, as in timm's CosineLRScheduler, which the one protocol with a minimum follows.
    """
    if step < warmup:
        return step / max(1, warmup)
    passed = step / max(1, total)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, passed))) / 2
