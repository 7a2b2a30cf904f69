"""The orthogonality penalty in a `transformers.Trainer`."""

import math
import warnings
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qgoft.tuners.goft import orthogonality_penalty


class OrthogonalityPenaltyCallback(TrainerCallback):
    """Add lambda times the gradient of the orthogonality penalty once per optimiser step (GOFT, section 4.3).

    Equivalent to a loop that adds `weight * orthogonality_penalty(model)` to the mean loss of a step: also under gradient accumulation
    (an overridden `compute_loss` would count the penalty once per micro-batch), under fp16 loss scaling, and under DDP and FSDP2, because
    the penalty is the same on every rank. The Trainer clips gradients before it calls its callbacks, so this callback clips the sum
    instead:
    it reads `args.max_grad_norm` at the start, sets it to 0 during training, and restores it at the end (not after an exception).

        trainer = Trainer(model, args, callbacks=[OrthogonalityPenaltyCallback(0.01)], ...)

    Args:
        weight: lambda; 0.001 to 0.05 in table 5 of the paper. 0 adds nothing and suppresses the warning about a missing penalty.

    Raises:
        ValueError: the weight is negative or not finite.
    """

    def __init__(self, weight: float) -> None:
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"OrthogonalityPenaltyCallback({weight!r}): expected a finite number of at least 0")
        self.weight = weight
        self._args: TrainingArguments | None = None
        self._max_grad_norm: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Replace the Trainer's clipping of gradients.

        Raises:
            ValueError: the Trainer uses DeepSpeed, which hides the gradients from callbacks.
        """
        assert model is not None
        if args.deepspeed or _uses_deepspeed():
            raise ValueError(
                "OrthogonalityPenaltyCallback needs the gradients, which DeepSpeed does not give to callbacks; use DDP or FSDP2"
            )
        penalty = orthogonality_penalty(model)  # also marks the adapters as penalised
        if self.weight and not penalty.requires_grad:
            warnings.warn(
                "OrthogonalityPenaltyCallback: the model has no trainable qgoft blocks, so there is no penalty to add", stacklevel=2
            )
        # After an exception `on_train_end` was not called, and the same arguments still have the 0 set here.
        if self.weight and (self._args is not args or args.max_grad_norm):
            self._args, self._max_grad_norm, args.max_grad_norm = args, args.max_grad_norm, 0.0

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Add the gradient of the penalty, then clip."""
        assert model is not None
        if not self.weight:
            return
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None:
            # Gradients carry the loss scale until the step, unless the Trainer has unscaled them to log their norm.
            try:
                scaler.unscale_(optimizer.optimizer)
            except RuntimeError as error:
                if "already been called" not in str(error):
                    raise
        add_penalty_gradient(model, self.weight)
        if self._max_grad_norm:
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], self._max_grad_norm)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Restore the Trainer's clipping."""
        if self._args is args and self._max_grad_norm is not None:
            args.max_grad_norm, self._max_grad_norm, self._args = self._max_grad_norm, None, None


def _uses_deepspeed() -> bool:
    """Return True under `accelerate launch --use_deepspeed`, which the arguments of a Trainer do not show."""
    return bool(AcceleratorState._shared_state) and AcceleratorState().distributed_type == DistributedType.DEEPSPEED


def add_penalty_gradient(model: nn.Module, weight: float) -> Tensor:
    """Add the gradient of `weight * orthogonality_penalty(model)` to the gradients of its free blocks.

    Returns:
        The penalty, a scalar without a graph.
    """
    penalty = orthogonality_penalty(model)
    if not penalty.requires_grad:
        return penalty
    parameters = [p for name, p in model.named_parameters() if ".goft_blocks." in f".{name}" and p.requires_grad]
    grads = torch.autograd.grad(weight * penalty, parameters, allow_unused=True)
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is None:
            continue
        if parameter.grad is None:
            parameter.grad = grad.to(parameter.dtype)
        else:
            parameter.grad.add_(grad)
    return penalty.detach()
