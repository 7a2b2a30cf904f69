"""Application of the factors to rows: exact, without a d x d matrix, in chunks of rows that fit the cache.

Shapes: N rows, d width, n outputs of a linear layer, c rows of a chunk; stage s of the factors has q_s trees of width b_s.
The README in this directory has the derivation.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qgoft.ops.givens import native
from qgoft.ops.givens.dispatch import ON_BLOCKS, choose_backend, native_supports, should_rotate_weight
from qgoft.ops.givens.factors import Factors, build_factors
from qgoft.ops.givens.reference import check_blocks
from qgoft.ops.givens.traced import apply_in_graph, apply_traced, disable_autocast, pad_to_trees
from qgoft.ops.givens.upper_stages import apply_to_columns, apply_transpose_to_columns, backward_of_columns

# Values per chunk, 4 MB of float32. Measured on two CPU cores with 2 MB of second-level cache each: half as many cost 3% of a layer's step
# at width 768, all rows at once 5% at width 3072 and would dominate peak memory.
CHUNK_ELEMENTS = 2**20


def mix_pairs(x: Tensor, blocks: Tensor, *, transpose: bool = False) -> Tensor:
    """Apply the d-1 paired 2x2 blocks of all levels to the features of x: y = P_L ... P_1 x.

    Args:
        x: [..., d] in float64, float32, bfloat16 or float16, d >= 2; leading dimensions may be absent or empty.
        blocks: [d-1, 2, 2], ordered by level, then by coordinate (`pairs`). Their dtype may be wider than that of x: the block matrices are
            built in it and then rounded once to the dtype of x.
        transpose: apply the transposed product P_1^T ... P_L^T, which is the inverse if every block is a rotation.

    Returns:
        [..., d] in the dtype of x. Differentiable in both arguments. Backward saves x, and matrices whose size does not depend on the
            number of rows.

    Raises:
        ValueError: the blocks do not match width d, or d < 2.
    """
    d = x.shape[-1]
    check_blocks(blocks, d)
    return apply_factors(x, build_factors(blocks, d, choose_backend(x, blocks)), transpose=transpose)


def apply_factors(x: Tensor, factors: Factors, *, transpose: bool = False) -> Tensor:
    """Apply factors that are built already: x [..., d] -> [..., d] in the dtype of x. See `mix_pairs`."""
    factors = _supported(factors, x)
    if factors.backend == "graph" or torch.compiler.is_compiling():
        return apply_traced(x, factors, transpose)
    product: Tensor = RotateFunction.apply(x, transpose, factors.backend, *factors.stages)
    return product


def rotated_linear(x: Tensor, factors: Factors, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a frozen linear layer whose weight rows are rotated: h = (W R^T) x + b = W (R^T x) + b (GOFT, section 4).

    Rotates whichever has fewer rows, the weight (W R^T is `mix_pairs` on the rows of W, discarded after use) or x. Both have the same
    backward: with g = W^T dL/dh, the gradient of x is R g, and the gradient of the factors is that of R applied to g. No gradient of a
    weight is formed, and backward saves x only.

    Args:
        x: [..., d].
        factors: factors of width d.
        weight: [n, d], in the dtype of x, not trainable; may be a transposed view of [d, n].
        bias: [n] or None, not trainable.

    Returns:
        [..., n] in the dtype of x. Differentiable in x and the factors.

    Raises:
        ValueError: the weight or the bias requires a gradient.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("rotated_linear has no gradient for weight and bias: freeze both, or use mix_pairs and then the layer")
    factors = _supported(factors, x)
    if factors.backend == "graph" or torch.compiler.is_compiling():
        return torch.nn.functional.linear(apply_traced(x, factors, True), weight, bias)
    h: Tensor = RotatedLinearFunction.apply(x, weight, bias, factors.backend, *factors.stages)
    return h


class RotateFunction(torch.autograd.Function):
    """y = R x or R^T x. Saves x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transpose: bool, backend: str, *stages: Tensor) -> Tensor:
        ctx.save_for_backward(x, *stages)
        ctx.transpose, ctx.backend = transpose, backend
        rows = x.reshape(-1, x.shape[-1])
        with disable_autocast(x):
            apply = apply_transpose_to_rows if transpose else apply_to_rows
            return _reshape(apply(rows, Factors(stages, backend).to(x.dtype)), x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *stages = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            grad_x, *grad_stages = _backward_in_graph(
                x, stages, ctx.backend, grad, lambda x, factors: apply_in_graph(x, factors, ctx.transpose)
            )
            return grad_x, None, None, *grad_stages
        factors = Factors(tuple(stages), ctx.backend).to(x.dtype)
        rows, grads = x.reshape(-1, x.shape[-1]), grad.to(x.dtype).reshape(-1, x.shape[-1])
        with disable_autocast(x):
            options = {"transpose": ctx.transpose, "overwrite": False, "need_input": ctx.needs_input_grad[0]}
            factor_grad, grad_x = backward_of_rows(rows, grads, factors, **options)
        return None if grad_x is None else grad_x.view(x.shape), None, None, *(g.to(stages[0].dtype) for g in factor_grad)


class RotatedLinearFunction(torch.autograd.Function):
    """h = W R^T x + b. Saves x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str, *stages: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, *stages)
        ctx.backend = backend
        rows = x.reshape(-1, x.shape[-1])
        factors = Factors(stages, backend).to(x.dtype)
        with disable_autocast(x):
            if should_rotate_weight(len(rows), len(weight)):
                weight = apply_to_rows(weight, factors)
            else:
                rows = apply_transpose_to_rows(rows, factors)
            return _reshape(torch.nn.functional.linear(rows, weight, bias), (*x.shape[:-1], len(weight)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *stages = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            grad_x, *grad_stages = _backward_in_graph(
                x, stages, ctx.backend, grad, lambda x, factors: apply_in_graph(x, factors, True) @ weight.T
            )
            return grad_x, None, None, None, *grad_stages
        with disable_autocast(x):
            grads = grad.to(x.dtype).reshape(-1, len(weight)) @ weight
            rows, factors = x.reshape(-1, x.shape[-1]), Factors(tuple(stages), ctx.backend).to(x.dtype)
            options = {"transpose": True, "overwrite": True, "need_input": ctx.needs_input_grad[0]}
            factor_grad, grad_x = backward_of_rows(rows, grads, factors, **options)
        return None if grad_x is None else grad_x.view(x.shape), None, None, None, *(g.to(stages[0].dtype) for g in factor_grad)


def _reshape(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Return rows [N, n] as [..., n], as an ordinary tensor: autograd forbids in-place changes to an output that is a view."""
    reshaped: Tensor = torch.ops.aten._unsafe_view(rows, shape)
    return reshaped


def _backward_in_graph(
    x: Tensor, stages: list[Tensor], backend: str, grad: Tensor, apply: Callable[[Tensor, Factors], Tensor]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of the stages as differentiable functions of x, the stages and `grad`."""
    wanted = [tensor for tensor in (x, *stages) if tensor.requires_grad]
    factors = build_factors(stages[0], x.shape[-1], "graph") if backend in ON_BLOCKS else Factors(tuple(stages), "graph")
    found = iter(torch.autograd.grad(apply(x, factors), wanted, grad, create_graph=True, allow_unused=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in (x, *stages))


def _supported(factors: Factors, x: Tensor) -> Factors:
    """Return factors that can be applied to x: trees for rows that the native kernels do not take (float16, float64, other devices)."""
    if factors.backend == "native" and not native_supports(x):
        return build_factors(factors.stages[0], x.shape[-1], "trees")
    return factors


def _kernels(backend: str) -> Any:
    """Return the module with forward, transpose and backward on blocks."""
    if backend == "native":
        return native
    from qgoft.ops.givens import triton_kernels  # triton is installed only with GPU builds of torch

    return triton_kernels


def _row_chunks(rows: Tensor) -> Iterator[slice]:
    count, d = rows.shape
    # Other devices have no such cache, and every chunk costs a dozen kernel launches.
    step = max(256, (CHUNK_ELEMENTS if rows.device.type == "cpu" else 64 * CHUNK_ELEMENTS) // d)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _group_by_tree(rows: Tensor, trees: Tensor) -> Tensor:
    """Group rows [c, d] by tree -> [q, c, b]: a view if b divides d, otherwise a padded copy."""
    return pad_to_trees(rows, trees).transpose(0, 1)


def _scatter_rows(target: Tensor, product: Tensor) -> None:
    """Write [q, c, b] into rows [c, d], without the padding."""
    count, _, width = product.shape
    if count * width == target.shape[-1]:
        target.unflatten(-1, (count, width)).transpose(0, 1).copy_(product)
    else:
        target.copy_(product.transpose(0, 1).flatten(1)[:, : target.shape[-1]])


def _roots(rows: Tensor, trees: Tensor) -> Tensor:
    """Return the first coordinate of every tree of rows [c, d] as columns [q, c], a view."""
    return rows[:, :: trees.shape[-1]].T


def apply_to_rows(rows: Tensor, factors: Factors) -> Tensor:
    """Apply R to every row: [N, d] -> a new [N, d]. On the rows of a weight W this is W R^T."""
    if factors.backend in ON_BLOCKS:
        rotated: Tensor = _kernels(factors.backend).forward(rows, *factors.stages)
        return rotated
    trees, *upper_stages = factors.stages
    if not upper_stages:
        return rows @ trees[0].T
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    for chunk in _row_chunks(rows):
        product = torch.bmm(_group_by_tree(rows[chunk], trees), trees.transpose(1, 2))
        product[:, :, 0] = apply_to_columns(product[:, :, 0], upper_stages)
        _scatter_rows(out[chunk], product)
    return out


def apply_transpose_to_rows(rows: Tensor, factors: Factors) -> Tensor:
    """Apply R^T to every row: [N, d] -> a new [N, d]."""
    if factors.backend in ON_BLOCKS:
        rotated: Tensor = _kernels(factors.backend).transpose(rows, *factors.stages)
        return rotated
    trees, *upper_stages = factors.stages
    if not upper_stages:
        return rows @ trees[0]
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    for chunk in _row_chunks(rows):
        part = out[chunk].copy_(rows[chunk])
        roots = _roots(part, trees)
        roots.copy_(apply_transpose_to_columns(roots.contiguous(), upper_stages))
        _scatter_rows(part, torch.bmm(_group_by_tree(part, trees), trees))
    return out


def backward_of_rows(
    rows: Tensor, grads: Tensor, factors: Factors, *, transpose: bool, overwrite: bool, need_input: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Return the gradients of y = R x, or R^T x, from those of y: of the factors in at least float32, and of x (R^T g, or R g).

    <g, R^T x> = <x, R g>, so the gradient of the factors of R^T x is that of R applied to g with x as the gradient of its output. With
    `overwrite`, `grads` is reused for the gradient of x.
    """
    if factors.backend in ON_BLOCKS:
        pair = (grads, rows) if transpose else (rows, grads)
        options = {"overwrite": overwrite, "need_input": need_input, "transpose": transpose}
        grad_blocks, grad_rows = _kernels(factors.backend).backward(*pair, *factors.stages, **options)
        return [grad_blocks], grad_rows
    if len(factors.stages) == 1:
        (tree,) = factors.stages[0]
        product = rows.T @ grads if transpose else grads.T @ rows
        return [_in_float32(product)[None]], grads @ (tree.T if transpose else tree) if need_input else None
    add = _backward_of_transposed_chunk if transpose else _backward_of_chunk
    return _sum_over_chunks(add, rows, grads, factors, overwrite=overwrite, need_input=need_input)


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _sum_over_chunks(
    add: Callable[[Tensor, Tensor, Factors, list[Tensor], bool], None],
    rows: Tensor,
    grads: Tensor,
    factors: Factors,
    *,
    overwrite: bool,
    need_input: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Sum the gradients of the stages that `add` computes for each chunk of rows; `add` replaces the chunk of `grads` by the gradient of
    the rows.
    """
    sums = [torch.zeros_like(_in_float32(stage)) for stage in factors.stages]
    if not overwrite:
        grads = grads.clone(memory_format=torch.contiguous_format)
    for chunk in _row_chunks(rows):
        add(rows[chunk], grads[chunk], factors, sums, need_input)
    return sums, grads if need_input else None


def _backward_of_chunk(rows: Tensor, grads: Tensor, factors: Factors, sums: list[Tensor], need_input: bool) -> None:
    """Add the gradients of the stages of y = R x. `grads` becomes R^T g if needed, and is overwritten otherwise."""
    trees, *upper_stages = factors.stages
    inputs, roots = _group_by_tree(rows, trees), _roots(grads, trees)
    # Recomputing the values at the roots is cheaper, while the rows are in the cache, than saving them.
    values = torch.bmm(trees[:, :1], inputs.transpose(1, 2))[:, 0]
    roots.copy_(backward_of_columns(values, roots.contiguous(), upper_stages, sums[1:]))
    upper = _group_by_tree(grads, trees)
    sums[0] += torch.bmm(upper.transpose(1, 2), inputs)
    if need_input:
        _scatter_rows(grads, torch.bmm(upper, trees))


def _backward_of_transposed_chunk(rows: Tensor, grads: Tensor, factors: Factors, sums: list[Tensor], need_input: bool) -> None:
    """Add the gradients of the stages of y = R^T x. `grads` becomes R g if needed."""
    trees, *upper_stages = factors.stages
    inputs, upper = _group_by_tree(grads, trees), _group_by_tree(rows, trees)
    values = torch.bmm(trees[:, :1], inputs.transpose(1, 2))[:, 0]
    # The root columns of x belong to the upper stages; S^T of them belongs to the trees.
    at_roots = backward_of_columns(values, _roots(rows, trees).clone(memory_format=torch.contiguous_format), upper_stages, sums[1:])
    grad = torch.bmm(upper.transpose(1, 2), inputs)
    grad[:, :1] = torch.bmm(at_roots[:, None], inputs)
    sums[0] += grad
    del grad, at_roots
    if need_input:
        values = apply_to_columns(values, upper_stages)
        product = torch.bmm(inputs, trees.transpose(1, 2))
        product[:, :, 0] = values
        _scatter_rows(grads, product)
