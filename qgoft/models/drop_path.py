"""Stochastic depth (Huang et al., 2016): whole residual branches are left out at random while training."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qgoft.errors import QgoftError


class DropPath(nn.Module):
    """Zero the branch of an item with probability `rate`, and scale up the others, so that the mean stays."""

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
    """Stochastic depth on a ViT of transformers, with rates that rise in equal steps from 0 at the first block to `rate` at the last.

    A block's `dropout` stands at the end of both its residual branches, which is where a branch is dropped.

    Raises:
        QgoftError: the model has no blocks of this kind.
    """
    if rate == 0:
        return
    if not 0 < rate < 1:
        raise QgoftError(f"train.drop_path is {rate}; allowed are numbers from 0 to below 1")
    blocks = [
        module
        for module in model.modules()
        if hasattr(module, "layernorm_before") and isinstance(getattr(module, "dropout", None), nn.Dropout)
    ]
    if not blocks:
        raise QgoftError(f"train.drop_path={rate} needs the blocks of a ViT; {type(model).__name__} has none; set train.drop_path=0")
    for number, block in enumerate(blocks):
        block.dropout = nn.Sequential(block.dropout, DropPath(rate * number / max(1, len(blocks) - 1)))
