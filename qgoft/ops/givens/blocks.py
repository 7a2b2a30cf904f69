"""Construction and inversion of the 2x2 blocks that `mix_pairs` applies."""

import torch
from torch import Tensor

from qgoft.ops.givens.index_cache import cached_index


def identity_blocks(count: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """Return [count, 2, 2] identity blocks, the initialisation of qGOFT."""
    blocks: Tensor = torch.eye(2, dtype=dtype, device=device).repeat(count, 1, 1)
    return blocks


def rotation_blocks(theta: Tensor) -> Tensor:
    """Return rotations [[cos, -sin], [sin, cos]] by angles theta [...] in radians -> [..., 2, 2] (GOFT, section 4.1)."""
    cos, sin = theta.cos(), theta.sin()
    blocks: Tensor = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    return blocks


def scale_blocks(blocks: Tensor, scale: Tensor) -> Tensor:
    """Return the blocks [d-1, 2, 2] of R diag(scale), the product of GOFT*: a coordinate is scaled by the first block that it enters.

    Args:
        blocks: [d-1, 2, 2] of R.
        scale: [d].
    """
    columns = torch.cat((scale, scale.new_ones(1)))[_first_coordinates(len(scale), scale.device)]
    return blocks * columns[:, None, :]


@cached_index
def _first_coordinates(d: int, device: torch.device) -> Tensor:
    """Return the coordinate that enters the product at each column of each block, [d-1, 2]; d if it has entered before."""
    first = torch.full((d - 1, 2), d)
    first[: d // 2] = torch.arange(d // 2 * 2).view(-1, 2)
    if d % 2:
        # The last coordinate has no partner until a level has an even number of coordinates; it is the second of its last pair then.
        block, width = d // 2 - 1, (d + 1) // 2
        while width % 2:
            block, width = block + width // 2, (width + 1) // 2
        first[block + width // 2, 1] = d - 1
    return first.to(device)


def inverse_blocks(blocks: Tensor) -> Tensor:
    """Return the inverse transposed blocks [..., 2, 2]: their *transposed* product inverts `mix_pairs(x, blocks)`.

    With R = P_L ... P_1, R^-1 = P_1^-1 ... P_L^-1 = (P_L^-T ... P_1^-T)^T, so
    mix_pairs(mix_pairs(x, blocks), inverse_blocks(blocks), transpose=True) = x. 16-bit blocks are inverted in float32.

    Raises:
        ValueError: a block is singular.
    """
    eps = torch.finfo(blocks.dtype).eps
    blocks = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
    determinant = torch.linalg.det(blocks)
    scale = blocks.flatten(-2).square().sum(-1)
    if bool((determinant.abs() <= 16 * eps * scale).any()):
        raise ValueError("a 2x2 block is singular and cannot be inverted; reload the base model instead of unmerging")
    inverse: Tensor = torch.linalg.inv(blocks)
    return inverse.transpose(-1, -2)
