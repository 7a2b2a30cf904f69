"""Evaluation with the adapters inside the weights: as fast as the bare model, whatever the method."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.fsdp import FSDPModule

from qgoft.methods.base import Adapted


@contextmanager
def merged(adapted: Adapted) -> Iterator[None]:
    """Merge the adapters for the time of the block, then put the very same weights back.

    Unmerging by arithmetic would leave rounding errors in frozen weights, once per evaluation: a copy of the adapted layers' weights is
    kept instead, a quarter of what a training step needs for its activations on the models of the papers. Does nothing where merging would
    round (weights of less than 32 bits) or cannot be done (quantised or sharded weights, adapters that are not linear, methods that only free parameters).
    """
    layers = [module for module in adapted.model.modules() if isinstance(module, BaseTunerLayer)]
    bases = [layer.get_base_layer() for layer in layers]
    is_mergeable = all(getattr(layer, "is_mergeable", True) for layer in layers)
    is_divided = any(isinstance(module, FSDPModule) for module in adapted.model.modules())
    if not layers or not is_mergeable or is_divided or any(layer.merged for layer in layers) or not all(_is_exact(base) for base in bases):
        yield
        return
    kept = [base.weight.data.clone() for base in bases]
    try:
        adapted.model.merge_adapter()
        yield
    finally:
        for layer, base, weight in zip(layers, bases, kept, strict=True):
            base.weight.data = weight
            layer.merged_adapters.clear()


def _is_exact(base: nn.Module) -> bool:
    weight = getattr(base, "weight", None)
    return type(weight) is nn.Parameter and weight.dtype in (torch.float32, torch.float64)
