"""The native kernels as operators of torch.library, which torch.compile can call without tracing into them. Eager code calls the kernels
directly, which is faster for small inputs.
"""

from typing import Any

import torch
from torch import Tensor

from qgoft.ops.givens import native


@torch.library.custom_op("qgoft::rotate", mutates_args=(), device_types="cpu")
def rotate(x: Tensor, blocks: Tensor, transpose: bool) -> Tensor:
    """Apply R or R^T to x [..., d], for blocks [d-1, 2, 2]. Differentiable once."""
    rows = x.reshape(-1, x.shape[-1])
    return (native.transpose if transpose else native.forward)(rows, blocks).view(x.shape)


@torch.library.custom_op("qgoft::rotate_backward", mutates_args=(), device_types="cpu")
def rotate_backward(x: Tensor, grad: Tensor, blocks: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the blocks."""
    rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1]).to(x.dtype)
    pair = (grads, rows) if transpose else (rows, grads)
    grad_blocks, grad_x = native.backward(*pair, blocks, overwrite=False, need_input=True, transpose=transpose)
    assert grad_x is not None
    return grad_x.view(x.shape), grad_blocks.to(blocks.dtype)


@rotate.register_fake
def _(x: Tensor, blocks: Tensor, transpose: bool) -> Tensor:
    return x.new_empty(x.shape)


@rotate_backward.register_fake
def _(x: Tensor, grad: Tensor, blocks: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), blocks.new_empty(blocks.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    x, blocks, ctx.transpose = inputs
    ctx.save_for_backward(x, blocks)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *torch.ops.qgoft.rotate_backward(ctx.saved_tensors[0], grad, ctx.saved_tensors[1], ctx.transpose), None


rotate.register_autograd(_backward, setup_context=_save)
