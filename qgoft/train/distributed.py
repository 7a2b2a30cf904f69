"""Sharded training: the requirements of FSDP2 and DeepSpeed (configs/accelerate)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if every process holds only a shard of the model or of the optimiser."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def check_sharding(accelerator: Accelerator, settings: RunSettings, per_process: int) -> None:
    """Reject unsupported setups, and pass the run's settings to DeepSpeed, whose own file must not decide them.

    Raises:
        QgoftError: no GPU, FSDP version 1, or DeepSpeed stage 3.
    """
    asked = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]
    if asked and accelerator.device.type == "cpu":
        # accelerate would silently leave the model unsharded
        raise QgoftError(
            f"{asked[0]} divides a model among GPUs, and this machine has none; leave ACCELERATE out (NPROC alone works on CPUs)"
        )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise QgoftError(
            "FSDP's version 1 cannot hold frozen and trained weights in one unit; set fsdp_version: 2 (configs/accelerate/fsdp2.yaml)"
        )
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    if config["zero_optimization"]["stage"] > 2:
        raise QgoftError(
            f"DeepSpeed's stage {config['zero_optimization']['stage']} divides the weights, and answers are written by one process at a time; allowed "
            "are stages 0 to 2, or configs/accelerate/fsdp2.yaml to divide weights"
        )
    config["gradient_clipping"] = settings.optim.max_grad_norm or 0.0
    config["gradient_accumulation_steps"] = settings.train.gradient_accumulation_steps
    config["train_micro_batch_size_per_gpu"] = per_process


def backward(accelerator: Accelerator, model: nn.Module, loss: Tensor, penalty: Tensor | None, share: float = 1.0) -> None:
    """Compute the gradients of the loss and of the weighted penalty, in one backward pass if possible.

    FSDP2 adds a unit's gradients on its own stream, while the penalty's come from the parameters themselves, so they need two passes.

    Args:
        share: share of a step's gradient that this call adds, times the accumulation steps, by which accelerate divides.
    """
    if penalty is not None and not isinstance(model, FSDPModule):
        loss, penalty = loss + penalty, None
    accelerator.backward(share * loss)
    if penalty is not None:
        accelerator.backward(share * penalty)


def place(model: nn.Module, accelerator: Accelerator) -> None:
    """Move a model that is only evaluated to the device and precision of the run, as training would."""
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        model.to(accelerator.device)
    else:
        accelerator.prepare_model(model, evaluation_mode=True)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Give every process all weights inside the block, so that each can run independently; no effect on an unsharded model."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()


def gather_state(model: nn.Module) -> dict[str, Tensor] | None:
    """Return the full state of a sharded model in main memory, gathered by all processes; None if the model is not sharded."""
    if not isinstance(model, FSDPModule):
        return None
    return {name: unshard(t).detach().cpu() for name, t in model.state_dict().items()}


def unshard(tensor: Tensor) -> Tensor:
    """Return the full tensor of a sharded one, gathered by all processes; others unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a full tensor on the device of a parameter, sharded like it."""
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else value
