"""Several devices beyond data parallelism: what FSDP2 and DeepSpeed ask of a run (configs/accelerate)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether every process holds a part of the model, or of its optimiser, alone."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def check_sharding(accelerator: Accelerator, settings: RunSettings, per_process: int) -> None:
    """Refuse what cannot work, and tell DeepSpeed the settings of the run: its own file must not decide them.

    Raises:
        QgoftError: no GPU, FSDP of the first version, or DeepSpeed's third stage.
    """
    asked = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]
    if asked and accelerator.device.type == "cpu":
        # accelerate would leave the model whole without a word.
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
    """Gradients of the loss and of the weighted penalty, in one go where the two may meet.

    Args:
        share: of a step's gradient that this call adds, times the accumulation, by which accelerate divides.

    FSDP2 adds a unit's gradients on a stream of its own, while the penalty's come from the parameters themselves: they wait for each other.
    """
    if penalty is not None and not isinstance(model, FSDPModule):
        loss, penalty = loss + penalty, None
    accelerator.backward(share * loss)
    if penalty is not None:
        accelerator.backward(share * penalty)


def place(model: nn.Module, accelerator: Accelerator) -> None:
    """A model that is scored without having been trained here, on the device and in the run's precision, as training would have prepared it."""
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        model.to(accelerator.device)
    else:
        accelerator.prepare_model(model, evaluation_mode=True)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Every process holds all weights for the time of the block, so that each can go its own way; does nothing to a model that is not divided."""
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
    """The whole state of a divided model in main memory, by the work of all processes; None where the model is not divided."""
    if not isinstance(model, FSDPModule):
        return None
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().cpu() for name, t in model.state_dict().items()}
