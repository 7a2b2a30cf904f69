"""Two other ways to compute the product, for comparison only.

Both process all d features of all rows level by level, which makes them slow and large: ceil(log2 d) passes that each save their input
for backward, whereas the tree reads a row once and saves it once.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qgoft.ops.givens import identity_blocks, rotation_blocks
from qgoft.ops.givens.index_cache import cached_index


@cached_index
def sparse_levels(d: int, device: torch.device) -> list[tuple[slice, Tensor, Tensor]]:
    """Return per level: its blocks, the [2, entries] positions of its sparse d x d matrix, and the order that sorts the entries by row."""
    found, first, stride = [], 0, 1
    while stride < d:
        i = torch.arange(0, d - stride, 2 * stride)
        j = i + stride
        single = torch.ones(d, dtype=torch.bool)
        single[i] = single[j] = False
        rest = single.nonzero()[:, 0]
        where = torch.stack((torch.cat((i, i, j, j, rest)), torch.cat((i, j, i, j, rest))))
        order = (where[0] * d + where[1]).argsort()
        found.append((slice(first, first + len(i)), where[:, order].to(device), order.to(device)))
        first, stride = first + len(i), 2 * stride
    return found


def mix_sparse(x: Tensor, blocks: Tensor, *, layout: torch.layout = torch.sparse_coo) -> Tensor:
    """Compute y = P_L ... P_1 x as a chain of sparse matrix products (GOFT, section 4.1). x [..., d], blocks [d-1, 2, 2] -> [..., d]."""
    d = x.shape[-1]
    y = x.reshape(-1, d).T
    for level, where, order in sparse_levels(d, x.device):
        part = blocks[level]
        ones = part.new_ones(where.shape[1] - 4 * len(part))
        values = torch.cat((part[:, 0, 0], part[:, 0, 1], part[:, 1, 0], part[:, 1, 1], ones))[order]
        matrix = torch.sparse_coo_tensor(where, values, (d, d), is_coalesced=True, check_invariants=False)
        if layout == torch.sparse_csr:
            starts = torch.zeros(d + 1, dtype=torch.int64, device=x.device)
            starts[1:] = torch.bincount(where[0], minlength=d).cumsum(0)
            matrix = torch.sparse_csr_tensor(starts, where[1], values, (d, d), check_invariants=False)
        y = torch.sparse.mm(matrix, y)
    return y.T.reshape(x.shape)


@cached_index
def _released_places(d: int, device: torch.device) -> list[tuple[slice, Tensor, Tensor]]:
    found, first, stride = [], 0, 1
    while stride < d:
        i = torch.arange(0, d - stride, 2 * stride, device=device)
        found.append((slice(first, first + len(i)), i, i + stride))
        first, stride = first + len(i), 2 * stride
    return found[::-1]


def mix_neighbours_by_level(x: Tensor, blocks: Tensor) -> Tensor:
    """Compute the second release's forward as released: per level one elementwise pass and one swap of neighbours over all of x, largest
    stride first. x [..., d], blocks [d-1, 2, 2] -> [..., d]; equal to `mix_neighbours`.
    """
    d = x.shape[-1]
    sign = torch.tensor([-1.0, 1.0], device=x.device, dtype=x.dtype).repeat(d // 2)
    y = x
    for level, i, j in _released_places(d, x.device):
        part = blocks[level].to(x.dtype)
        c = x.new_ones(d).index_copy(0, i, part[:, 0, 0]).index_copy(0, j, part[:, 1, 1])
        t = x.new_zeros(d).index_copy(0, i, -part[:, 0, 1]).index_copy(0, j, part[:, 1, 0])
        swapped = y.unflatten(-1, (d // 2, 2)).flip(-1).flatten(-2)
        y = c * y + sign * t * swapped
    return y


class MixedLinear(nn.Module):
    """A frozen layer after one of the two products, as an adapter that starts at the identity: 4(d-1) trained entries, or d-1 angles."""

    def __init__(self, base: nn.Linear, mix: Callable[[Tensor, Tensor], Tensor], *, has_free_blocks: bool = True):
        super().__init__()
        self.base, self.mix, self.has_free_blocks = base, mix, has_free_blocks
        count, device = base.in_features - 1, base.weight.device
        self.entries = nn.Parameter(identity_blocks(count, device=device) if has_free_blocks else torch.zeros(count, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.mix(x, self.entries if self.has_free_blocks else rotation_blocks(self.entries)))
