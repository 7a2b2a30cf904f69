"""Rows times the factors of the product: exact, without a d x d matrix, in pieces of rows that stay in the cache.

Shapes: N rows, d width, n outputs of a linear layer, c rows of a piece; stage s of the factors has q_s trees of width b_s.
The derivation is in the README beside this file.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from qgoft.ops.givens.dispatch import choose_path, goes_through_weight
from qgoft.ops.givens.factors import Factors, build_factors
from qgoft.ops.givens.reference import check_blocks

# Values in a piece of rows, 4 MB of float32: measured on two CPU cores with 2 MB of second-level cache each; half as many cost 3% of a layer's step
# more at width 768, all rows at once 5% more at width 3072, and would be what peaks.
PIECE = 2**20


def mix_pairs(x: Tensor, blocks: Tensor, *, transpose: bool = False) -> Tensor:
    """Apply the d-1 paired 2x2 blocks of all levels to the features of x: y = P_L ... P_1 x.

    Args:
        x: [..., d] in float64, float32, bfloat16 or float16, d >= 2, any leading shape (also none, also empty).
        blocks: [d-1, 2, 2], ordered by level, then by coordinate (`pairs`). May be wider than x: the block matrices are built in
            the precision of the blocks and then rounded once to that of x.
        transpose: apply the transposed product P_1^T ... P_L^T, which is the inverse when every block is a rotation.

    Returns:
        [..., d] in the dtype of x. Differentiable in both arguments. Saved for backward: x itself, beside matrices whose size
        does not depend on the number of rows.

    Raises:
        ValueError: the blocks do not belong to width d, or d < 2.
    """
    d = x.shape[-1]
    check_blocks(blocks, d)
    return mix_factors(x, build_factors(blocks, d, choose_path(x, blocks)), transpose=transpose)


def mix_factors(x: Tensor, factors: Factors, *, transpose: bool = False) -> Tensor:
    """`mix_pairs` with the factors already built. x [..., d] -> [..., d] in the dtype of x."""
    if factors.path == "graph":
        return _mix_in_graph(x, factors, transpose)
    mixed: Tensor = _Mix.apply(x, transpose, factors.path, *factors.stages)
    return mixed


def mixed_linear(x: Tensor, factors: Factors, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a frozen linear layer whose weight rows are rotated: h = (W R^T) x + b = W (R^T x) + b (GOFT, section 4).

    Rotates whichever has fewer rows: the weight (W R^T is `mix_pairs` on the rows of W, dropped after use) or x. Both give the same
    backward: with g = W^T dL/dh, the gradient of x is R g and that of the factors is that of R applied to g. No gradient of a weight is
    formed and only x is kept for backward.

    Args:
        x: [..., d].
        factors: of the width d.
        weight: [n, d], in the dtype of x, not trainable; a transposed view of [d, n] is fine.
        bias: [n] or None, not trainable.

    Returns:
        [..., n] in the dtype of x. Differentiable in x and the factors.

    Raises:
        ValueError: the weight or the bias requires a gradient.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("mixed_linear has no gradient for weight and bias: freeze both, or use mix_pairs and then the layer")
    if factors.path == "graph":
        return torch.nn.functional.linear(_mix_in_graph(x, factors, True), weight, bias)
    h: Tensor = _MixedLinear.apply(x, weight, bias, factors.path, *factors.stages)
    return h


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """What is computed here has its type already. On the meta device, where shapes alone are, there is no autocast to turn off."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class _Mix(torch.autograd.Function):
    """y = R x or R^T x. Saves x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transpose: bool, path: str, *stages: Tensor) -> Tensor:
        ctx.save_for_backward(x, *stages)
        ctx.transpose, ctx.path = transpose, path
        rows = x.reshape(-1, x.shape[-1])
        with without_autocast(x):
            turn = _turn_back if transpose else _turn
            return _reshape(turn(rows, Factors(stages, path).to(x.dtype)), x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *stages = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            grad_x, *grad_stages = _gradients_in_graph(
                x, stages, ctx.path, grad, lambda x, factors: _mix_in_graph(x, factors, ctx.transpose)
            )
            return grad_x, None, None, *grad_stages
        factors = Factors(tuple(stages), ctx.path).to(x.dtype)
        rows, grads = x.reshape(-1, x.shape[-1]), grad.to(x.dtype).reshape(-1, x.shape[-1])
        with without_autocast(x):
            backward = _gradients_of_transpose if ctx.transpose else _gradients
            factor_grad, grad_x = backward(rows, grads, factors, overwrite=False, need_input=ctx.needs_input_grad[0])
        return None if grad_x is None else grad_x.view(x.shape), None, None, *(g.to(stages[0].dtype) for g in factor_grad)


class _MixedLinear(torch.autograd.Function):
    """h = W R^T x + b. Saves x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, path: str, *stages: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, *stages)
        ctx.path = path
        rows = x.reshape(-1, x.shape[-1])
        factors = Factors(stages, path).to(x.dtype)
        with without_autocast(x):
            if goes_through_weight(len(rows), len(weight)):
                weight = _turn(weight, factors)
            else:
                rows = _turn_back(rows, factors)
            return _reshape(torch.nn.functional.linear(rows, weight, bias), (*x.shape[:-1], len(weight)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *stages = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            grad_x, *grad_stages = _gradients_in_graph(
                x, stages, ctx.path, grad, lambda x, factors: _mix_in_graph(x, factors, True) @ weight.T
            )
            return grad_x, None, None, None, *grad_stages
        with without_autocast(x):
            grads = grad.to(x.dtype).reshape(-1, len(weight)) @ weight
            rows, factors = x.reshape(-1, x.shape[-1]), Factors(tuple(stages), ctx.path).to(x.dtype)
            factor_grad, grad_x = _gradients_of_transpose(rows, grads, factors, overwrite=True, need_input=ctx.needs_input_grad[0])
        return None if grad_x is None else grad_x.view(x.shape), None, None, None, *(g.to(stages[0].dtype) for g in factor_grad)


def _reshape(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Return rows [N, n] as [..., n], an ordinary tensor: an output that is a view must not be changed in place."""
    reshaped: Tensor = torch.ops.aten._unsafe_view(rows, shape)
    return reshaped


def _gradients_in_graph(
    x: Tensor, stages: list[Tensor], path: str, grad: Tensor, apply: Callable[[Tensor, Factors], Tensor]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of the stages as differentiable functions of x, the stages and `grad`."""
    wanted = [tensor for tensor in (x, *stages) if tensor.requires_grad]
    factors = build_factors(stages[0], x.shape[-1], "graph") if path == "triton" else Factors(tuple(stages), "graph")
    found = iter(torch.autograd.grad(apply(x, factors), wanted, grad, create_graph=True, allow_unused=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in (x, *stages))


def _pieces(rows: Tensor) -> Iterator[slice]:
    count, d = rows.shape
    # Elsewhere there is no such cache to fit, and every piece costs a dozen launches.
    step = max(256, (PIECE if rows.device.type == "cpu" else 64 * PIECE) // d)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _as_trees(rows: Tensor, trees: Tensor) -> Tensor:
    """[..., d] -> [..., q, b], padded with zeros where the last tree is wider than what is left of d."""
    count, width, _ = trees.shape
    missing = count * width - rows.shape[-1]
    if missing:
        rows = torch.nn.functional.pad(rows, (0, missing))
    return rows.reshape(*rows.shape[:-1], count, width)


def _by_tree(rows: Tensor, trees: Tensor) -> Tensor:
    """Rows [c, d] -> [q, c, b]: as they lie where the trees divide d, else a padded copy."""
    return _as_trees(rows, trees).transpose(0, 1)


def _put(target: Tensor, mixed: Tensor) -> None:
    """Write [q, c, b] into rows [c, d], without the padding."""
    count, _, width = mixed.shape
    if count * width == target.shape[-1]:
        target.unflatten(-1, (count, width)).transpose(0, 1).copy_(mixed)
    else:
        target.copy_(mixed.transpose(0, 1).flatten(1)[:, : target.shape[-1]])


def _roots(rows: Tensor, trees: Tensor) -> Tensor:
    """The first coordinates of the trees of rows [c, d], as columns [q, c]: a view."""
    return rows[:, :: trees.shape[-1]].T


def _turn(rows: Tensor, factors: Factors) -> Tensor:
    """R on every row: [N, d] -> a new [N, d]; on the rows of a weight W this is W R^T."""
    if factors.path == "triton":
        from qgoft.ops.givens import triton_kernels  # triton is there on machines with a GPU alone

        turned: Tensor = triton_kernels.turn(rows, *factors.stages)
        return turned
    trees, *above = factors.stages
    if not above:
        return rows @ trees[0].T
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    for piece in _pieces(rows):
        mixed = torch.bmm(_by_tree(rows[piece], trees), trees.transpose(1, 2))
        mixed[:, :, 0] = _turn_columns(mixed[:, :, 0], above)
        _put(out[piece], mixed)
    return out


def _turn_back(rows: Tensor, factors: Factors) -> Tensor:
    """R^T on every row: [N, d] -> a new [N, d]."""
    if factors.path == "triton":
        from qgoft.ops.givens import triton_kernels

        turned: Tensor = triton_kernels.turn_back(rows, *factors.stages)
        return turned
    trees, *above = factors.stages
    if not above:
        return rows @ trees[0]
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    for piece in _pieces(rows):
        part = out[piece].copy_(rows[piece])
        roots = _roots(part, trees)
        roots.copy_(_turn_columns_back(roots.contiguous(), above))
        _put(part, torch.bmm(_by_tree(part, trees), trees))
    return out


def _gradients(rows: Tensor, grads: Tensor, factors: Factors, *, overwrite: bool, need_input: bool) -> tuple[list[Tensor], Tensor | None]:
    """Gradients of y = R x from those of y: of the factors in at least float32, and of x, R^T g.

    With overwrite, `grads` is used up and becomes the gradient of x.
    """
    if factors.path == "triton":
        from qgoft.ops.givens import triton_kernels

        grad_blocks, grad_rows = triton_kernels.gradients(rows, grads, *factors.stages, overwrite=overwrite, need_input=need_input)
        return [grad_blocks], grad_rows
    if len(factors.stages) == 1:
        (tree,) = factors.stages[0]
        return [_in_float32(grads.T @ rows)[None]], grads @ tree if need_input else None
    return _sum_over_pieces(_gradients_of_piece, rows, grads, factors, overwrite=overwrite, need_input=need_input)


def _gradients_of_transpose(
    rows: Tensor, grads: Tensor, factors: Factors, *, overwrite: bool, need_input: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Gradients of y = R^T x from those of y: of the factors in at least float32, and of x, R g.

    <g, R^T x> = <x, R g>, so the gradient of the factors is that of R applied to g, with x as the gradient of its output. With overwrite,
    `grads` is used up and becomes the gradient of x.
    """
    if factors.path == "triton":
        from qgoft.ops.givens import triton_kernels

        grad_blocks, grad_rows = triton_kernels.gradients(
            grads, rows, *factors.stages, overwrite=overwrite, need_input=need_input, transpose=True
        )
        return [grad_blocks], grad_rows
    if len(factors.stages) == 1:
        (tree,) = factors.stages[0]
        return [_in_float32(rows.T @ grads)[None]], grads @ tree.T if need_input else None
    return _sum_over_pieces(_gradients_of_transposed_piece, rows, grads, factors, overwrite=overwrite, need_input=need_input)


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _sum_over_pieces(
    add: Callable[[Tensor, Tensor, Factors, list[Tensor], bool], None],
    rows: Tensor,
    grads: Tensor,
    factors: Factors,
    *,
    overwrite: bool,
    need_input: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Sum the gradients of the stages that `add` finds for each piece of rows; `add` turns the piece of `grads` into that of the rows."""
    sums = [torch.zeros_like(_in_float32(stage)) for stage in factors.stages]
    if not overwrite:
        grads = grads.clone(memory_format=torch.contiguous_format)
    for piece in _pieces(rows):
        add(rows[piece], grads[piece], factors, sums, need_input)
    return sums, grads if need_input else None


def _gradients_of_piece(rows: Tensor, grads: Tensor, factors: Factors, sums: list[Tensor], need_input: bool) -> None:
    """Add the gradients of the stages of y = R x. `grads` becomes R^T g where that is needed, and is used up otherwise."""
    trees, *above = factors.stages
    inputs, roots = _by_tree(rows, trees), _roots(grads, trees)
    # Recomputing the values at the roots is cheaper here, with the rows in the cache, than keeping them.
    values = torch.bmm(trees[:, :1], inputs.transpose(1, 2))[:, 0]
    roots.copy_(_gradients_of_columns(values, roots.contiguous(), above, sums[1:]))
    upper = _by_tree(grads, trees)
    sums[0] += torch.bmm(upper.transpose(1, 2), inputs)
    if need_input:
        _put(grads, torch.bmm(upper, trees))


def _gradients_of_transposed_piece(rows: Tensor, grads: Tensor, factors: Factors, sums: list[Tensor], need_input: bool) -> None:
    """Add the gradients of the stages of y = R^T x. `grads` becomes R g where that is needed."""
    trees, *above = factors.stages
    inputs, upper = _by_tree(grads, trees), _by_tree(rows, trees)
    values = torch.bmm(trees[:, :1], inputs.transpose(1, 2))[:, 0]
    # The columns of x at the roots belong to the stages above; S^T of them reaches the trees.
    at_roots = _gradients_of_columns(values, _roots(rows, trees).clone(memory_format=torch.contiguous_format), above, sums[1:])
    grad = torch.bmm(upper.transpose(1, 2), inputs)
    grad[:, :1] = torch.bmm(at_roots[:, None], inputs)
    sums[0] += grad
    del grad, at_roots
    if need_input:
        values = _turn_columns(values, above)
        mixed = torch.bmm(inputs, trees.transpose(1, 2))
        mixed[:, :, 0] = values
        _put(grads, mixed)


def _stack_columns(columns: Tensor, trees: Tensor) -> Tensor:
    """The roots of the stage below as columns [d_s, c] -> [q_s, b_s, c], padded with zeros where the last tree reaches over the end."""
    count, width, _ = trees.shape
    missing = count * width - len(columns)
    if missing:
        columns = torch.nn.functional.pad(columns, (0, 0, 0, missing))
    return columns.reshape(count, width, -1)


def _turn_columns(columns: Tensor, stages: list[Tensor]) -> Tensor:
    """The stages above the first on columns [d_s, c]. The order of memory suits products from the left, so that nothing is moved."""
    trees, *above = stages
    mixed = torch.bmm(trees, _stack_columns(columns, trees))
    if above:
        mixed[:, 0] = _turn_columns(mixed[:, 0], above)
    return mixed.flatten(0, 1)[: len(columns)]


def _turn_columns_back(columns: Tensor, stages: list[Tensor]) -> Tensor:
    """The transpose of `_turn_columns`."""
    trees, *above = stages
    inputs = _stack_columns(columns, trees)
    if above:
        inputs = inputs.clone()
        inputs[:, 0] = _turn_columns_back(inputs[:, 0], above)
    return torch.bmm(trees.transpose(1, 2), inputs).flatten(0, 1)[: len(columns)]


def _gradients_of_columns(columns: Tensor, grads: Tensor, stages: list[Tensor], sums: list[Tensor]) -> Tensor:
    """Add the gradients of the stages for columns [d_s, c] with gradients [d_s, c], which are used up; return that of the columns."""
    trees, *above = stages
    inputs, upper = _stack_columns(columns, trees), _stack_columns(grads, trees)
    if above:
        values = torch.bmm(trees[:, :1], inputs)[:, 0]
        upper[:, 0] = _gradients_of_columns(values, upper[:, 0].contiguous(), above, sums[1:])
    sums[0] += torch.bmm(upper, inputs.transpose(1, 2))
    return torch.bmm(trees.transpose(1, 2), upper).flatten(0, 1)[: len(columns)]


def _mix_in_graph(x: Tensor, factors: Factors, transpose: bool) -> Tensor:
    """The same product in differentiable operations alone, for compilers that trace."""
    with without_autocast(x):
        return _mix_stages(x, factors.to(x.dtype).stages, transpose)


def _mix_stages(x: Tensor, stages: tuple[Tensor, ...], transpose: bool) -> Tensor:
    trees = stages[0]
    if len(stages) == 1:
        return x @ (trees[0] if transpose else trees[0].T)
    parts = _as_trees(x, trees)
    if transpose:
        roots = _mix_stages(parts[..., 0], stages[1:], transpose)
        mixed = torch.einsum("...tj,tjk->...tk", torch.cat((roots[..., None], parts[..., 1:]), -1), trees)
    else:
        mixed = torch.einsum("...tk,tjk->...tj", parts, trees)
        roots = _mix_stages(mixed[..., 0], stages[1:], transpose)
        mixed = torch.cat((roots[..., None], mixed[..., 1:]), -1)
    return mixed.flatten(-2)[..., : x.shape[-1]]
