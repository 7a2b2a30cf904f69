"""The product as a compiler sees it: differentiable operations, or the operator of the native kernels."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from qgoft.ops.givens.factors import Factors
from qgoft.ops.givens.native.operators import rotate as rotate_operator


def disable_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Disable autocast: the operands are cast already. The meta device, which has shapes only, has no autocast. Entering a context takes
    longer than rotating a few rows, so it is entered only if autocast is on.
    """
    is_on = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if is_on else nullcontext()


def pad_to_trees(rows: Tensor, trees: Tensor) -> Tensor:
    """Reshape [..., d] to [..., q, b], padded with zeros if b does not divide d."""
    count, width, _ = trees.shape
    missing = count * width - rows.shape[-1]
    if missing:
        rows = torch.nn.functional.pad(rows, (0, missing))
    return rows.reshape(*rows.shape[:-1], count, width)


def apply_traced(x: Tensor, factors: Factors, transpose: bool) -> Tensor:
    """Compute the same product for a compiler: by the operator of the native kernels, or by operations that it traces."""
    if factors.backend == "native":
        product: Tensor = rotate_operator(x, *factors.stages, transpose)
        return product
    return apply_in_graph(x, factors, transpose)


def apply_in_graph(x: Tensor, factors: Factors, transpose: bool) -> Tensor:
    """Compute the same product with differentiable operations only, for compilers that trace."""
    with disable_autocast(x):
        return _apply_stages(x, factors.to(x.dtype).stages, transpose)


def _apply_stages(x: Tensor, stages: tuple[Tensor, ...], transpose: bool) -> Tensor:
    trees = stages[0]
    if len(stages) == 1:
        return x @ (trees[0] if transpose else trees[0].T)
    parts = pad_to_trees(x, trees)
    if transpose:
        roots = _apply_stages(parts[..., 0], stages[1:], transpose)
        product = torch.einsum("...tj,tjk->...tk", torch.cat((roots[..., None], parts[..., 1:]), -1), trees)
    else:
        product = torch.einsum("...tk,tjk->...tj", parts, trees)
        roots = _apply_stages(product[..., 0], stages[1:], transpose)
        product = torch.cat((roots[..., None], product[..., 1:]), -1)
    return product.flatten(-2)[..., : x.shape[-1]]
