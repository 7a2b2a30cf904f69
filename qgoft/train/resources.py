"""Check of disk space and device memory before a run.

The device memory is a lower bound without activations. The disk space includes checkpoints.
"""

import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError
from qgoft.methods import AdaptedModel
from qgoft.train.checkpoint import KEPT, checkpoint_bytes, total_bytes
from qgoft.train.distributed import is_sharded


def _trained(adapted: AdaptedModel) -> list[Tensor]:
    """Return all trainable parameters, including the head."""
    return [p for p in adapted.model.parameters() if p.requires_grad]


def disk_bytes(adapted: AdaptedModel, settings: RunSettings) -> int:
    """Return the maximum bytes on disk at one time: the adapter and its checkpoints, including one being written."""
    trained = _trained(adapted)
    checkpoints = 0 if settings.results.checkpoint_interval is None else KEPT + 1
    return total_bytes(trained) + checkpoints * checkpoint_bytes(trained)


def device_bytes(adapted: AdaptedModel) -> int:
    """Return the bytes on the device during the whole training: all weights, and gradients and moments of the trainable ones."""
    gradients_and_moments = 3 * total_bytes(_trained(adapted))
    return total_bytes([*adapted.model.parameters(), *adapted.model.buffers()]) + gradients_and_moments


def check_resources(adapted: AdaptedModel, settings: RunSettings, accelerator: Accelerator) -> None:
    """Reject a run that would run out of space or memory.

    Raises:
        QgoftError: the disk below results.root, or the device, is too small.
    """
    root = Path(settings.results.root).absolute()
    root = next(path for path in (root, *root.parents) if path.exists())
    needed, free = disk_bytes(adapted, settings), shutil.disk_usage(root).free
    if free < needed:
        raise QgoftError(
            f"results.root={settings.results.root} has {format_bytes(free)} free, and this run writes {format_bytes(needed)} (adapter and "
            "checkpoints); free space, set results.root to another directory, or disable checkpoints with results.checkpoint_interval=null"
        )
    if accelerator.device.type != "cuda" or is_sharded(accelerator):
        return
    needed, there = device_bytes(adapted), torch.cuda.get_device_properties(accelerator.device).total_memory
    if there < needed:
        raise QgoftError(
            f"{settings.model.name} with {settings.method.name} needs {format_bytes(needed)} for weights, gradients and AdamW only, and the device "
            f"has {format_bytes(there)}; choose a method with fewer trainable parameters, or shard the model (ACCELERATE=fsdp2)"
        )


def format_bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
