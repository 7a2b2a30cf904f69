"""The stages above the first, on the roots of the trees as columns [d_s, c], so that products are from the left and nothing is copied."""

import torch
from torch import Tensor


def _stack_columns(columns: Tensor, trees: Tensor) -> Tensor:
    """Reshape the roots of the lower stage [d_s, c] to [q_s, b_s, c], padded with zeros if the last tree extends beyond the end."""
    count, width, _ = trees.shape
    missing = count * width - len(columns)
    if missing:
        columns = torch.nn.functional.pad(columns, (0, 0, 0, missing))
    return columns.reshape(count, width, -1)


def apply_to_columns(columns: Tensor, stages: list[Tensor]) -> Tensor:
    """Apply the stages above the first to columns [d_s, c]. The memory order suits products from the left, so nothing is copied."""
    trees, *upper_stages = stages
    product = torch.bmm(trees, _stack_columns(columns, trees))
    if upper_stages:
        product[:, 0] = apply_to_columns(product[:, 0], upper_stages)
    return product.flatten(0, 1)[: len(columns)]


def apply_transpose_to_columns(columns: Tensor, stages: list[Tensor]) -> Tensor:
    """Apply the transpose of `apply_to_columns`."""
    trees, *upper_stages = stages
    inputs = _stack_columns(columns, trees)
    if upper_stages:
        inputs = inputs.clone()
        inputs[:, 0] = apply_transpose_to_columns(inputs[:, 0], upper_stages)
    return torch.bmm(trees.transpose(1, 2), inputs).flatten(0, 1)[: len(columns)]


def backward_of_columns(columns: Tensor, grads: Tensor, stages: list[Tensor], sums: list[Tensor]) -> Tensor:
    """Add the gradients of the stages for columns [d_s, c] with gradients [d_s, c], which are overwritten; return the gradient of the
    columns.
    """
    trees, *upper_stages = stages
    inputs, upper = _stack_columns(columns, trees), _stack_columns(grads, trees)
    if upper_stages:
        values = torch.bmm(trees[:, :1], inputs)[:, 0]
        upper[:, 0] = backward_of_columns(values, upper[:, 0].contiguous(), upper_stages, sums[1:])
    sums[0] += torch.bmm(upper, inputs.transpose(1, 2))
    return torch.bmm(trees.transpose(1, 2), upper).flatten(0, 1)[: len(columns)]
