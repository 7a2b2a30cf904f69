"""Other orderings of 2x2 blocks than the tree, for comparison only: dense and differentiable, not optimised.

butterfly: level r pairs (i, i + s), s = 2^(r-1), for every i whose bit r is zero and i + s < d: about d/2 log2 d blocks, which connect
every input with every output. sequential: (0, 1), (1, 2), ..., (d-2, d-1) in turn: d-1 blocks in d-1 steps, where the tree needs log2 d.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

PAIRINGS = ("tree", "butterfly", "sequential")


def butterfly_levels(d: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices i and j of all pairs, level by level."""
    stride = 1
    while stride < d:
        first = torch.arange(d - stride)
        first = first[(first // stride) % 2 == 0]
        yield first, first + stride
        stride *= 2


def count_pairs(d: int, pairing: str) -> int:
    """Return the number of blocks at width d."""
    return sum(len(first) for first, _ in butterfly_levels(d)) if pairing == "butterfly" else d - 1


def pairing_matrix(blocks: Tensor, d: int, pairing: str) -> Tensor:
    """Return the dense R [d, d] of blocks [count_pairs(d, pairing), 2, 2], with y = R x, in the dtype of the blocks.

    Raises:
        ValueError: a wrong number of blocks, or an unknown pairing.
    """
    if pairing not in PAIRINGS[1:]:
        raise ValueError(f"pairing {pairing!r}: allowed here are {', '.join(PAIRINGS[1:])}")
    wanted = (count_pairs(d, pairing), 2, 2)
    if tuple(blocks.shape) != wanted:
        raise ValueError(f"blocks have shape {tuple(blocks.shape)}; width d={d} with pairing {pairing} needs {list(wanted)}")
    return _butterfly(blocks, d) if pairing == "butterfly" else _sequential(blocks, d)


def _butterfly(blocks: Tensor, d: int) -> Tensor:
    matrix = torch.eye(d, dtype=blocks.dtype, device=blocks.device)
    before = 0
    for first, second in butterfly_levels(d):
        own = blocks[before : before + len(first)]
        before += len(first)
        first, second = first.to(blocks.device), second.to(blocks.device)
        top, bottom = matrix[first], matrix[second]
        matrix = matrix.index_copy(0, first, own[:, 0, :1] * top + own[:, 0, 1:] * bottom)
        matrix = matrix.index_copy(0, second, own[:, 1, :1] * top + own[:, 1, 1:] * bottom)
    return matrix


def _sequential(blocks: Tensor, d: int) -> Tensor:
    """Multiply the chain in log2 d steps that join adjacent segments in parallel: a segment over m + 1 coordinates passes its last
    coordinate, as a row over all its inputs, to the next segment.
    """
    size = 1 << (d - 2).bit_length() if d > 2 else 1
    padding = torch.eye(2, dtype=blocks.dtype, device=blocks.device).expand(size - len(blocks), 2, 2)
    parts = torch.cat((blocks, padding))
    while len(parts) > 1:
        left, right = parts[0::2], parts[1::2]
        m = left.shape[-1] - 1
        upper = torch.cat((left[:, :m], left.new_zeros(len(left), m, m)), -1)
        lower = torch.cat((right[:, :, :1] * left[:, m:], right[:, :, 1:]), -1)
        parts = torch.cat((upper, lower), 1)
    return parts[0, :d, :d]
