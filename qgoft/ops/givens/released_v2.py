"""The authors' second release ("GOFT-V2"), from its index rule: it mixes adjacent coordinates at every level. Not orthogonal; for
comparison only.

Level stride s, pair (i, i+s), block B: c[i] = B00, c[i+s] = B11, t[i] = -B01, t[i+s] = B10, elsewhere c = 1 and t = 0; then
y[k] = c[k] x[k] - t[k] x[k+1] for even k and y[k] = c[k] x[k] + t[k] x[k-1] for odd k; largest stride first.
From stride 2 on the coefficients of one pair apply to two different pairs of neighbours, so the product is not a rotation.
PSOFT's published GOFT and qGOFT rows were run with it.
"""

import torch
from torch import Tensor

from qgoft.ops.givens.index_cache import cached_index
from qgoft.ops.givens.reference import check_blocks, pairs


def check_even(d: int) -> None:
    """Raise ValueError for odd widths, for which the release fails too."""
    if d % 2:
        raise ValueError(f"width d is {d}; the released second version pairs neighbours and needs an even width; use goft or qgoft")


@cached_index
def _coefficient_tables(d: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices of c and t into (flattened blocks, 1, 0), and where t changes its sign: [levels, d] tables, largest stride first."""
    levels = (d - 1).bit_length()
    one, zero = 4 * (d - 1), 4 * (d - 1) + 1
    main = torch.full((levels, d), one)
    cross = torch.full((levels, d), zero)
    before = 0
    for level in range(levels):
        stride = 1 << level
        first = torch.arange(0, d - stride, 2 * stride)
        block = 4 * (before + torch.arange(len(first)))
        row = levels - 1 - level
        main[row, first], main[row, first + stride] = block, block + 3
        cross[row, first], cross[row, first + stride] = block + 1, block + 2
        before += len(first)
    # t[i] = -B01 and y[k] = c x[k] - t x[k+1]: an even k that is the first member of a pair sees +B01, a second member -B10; an odd k that
    # is a first member sees -B01, a second member +B10.
    is_first = (main % 4 == 0) & (main < one)
    return main.to(device), cross.to(device), is_first.to(device)


def mix_neighbours(x: Tensor, blocks: Tensor) -> Tensor:
    """Apply the forward of the release to features: x [..., d], blocks [d-1, 2, 2] -> [..., d].

    Every level mixes only within the pairs (2k, 2k+1), so the product is one 2x2 matrix per pair of neighbours. These are multiplied first;
    the result equals that of the release and needs a fraction of its memory.

    Raises:
        ValueError: d is odd, or the blocks do not match width d.
    """
    d = x.shape[-1]
    check_even(d)
    check_blocks(blocks, d)
    main, cross, is_first = _coefficient_tables(d, blocks.device)
    pool = torch.cat((blocks.reshape(-1), blocks.new_tensor([1.0, 0.0])))
    c, t = pool[main], pool[cross]
    t = torch.where(is_first, -t, t)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    levels = torch.stack((c[:, even], -t[:, even], t[:, odd], c[:, odd]), -1).unflatten(-1, (2, 2))
    # Multiply adjacent levels in parallel: the number of calls grows with the logarithm of the number of levels.
    while len(levels) > 1:
        paired = len(levels) // 2 * 2
        levels = torch.cat((levels[1:paired:2] @ levels[0:paired:2], levels[paired:]))
    product = levels[0]
    y = torch.einsum("kij,...kj->...ki", product.to(x.dtype), x.unflatten(-1, (d // 2, 2)))
    return y.flatten(-2)


def released_reference_matrix(blocks: Tensor, d: int) -> Tensor:
    """Return the dense [d, d] float64 matrix of the release's forward, coefficient by coefficient from the index rule above."""
    check_even(d)
    check_blocks(blocks, d)
    entries = blocks.double()
    product = torch.eye(d, dtype=torch.float64)
    levels = max(level for level, _, _ in pairs(d))
    for wanted in range(levels, 0, -1):
        c, t = torch.ones(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        for block, (level, i, j) in zip(entries, pairs(d), strict=True):
            if level == wanted:
                c[i], c[j], t[i], t[j] = block[0, 0], block[1, 1], -block[0, 1], block[1, 0]
        even = torch.arange(d) % 2 == 0
        neighbour = torch.arange(d) + torch.where(even, 1, -1)
        product = c[:, None] * product + torch.where(even, -t, t)[:, None] * product[neighbour]
    return product
