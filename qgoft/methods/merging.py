"""Adapters inside the weights: for the time of an evaluation, as fast as the bare model whatever the method, or for good."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.fsdp import FSDPModule

from qgoft.errors import QgoftError
from qgoft.methods.registry import AdaptedModel
from qgoft.tuners._base import MergeableLayer


@contextmanager
def merged_for_eval(adapted: AdaptedModel) -> Iterator[None]:
    """Merge the adapters for the time of the block, then put the very same weights back.

    Unmerging by arithmetic would leave rounding errors in frozen weights, once per evaluation: the weights of the adapted layers are kept
    instead, a quarter of what a training step needs for its activations on the models of the papers. Does nothing where merging would
    round (weights of less than 32 bits) or cannot be done (quantised or sharded weights, adapters that are not linear, methods that only free parameters).
    """
    layers = [module for module in adapted.model.modules() if isinstance(module, BaseTunerLayer)]
    bases = [layer.get_base_layer() for layer in layers]
    is_mergeable = all(getattr(layer, "is_mergeable", True) for layer in layers)
    is_sharded = any(isinstance(module, FSDPModule) for module in adapted.model.modules())
    if not layers or not is_mergeable or is_sharded or any(layer.merged for layer in layers) or not all(_is_exact(base) for base in bases):
        yield
        return
    # peft's own layers write into the weight; those of this project put another parameter in its place.
    kept = [
        (base.weight, None if isinstance(layer, MergeableLayer) else base.weight.data.clone())
        for layer, base in zip(layers, bases, strict=True)
    ]
    try:
        adapted.model.merge_adapter()
        yield
    finally:
        for layer, base, (weight, values) in zip(layers, bases, kept, strict=True):
            base.weight = weight
            if values is not None:
                weight.data = values
            layer.merged_adapters.clear()


def merge_and_unload(adapted: AdaptedModel) -> nn.Module:
    """The model with its adapters put into the weights and no layer of peft left.

    Raises:
        QgoftError: the method is no part of the weights, or merging would leave values that are not finite.
    """
    if not adapted.is_peft:
        return adapted.model
    tuner = adapted.model.base_model
    # peft moves `weight` onto whatever takes a layer's place, and fails where that is a saved module without one, such as DeBERTa's
    # pooler; what takes the place here is the layer itself.
    tuner._replace_module = lambda parent, name, new_module, _: setattr(parent, name, new_module)
    try:
        plain: nn.Module = adapted.model.merge_and_unload(safe_merge=True)
    except (ValueError, TypeError) as error:
        raise QgoftError(f"the adapters cannot be put into the weights: {error}") from error
    return plain


def _is_exact(base: nn.Module) -> bool:
    weight = getattr(base, "weight", None)
    return type(weight) is nn.Parameter and weight.dtype in (torch.float32, torch.float64)
