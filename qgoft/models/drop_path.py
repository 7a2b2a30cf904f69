"""Stochastic depth (Huang et al., 2016): residual branches are dropped at random during training."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qgoft.errors import QgoftError


class DropPath(nn.Module):
    """Drop the branch of an item with probability `rate`, and scale the others so that the mean is unchanged."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        shape = (len(branch), *[1] * (branch.dim() - 1))
        return branch * (torch.rand(shape, device=branch.device) < keep).to(branch.dtype) / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def set_drop_path(model: PreTrainedModel, rate: float) -> None:
    """Add stochastic depth to a ViT of transformers, with rates increasing linearly from 0 at the first block to `rate` at the last.

    A block's `dropout` module ends both of its residual branches, so it is replaced.

    Raises:
        QgoftError: the model has no such blocks.
    """
    if rate == 0:
        return
    if not 0 < rate < 1:
        raise QgoftError(f"train.drop_path is {rate}; allowed are 0 and more, below 1")
    blocks: list[Any] = [
        module
        for module in model.modules()
        if hasattr(module, "layernorm_before") and isinstance(getattr(module, "dropout", None), nn.Dropout)
    ]
    if not blocks:
        raise QgoftError(f"train.drop_path={rate} needs the blocks of a ViT; {type(model).__name__} has none; set train.drop_path=0")
    for number, block in enumerate(blocks):
        block.dropout = nn.Sequential(block.dropout, DropPath(rate * number / max(1, len(blocks) - 1)))
