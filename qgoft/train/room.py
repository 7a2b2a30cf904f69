"""Whether a run has room for what it will surely need, asked before it begins: bytes on the disk, bytes on the device.

Both are lower bounds (activations and caches come on top), so nothing that would have worked is refused.
"""

import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from qgoft.errors import QgoftError
from qgoft.methods import Adapted
from qgoft.settings import RunSettings
from qgoft.train.checkpoint import KEPT

# A trained parameter with its gradient and AdamW's two moments.
COPIES_IN_TRAINING = 4
# In a checkpoint: the parameter, the best one, the two moments. The gradient is not kept.
COPIES_IN_CHECKPOINT = 4


def trained_bytes(adapted: Adapted) -> int:
    """Of all parameters that are trained, the head included."""
    return sum(p.numel() * p.element_size() for p in adapted.model.parameters() if p.requires_grad)


def disk_bytes(adapted: Adapted, settings: RunSettings) -> int:
    """What a run writes at the most at one time: the adapter, and its checkpoints, one of them not yet under its name."""
    checkpoints = 0 if settings.results.checkpoint_seconds is None else COPIES_IN_CHECKPOINT * (KEPT + 1)
    return (1 + checkpoints) * trained_bytes(adapted)


def device_bytes(adapted: Adapted) -> int:
    """What lies on the device through a whole training: all weights, and for the trained ones gradients and moments."""
    kept = [*adapted.model.parameters(), *adapted.model.buffers()]
    return sum(t.numel() * t.element_size() for t in kept) + (COPIES_IN_TRAINING - 1) * trained_bytes(adapted)


def check_room(adapted: Adapted, settings: RunSettings, accelerator: Accelerator) -> None:
    """Refuse a run that must fail for want of room.

    Raises:
        QgoftError: the disk below results.root, or the device, is too small.
    """
    root = next(path for path in (Path(settings.results.root).absolute(), *Path(settings.results.root).absolute().parents) if path.exists())
    needed, free = disk_bytes(adapted, settings), shutil.disk_usage(root).free
    if free < needed:
        raise QgoftError(
            f"results.root={settings.results.root} has {spell_bytes(free)} free, and this run writes {spell_bytes(needed)} (adapter and "
            "checkpoints); free space, set results.root to another folder, or results.checkpoint_seconds=null for none"
        )
    is_divided = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if accelerator.device.type != "cuda" or is_divided:
        return
    needed, there = device_bytes(adapted), torch.cuda.get_device_properties(accelerator.device).total_memory
    if there < needed:
        raise QgoftError(
            f"{settings.model.name} with {settings.method.name} needs {spell_bytes(needed)} for weights, gradients and AdamW alone, and the device "
            f"has {spell_bytes(there)}; take a method that trains less, or divide the model (ACCELERATE=fsdp2)"
        )


def spell_bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
