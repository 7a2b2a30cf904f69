"""Reference definition: every pair in turn, dense, in float64. Slow; all faster implementations are tested against it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def pairs(d: int) -> Iterator[tuple[int, int, int]]:
    """Yield (level, i, j) for the d-1 coordinate pairs of width d, level 1 first, then by i.

    Level r = 1..ceil(log2 d) has stride s = 2^(r-1) and pairs (i, i + s) for i = 0, 2s, 4s, ... with i + s < d.
    """
    level, stride = 1, 1
    while stride < d:
        for i in range(0, d - stride, 2 * stride):
            yield level, i, i + stride
        level, stride = level + 1, 2 * stride


def reference_matrix(blocks: Tensor, d: int) -> Tensor:
    """Return the dense R = P_L ... P_1 of width d, directly from the definition.

    Args:
        blocks: [d-1, 2, 2], ordered as `pairs` yields them; block k acts on column vectors (x_i, x_j).
        d: width, at least 2.

    Returns:
        [d, d] in float64, with y = R x.

    Raises:
        ValueError: the number of blocks is not d - 1.
    """
    check_blocks(blocks, d)
    rows = list(torch.eye(d, dtype=torch.float64, device=blocks.device))
    for block, (_, i, j) in zip(blocks.double(), pairs(d), strict=True):
        rows[i], rows[j] = block[0, 0] * rows[i] + block[0, 1] * rows[j], block[1, 0] * rows[i] + block[1, 1] * rows[j]
    return torch.stack(rows)


def check_blocks(blocks: Tensor, d: int) -> None:
    """Raise ValueError unless the blocks match width d."""
    if d < 2:
        raise ValueError(f"width d is {d}; a rotation needs at least two coordinates (d >= 2)")
    if tuple(blocks.shape[-3:]) != (d - 1, 2, 2):
        raise ValueError(f"blocks have shape {tuple(blocks.shape)}; width d={d} needs [d-1, 2, 2] = [{d - 1}, 2, 2]")


class CheckCase(NamedTuple):
    """A small case of odd width, with which kernels are checked before their first use: float32 inputs, and float64 results of y = R x.

    `exact_rows` and `exact_blocks` are the gradients of rows and blocks for the gradient `grads` of y.
    """

    rows: Tensor
    grads: Tensor
    blocks: Tensor
    exact: Tensor
    exact_rows: Tensor
    exact_blocks: Tensor


def run_without_modes(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread of its own: the first use of a kernel may be in inference mode, on the meta device, under autocast or
    with hooks on saved tensors, and all of these belong to the thread that set them.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def build_check_case(device: torch.device) -> CheckCase:
    """Build the case on a device."""
    d, count = 77, 37
    generator = torch.Generator().manual_seed(0)
    blocks = (torch.eye(2, dtype=torch.float32) + 0.3 * torch.randn(d - 1, 2, 2, generator=generator, dtype=torch.float32)).to(device)
    rows, grads = (torch.randn(count, d, generator=generator, dtype=torch.float32).to(device) for _ in range(2))
    double_rows, double_blocks = rows.double().requires_grad_(), blocks.double().requires_grad_()
    exact = double_rows @ reference_matrix(double_blocks, d).T
    exact_rows, exact_blocks = torch.autograd.grad(exact, (double_rows, double_blocks), grads.double())
    return CheckCase(rows, grads, blocks, exact.detach(), exact_rows, exact_blocks)
