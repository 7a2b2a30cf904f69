"""Rows times the factors of the product: exact, without a d x d matrix, in pieces of rows that stay in the cache.

Shapes: N rows, d width, n outputs of a linear layer, b block width, q = ceil(d / b) trees.
The derivation is in the README beside this file.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qgoft.ops.givens.factors import Factors, build_factors
from qgoft.ops.givens.paths import choose_path, goes_through_weight
from qgoft.ops.givens.reference import check_blocks

# Values in a piece of rows, 2 MB of float32: measured on two CPU cores with 2 MB of second-level cache; half and twice as many cost the
# same within 5%, all rows at once 40% more at width 3072.
PIECE = 2**19


def mix_pairs(x: Tensor, blocks: Tensor, *, transpose: bool = False) -> Tensor:
    """Apply the d-1 paired 2x2 blocks of all levels to the features of x: y = P_L ... P_1 x.

    Args:
        x: [..., d] in float64, float32, bfloat16 or float16, d >= 2, any leading shape (also none, also empty).
        blocks: [d-1, 2, 2], ordered by level, then by coordinate (`pairs`). May be wider than x: the block matrices are built in
            the precision of the blocks and then rounded once to that of x.
        transpose: apply the transposed product P_1^T ... P_L^T, which is the inverse when every block is a rotation.

    Returns:
        [..., d] in the dtype of x. Differentiable once in both arguments. Saved for backward: x itself, beside matrices whose size
        does not depend on the number of rows.

    Raises:
        ValueError: the blocks do not belong to width d, or d < 2.
    """
    d = x.shape[-1]
    check_blocks(blocks, d)
    return mix_factors(x, build_factors(blocks, d), transpose=transpose)


def mix_factors(x: Tensor, factors: Factors, *, transpose: bool = False) -> Tensor:
    """`mix_pairs` with the factors already built. x [..., d], trees [q, b, b], roots [q, q] -> [..., d] in the dtype of x."""
    if choose_path(x) == "graph":
        return _mix_in_graph(x, factors, transpose)
    mixed: Tensor = _Mix.apply(x, factors.trees, factors.roots, transpose)
    return mixed


def mixed_linear(x: Tensor, factors: Factors, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W (R x) + b with a frozen W, in one step: the rotation costs min(N, n) rows forward and nothing but x is kept for backward.

    Where the weight has fewer rows than x, the weight is turned, W R, used and dropped; else the rows of x are. Backward is the same for
    both: with g = W^T dL/dh, the gradients are those of `mix_pairs`, and no gradient of a weight is ever formed.

    Args:
        x: [..., d].
        factors: of the width d.
        weight: [n, d], in the dtype of x, without a gradient of its own; a transposed view of [d, n] is fine.
        bias: [n] or none, without a gradient of its own.

    Returns:
        [..., n] in the dtype of x. Differentiable once in x and the factors.

    Raises:
        ValueError: the weight or the bias asks for a gradient.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("mixed_linear has no gradient for weight and bias: freeze both, or use mix_pairs and then the layer")
    if choose_path(x) == "graph":
        return torch.nn.functional.linear(_mix_in_graph(x, factors, False), weight, bias)
    h: Tensor = _MixedLinear.apply(x, factors.trees, factors.roots, weight, bias)
    return h


class _Mix(torch.autograd.Function):
    """y = R x or R^T x. Saves x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, trees: Tensor, roots: Tensor, transpose: bool) -> Tensor:
        ctx.save_for_backward(x, trees, roots)
        ctx.transpose = transpose
        rows = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            turn = _turn_back if transpose else _turn
            return turn(rows, Factors(trees.to(x.dtype), roots.to(x.dtype))).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, trees, roots = ctx.saved_tensors
        low = Factors(trees.to(x.dtype), roots.to(x.dtype))
        rows, grads = x.reshape(-1, x.shape[-1]), grad.to(x.dtype).reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            if ctx.transpose:
                # <g, R^T x> = <x, R g>: the gradient of the factors is that of R with input g and gradient x.
                factor_grad, _ = _gradients(grads, rows, low, overwrite=False, need_input=False)
                grad_x = _turn(grads, low) if ctx.needs_input_grad[0] else None
            else:
                factor_grad, grad_x = _gradients(rows, grads, low, overwrite=False, need_input=ctx.needs_input_grad[0])
        return None if grad_x is None else grad_x.view(x.shape), factor_grad.trees.to(trees.dtype), factor_grad.roots.to(roots.dtype), None


class _MixedLinear(torch.autograd.Function):
    """h = W R x + b. Saves x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, trees: Tensor, roots: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, trees, roots, weight)
        rows = x.reshape(-1, x.shape[-1])
        low = Factors(trees.to(x.dtype), roots.to(x.dtype))
        with torch.autocast(x.device.type, enabled=False):
            if goes_through_weight(len(rows), len(weight)):
                weight = _turn_back(weight, low)
            else:
                rows = _turn(rows, low)
            return torch.nn.functional.linear(rows, weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, trees, roots, weight = ctx.saved_tensors
        low = Factors(trees.to(x.dtype), roots.to(x.dtype))
        with torch.autocast(x.device.type, enabled=False):
            grads = grad.to(x.dtype).reshape(-1, len(weight)) @ weight
            rows = x.reshape(-1, x.shape[-1])
            factor_grad, grad_x = _gradients(rows, grads, low, overwrite=True, need_input=ctx.needs_input_grad[0])
        grad_x = None if grad_x is None else grad_x.view(x.shape)
        return grad_x, factor_grad.trees.to(trees.dtype), factor_grad.roots.to(roots.dtype), None, None


def _pieces(rows: Tensor) -> Iterator[slice]:
    count, d = rows.shape
    step = max(64, PIECE // d)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _as_trees(rows: Tensor, trees: Tensor) -> Tensor:
    """[c, d] -> [c, q, b], padded with zeros where the last tree is wider than what is left of d."""
    count, width, _ = trees.shape
    missing = count * width - rows.shape[-1]
    if missing:
        rows = torch.nn.functional.pad(rows, (0, missing))
    return rows.unflatten(-1, (count, width))


def _put(target: Tensor, mixed: Tensor) -> None:
    """Write [q, c, b] into rows [c, d], without the padding."""
    count, _, width = mixed.shape
    if count * width == target.shape[-1]:
        target.unflatten(-1, (count, width)).transpose(0, 1).copy_(mixed)
    else:
        target.copy_(mixed.transpose(0, 1).flatten(1)[:, : target.shape[-1]])


def _turn(rows: Tensor, factors: Factors) -> Tensor:
    """R on every row: [N, d] -> a new [N, d]."""
    trees, roots = factors
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    for piece in _pieces(rows):
        mixed = torch.bmm(_as_trees(rows[piece], trees).transpose(0, 1), trees.transpose(1, 2))
        if len(trees) > 1:
            mixed[:, :, 0] = roots @ mixed[:, :, 0]
        _put(out[piece], mixed)
    return out


def _turn_back(rows: Tensor, factors: Factors) -> Tensor:
    """R^T on every row: [N, d] -> a new [N, d]; on the rows of a weight W this is W R."""
    trees, roots = factors
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    for piece in _pieces(rows):
        part = _as_trees(rows[piece], trees)
        if len(trees) > 1:
            part = part.clone()
            part[:, :, 0] = part[:, :, 0] @ roots
        _put(out[piece], torch.bmm(part.transpose(0, 1), trees))
    return out


def _gradients(rows: Tensor, grads: Tensor, factors: Factors, *, overwrite: bool, need_input: bool) -> tuple[Factors, Tensor | None]:
    """Gradients of y = R x from those of y: of the factors in at least float32, and of x.

    With overwrite, `grads` is used up and becomes the gradient of x.
    """
    trees, roots = factors
    wide = torch.promote_types(rows.dtype, torch.float32)
    grad_trees, grad_roots = torch.zeros_like(trees, dtype=wide), torch.zeros_like(roots, dtype=wide)
    out = grads if overwrite else (torch.empty(grads.shape, dtype=grads.dtype, device=grads.device) if need_input else None)
    for piece in _pieces(rows):
        inputs, upper = _as_trees(rows[piece], trees), _as_trees(grads[piece], trees)
        if len(trees) > 1:
            if not overwrite:
                upper = upper.clone()
            grad_values = upper[:, :, 0].clone()
            # The values at the roots are made again: cheaper here, with the rows in the cache, than kept.
            grad_roots += grad_values.T @ (inputs * trees[:, 0]).sum(-1)
            upper[:, :, 0] = grad_values @ roots
        grad_trees += torch.bmm(upper.permute(1, 2, 0), inputs.transpose(0, 1))
        if need_input:
            assert out is not None
            _put(out[piece], torch.bmm(upper.transpose(0, 1), trees))
    return Factors(grad_trees, grad_roots), out if need_input else None


def _mix_in_graph(x: Tensor, factors: Factors, transpose: bool) -> Tensor:
    """The same product in differentiable operations alone, for compilers that trace."""
    trees, roots = factors.trees.to(x.dtype), factors.roots.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        parts = _as_trees(x, trees)
        if transpose:
            parts = torch.cat(((parts[..., 0] @ roots)[..., None], parts[..., 1:]), -1)
            mixed = torch.einsum("...tj,tjk->...tk", parts, trees)
        else:
            mixed = torch.einsum("...tk,tjk->...tj", parts, trees)
            mixed = torch.cat(((mixed[..., 0] @ roots.T)[..., None], mixed[..., 1:]), -1)
    return mixed.flatten(-2)[..., : x.shape[-1]]
