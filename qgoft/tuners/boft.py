"""BOFT with m >= 2 factors on any machine.

peft builds the block-diagonal matrices of several butterfly factors with a CUDA extension that is compiled on first use; where that
fails it trains m = 1 with no more than a warning. The extension only lays blocks out on a diagonal, which torch can do itself.
"""

import functools

import torch
from peft.tuners.boft import layer as boft_layer
from torch import Tensor


class TorchBlockDiagonal:
    """Stands where peft calls its compiled function: [m, blocks, b, b] -> [m, blocks * b, blocks * b]."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        factors, count, size, _ = blocks.shape
        # [m, b, b, blocks] -> [m, b, b, blocks, blocks]: one operation, where torch.block_diag takes one a block, and as many backward.
        spread = torch.diag_embed(blocks.permute(0, 2, 3, 1))
        return spread.permute(0, 3, 1, 4, 2).reshape(factors, count * size, count * size)


@functools.cache
def use_torch_block_diagonal() -> None:
    """Let peft's BOFT keep its m factors without the extension. The extension, where it could be built, is not used either:
    one path everywhere, so that a number does not depend on a compiler."""
    boft_layer.get_fbd_cuda = lambda: True
    boft_layer.FastBlockDiag = TorchBlockDiagonal
