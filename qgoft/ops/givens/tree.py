"""The product of all pairs by the tree factorisation: exact, without a d x d matrix, about one read and one write of x.

Shapes: N rows, d width, b block width (a power of two), q = ceil(d / b) trees, L = ceil(log2 d) levels.
The derivation is in the README beside this file.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qgoft.ops.givens.reference import check_blocks

# Measured on two CPU cores: 16 makes the product on the roots dominate at widths above 2000, 64 doubles the arithmetic of the trees.
BLOCK_WIDTH = 32


def mix_pairs(x: Tensor, blocks: Tensor, *, transpose: bool = False) -> Tensor:
    """Apply the d-1 paired 2x2 blocks of all levels to the features of x: y = P_L ... P_1 x.

    Args:
        x: [..., d] in float64, float32, bfloat16 or float16, d >= 2, any leading shape (also none, also empty).
        blocks: [d-1, 2, 2], ordered by level, then by coordinate (`pairs`). May be wider than x: the block matrices are built in
            the precision of the blocks and then rounded once to that of x.
        transpose: apply the transposed product P_1^T ... P_L^T, which is the inverse when every block is a rotation.

    Returns:
        [..., d] in the dtype of x. Differentiable once in both arguments. Saved for backward: x itself and the ceil(d / b)
        root values of every row, beside matrices whose size does not depend on the number of rows.

    Raises:
        ValueError: the blocks do not belong to width d, or d < 2.
    """
    d = x.shape[-1]
    check_blocks(blocks, d)
    trees, roots = tree_matrices(blocks, d)
    mixed: Tensor = _MixTrees.apply(x, trees.to(x.dtype), roots.to(x.dtype), transpose)
    return mixed


def tree_matrices(blocks: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Dense factors of the product: one b x b matrix per tree, and one q x q matrix on the roots of the trees.

    Args:
        blocks: [d-1, 2, 2].

    Returns:
        trees [q, b, b] and roots [q, q]; with d <= b, q is 1 and roots the 1 x 1 identity.
    """
    width = min(BLOCK_WIDTH, _next_power_of_two(d))
    count = -(-d // width)
    trees, rest = _build(blocks, d, width, count)
    if count == 1:
        return trees, torch.ones(1, 1, dtype=blocks.dtype, device=blocks.device)
    roots, _ = _build(rest, count, _next_power_of_two(count), 1)
    return trees, roots[0, :count, :count]


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _build(blocks: Tensor, d: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    """Matrices [count, width, width] of the first log2(width) levels, and the blocks of the levels that are left.

    Only the root of a subtree is still needed by the levels above it, so a level turns the root rows of two subtrees, each of
    length m, into two rows of length 2m: the new root row, and the row of coordinate m, which is finished. A level is one
    multiplication for all nodes; in the end every finished row is put in its place with one scatter.
    """
    if width == 1:
        return torch.ones(count, 1, 1, dtype=blocks.dtype, device=blocks.device), blocks
    root = torch.ones(count * width, 1, dtype=blocks.dtype, device=blocks.device)
    finished = []
    used, stride = 0, 1
    while stride < width:
        present = max(0, -(-(d - stride) // (2 * stride)))
        level = _pad_with_identities(blocks[used : used + present], count * width // (2 * stride))
        children = root.view(-1, 2, stride)
        rows = (level[:, :, :, None] * children[:, None]).flatten(2)
        root = rows[:, 0]
        finished.append(rows[:, 1].reshape(-1))
        used, stride = used + present, 2 * stride
    values = torch.cat((root.reshape(-1), *finished))
    place = _places(width, count, blocks.device)
    flat = torch.zeros(count * width * width, dtype=blocks.dtype, device=blocks.device)
    return flat.index_copy(0, place, values).view(count, width, width), blocks[used:]


def _pad_with_identities(level: Tensor, count: int) -> Tensor:
    """Pairs beyond the width d do not exist: an identity leaves their coordinates alone."""
    missing = count - len(level)
    if missing == 0:
        return level
    identity = torch.eye(2, dtype=level.dtype, device=level.device).expand(missing, 2, 2)
    return torch.cat((level, identity))


@functools.lru_cache(maxsize=256)
def _places(width: int, count: int, device: torch.device) -> Tensor:
    """Where `_build` puts its rows: flat positions in [count, width, width], in the order root, level 1, level 2, ..."""
    tree = torch.arange(count)[:, None, None] * width * width
    column = torch.arange(width)
    parts = [(tree + column).reshape(-1)]
    for r in range(1, int(math.log2(width)) + 1):
        span = 1 << r
        first = torch.arange(0, width, span)[None, :, None]
        row = first + span // 2
        parts.append((tree + row * width + first + torch.arange(span)).reshape(-1))
    return torch.cat(parts).to(device)


def _multiply(x: Tensor, matrices: Tensor) -> Tensor:
    """y[n, t] = matrices[t] x[n, t]: x [N, q, b] and matrices [q, b, b] -> contiguous [N, q, b]."""
    return torch.bmm(x.transpose(0, 1), matrices.transpose(1, 2)).transpose(0, 1).contiguous()


class _MixTrees(torch.autograd.Function):
    """y = (roots on coordinates 0, b, 2b, ...) after blockdiag(trees), or its transpose. Saves x and the values at the roots."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, trees: Tensor, roots: Tensor, transpose: bool) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = _as_rows(x, trees)
            if transpose:
                values = rows[:, :, 0] @ roots
                mixed = rows.clone()
                mixed[:, :, 0] = values
                y = _multiply(mixed, trees.transpose(1, 2))
            else:
                y = _multiply(rows, trees)
                values = y[:, :, 0].clone()
                y[:, :, 0] = values @ roots.T
        ctx.save_for_backward(x, values, trees, roots)
        ctx.transpose = transpose
        return _from_rows(y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, values, trees, roots = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            rows, grad_rows = _as_rows(x, trees), _as_rows(grad.to(x.dtype), trees)
            if ctx.transpose:
                mixed = rows.clone()
                mixed[:, :, 0] = values
                grad_trees = torch.bmm(mixed.permute(1, 2, 0), grad_rows.transpose(0, 1))
                grad_x = _multiply(grad_rows, trees)
                grad_values = grad_x[:, :, 0].clone()
                grad_roots = rows[:, :, 0].T @ grad_values
                grad_x[:, :, 0] = grad_values @ roots.T
            else:
                # grad may be the caller's own tensor: the roots of a copy are overwritten.
                grad_rows = grad_rows.clone()
                grad_values = grad_rows[:, :, 0].clone()
                grad_roots = grad_values.T @ values
                grad_rows[:, :, 0] = grad_values @ roots
                grad_trees = torch.bmm(grad_rows.permute(1, 2, 0), rows.transpose(0, 1))
                grad_x = _multiply(grad_rows, trees.transpose(1, 2)) if ctx.needs_input_grad[0] else grad_rows
        return _from_rows(grad_x, x) if ctx.needs_input_grad[0] else None, grad_trees, grad_roots, None


def _as_rows(x: Tensor, trees: Tensor) -> Tensor:
    """[..., d] -> [N, q, b], padded with zeros where the last tree is wider than what is left of d."""
    count, width, _ = trees.shape
    flat = x.reshape(-1, x.shape[-1])
    missing = count * width - x.shape[-1]
    if missing:
        flat = torch.nn.functional.pad(flat, (0, missing))
    return flat.view(-1, count, width) if flat.is_contiguous() else flat.reshape(-1, count, width)


def _from_rows(y: Tensor, like: Tensor) -> Tensor:
    """[N, q, b] -> the shape of `like`, without the padding."""
    d = like.shape[-1]
    return y.view(-1, y.shape[1] * y.shape[2])[:, :d].reshape(like.shape)
