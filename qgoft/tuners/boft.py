"""BOFT with m >= 2 factors on any machine.

peft builds the block-diagonal matrices of several butterfly factors with a CUDA extension compiled on first use; if that fails it trains
m = 1 after a warning. The extension only arranges blocks on a diagonal, which torch can do.
"""

import functools

import torch
from peft.tuners.boft import layer as boft_layer
from torch import Tensor


class TorchBlockDiagonal:
    """Replacement of peft's compiled function: [m, blocks, b, b] -> [m, blocks * b, blocks * b]."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        factors, count, size, _ = blocks.shape
        # [m, b, b, blocks] -> [m, b, b, blocks, blocks]: one operation; torch.block_diag needs one per block, and as many in backward.
        spread = torch.diag_embed(blocks.permute(0, 2, 3, 1))
        return spread.permute(0, 3, 1, 4, 2).reshape(factors, count * size, count * size)


@functools.cache
def use_torch_block_diagonal() -> None:
    """Make peft's BOFT use torch instead of its extension, on every machine, so that results do not depend on a compiler."""
    boft_layer.get_fbd_cuda = lambda: True
    boft_layer.FastBlockDiag = TorchBlockDiagonal
