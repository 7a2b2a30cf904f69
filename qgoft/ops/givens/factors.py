"""Dense factors of the product of 2x2 blocks, built for many layers at once, and their gradients.

Shapes: L layers of one width d; stage s has q_s trees of width b_s, a power of two except in the last stage, which is one tree.
The README in this directory has the derivation.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qgoft.ops.givens.dispatch import ON_BLOCKS, choose_backend
from qgoft.ops.givens.index_cache import cached_index
from qgoft.ops.givens.reference import check_blocks

# Measured on two CPU cores: trees of width 16 and 32 cost the same and 16 needs half the memory; up to 128 coordinates one dense product is
# faster than trees and another stage.
BLOCK_WIDTH = 16
LAST_WIDTH = 128


class Factors(NamedTuple):
    """R as stages: the trees of stage 0 mix groups of b_0 adjacent coordinates, those of stage s the roots (first coordinates) of stage
    s-1.

    Attributes:
        stages: one tensor [..., q_s, b_s, b_s] per stage; the last has q_s = 1. All but the last are padded if b_s does not divide the
            width.
        backend: which of `dispatch.BACKENDS` multiplies them; for native and triton the only stage is the blocks, [d-1, 2, 2].
    """

    stages: tuple[Tensor, ...]
    backend: str = "trees"

    def to(self, dtype: torch.dtype) -> "Factors":
        """Return the matrices in the dtype of the rows. Blocks keep theirs, since the kernels compute in float32."""
        if self.backend in ON_BLOCKS:
            return self
        return Factors(tuple(stage.to(dtype) for stage in self.stages), self.backend)


class _Level(NamedTuple):
    """One level of a build, saved for its gradient: padded blocks [L, nodes, 2, 2] and rows of the children [L, nodes, 2, s]."""

    blocks: Tensor
    children: Tensor
    present: int


class BuildContext(NamedTuple):
    """Levels of each stage and the flat positions of their rows, saved for the gradient."""

    levels: list[list[_Level]]
    places: list[Tensor]

    def select(self, layers: Tensor) -> "BuildContext":
        """Return the context of some of the layers, given by index."""
        chosen = [[_Level(level.blocks[layers], level.children[layers], level.present) for level in stage] for stage in self.levels]
        return BuildContext(chosen, self.places)


def stage_sizes(d: int) -> list[tuple[int, int]]:
    """Return (tree width, number of trees) of each stage."""
    stages = []
    while d > LAST_WIDTH:
        count = -(-d // BLOCK_WIDTH)
        stages.append((BLOCK_WIDTH, count))
        d = count
    return [*stages, (d, 1)]


def build_factors(blocks: Tensor, d: int, backend: str | None = None) -> Factors:
    """Build the factors of the product; differentiable.

    Args:
        blocks: [d-1, 2, 2].
        backend: the backend that will apply them; None chooses by `choose_backend`.

    Raises:
        ValueError: the blocks do not match width d, or d < 2.
    """
    check_blocks(blocks, d)
    backend = backend or choose_backend(blocks)
    if backend in ON_BLOCKS:
        return Factors((blocks,), backend)
    if backend == "graph":
        factors, _ = build_forward(blocks[None], d)
        return Factors(tuple(stage[0] for stage in factors.stages), backend)
    return Factors(_Build.apply(blocks, d))


def build_forward(blocks: Tensor, d: int) -> tuple[Factors, BuildContext]:
    """Build the factors of L layers at once: blocks [L, d-1, 2, 2] -> stages [L, q_s, b_s, b_s]."""
    stages, context = [], BuildContext([], [])
    for width, count in stage_sizes(d):
        padded = _next_power_of_two(width)
        matrices, levels, used = _build_stage(blocks, d, padded, count)
        stages.append(matrices[:, :, :width, :width])
        context.levels.append(levels)
        context.places.append(_flat_positions(padded, count, blocks.device))
        blocks, d = blocks[:, used:], count
    return Factors(tuple(stages)), context


def build_backward(context: BuildContext, grad: Factors) -> Tensor:
    """Return the gradient of the blocks [L, d-1, 2, 2] from the gradient of the factors."""
    parts = []
    for levels, places, stage in zip(context.levels, context.places, grad.stages, strict=True):
        missing = (1 << len(levels)) - stage.shape[-1]
        if missing:
            stage = torch.nn.functional.pad(stage, (0, missing, 0, missing))
        parts += _stage_backward(levels, stage, places)
    return torch.cat(parts, 1)


def build_backward_in_graph(source: Tensor | list[Tensor], blocks: Tensor, d: int, grads: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of the sources of blocks [L, d-1, 2, 2] as differentiable functions."""
    return torch.autograd.grad(build_forward(blocks, d)[0].stages, source, grads, create_graph=True)


class _Build(torch.autograd.Function):
    """Build of one layer. Its gradient is explicit: autograd through the levels needs five times as many calls."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, d: int) -> tuple[Tensor, ...]:
        factors, ctx.context = build_forward(blocks[None], d)
        ctx.save_for_backward(blocks)
        ctx.width = d
        return tuple(stage[0] for stage in factors.stages)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # create_graph=True
            (blocks,) = ctx.saved_tensors
            return build_backward_in_graph(blocks, blocks[None], ctx.width, [grad[None] for grad in grads])[0], None
        return build_backward(ctx.context, Factors(tuple(grad[None] for grad in grads)))[0], None


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _build_stage(blocks: Tensor, d: int, width: int, count: int) -> tuple[Tensor, list[_Level], int]:
    """Return matrices [L, count, width, width] of the first log2(width) levels, the levels, and the number of blocks used.

    Higher levels need only the root of a subtree. A level therefore combines the root rows of two subtrees, each of length s, into two
    rows of length 2s: the new root row and the final row of coordinate s. One multiplication per level serves all nodes of all layers, and
    one scatter at the end writes every final row to its position.
    """
    layers = len(blocks)
    root = blocks.new_ones(layers, count * width)
    finished: list[Tensor] = []
    levels: list[_Level] = []
    used, stride = 0, 1
    while stride < width:
        present = max(0, -(-(d - stride) // (2 * stride)))
        nodes = count * width // (2 * stride)
        level = _pad_with_identities(blocks[:, used : used + present], nodes)
        children = root.view(layers, nodes, 2, stride)
        rows = level[..., None] * children[:, :, None]
        levels.append(_Level(level, children, present))
        root = rows[:, :, 0].reshape(layers, -1)
        finished.append(rows[:, :, 1].reshape(layers, -1))
        used, stride = used + present, 2 * stride
    values = torch.cat((root, *finished), 1)
    flat = blocks.new_zeros(layers, count * width * width).index_copy(1, _flat_positions(width, count, blocks.device), values)
    return flat.view(layers, count, width, width), levels, used


def _stage_backward(levels: list[_Level], grad: Tensor, places: Tensor) -> list[Tensor]:
    """Return the gradients of the blocks of each level [L, present, 2, 2], lowest level first: the reverse of `_build_stage`."""
    layers = len(grad)
    pieces = grad.reshape(layers, -1)[:, places].view(layers, len(levels) + 1, -1)
    root, parts = pieces[:, 0], []
    for depth in range(len(levels) - 1, -1, -1):
        level, children, present = levels[depth]
        rows = torch.stack((root.reshape(children.shape), pieces[:, depth + 1].reshape(children.shape)), 2)
        parts.append((rows * children[:, :, None]).sum(-1)[:, :present])
        root = (rows * level[..., None]).sum(2)
    return parts[::-1]


def _pad_with_identities(level: Tensor, count: int) -> Tensor:
    """Pad a level with identities for the pairs beyond width d, which do not exist."""
    missing = count - level.shape[1]
    if missing == 0:
        return level
    identity = torch.eye(2, dtype=level.dtype, device=level.device).expand(len(level), missing, 2, 2)
    return torch.cat((level, identity), 1)


@cached_index
def _flat_positions(width: int, count: int, device: torch.device) -> Tensor:
    """Return the flat positions in [count, width, width] of the rows of `_build_stage`: root, level 1, level 2, ..."""
    tree = torch.arange(count)[:, None, None] * width * width
    column = torch.arange(width)
    parts = [(tree + column).reshape(-1)]
    for r in range(1, int(math.log2(width)) + 1):
        span = 1 << r
        first = torch.arange(0, width, span)[None, :, None]
        row = first + span // 2
        parts.append((tree + row * width + first + torch.arange(span)).reshape(-1))
    return torch.cat(parts).to(device)
