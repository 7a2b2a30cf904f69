"""Merging of adapters into the weights, temporarily for an evaluation or permanently."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.fsdp import FSDPModule

from qgoft.errors import QgoftError
from qgoft.methods.registry import AdaptedModel
from qgoft.tuners._base import MergeableLayer


@contextmanager
def merged_layers(model: nn.Module) -> Iterator[None]:
    """Merge the adapters of a peft model inside the block, then restore the exact weights.

    Unmerging by arithmetic would leave rounding errors in frozen weights at every evaluation, so the weights of the adapted layers are
    kept; on the papers' models that is a quarter of a training step's activations.

    Raises:
        NotImplementedError, ValueError, TypeError: the adapters cannot be merged; the weights are unchanged.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    # peft's layers write into weights and biases in place; those of this package replace the weight.
    kept = [
        (parameter, None if isinstance(layer, MergeableLayer) else parameter.data.clone(), base, name)
        for layer in layers
        for base in [layer.get_base_layer()]
        for name in ("weight", "bias")
        if isinstance(parameter := getattr(base, name, None), nn.Parameter)
    ]
    tuner: Any = model
    try:
        tuner.merge_adapter()
        yield
    finally:
        for parameter, values, base, name in kept:
            setattr(base, name, parameter)
            if values is not None:
                parameter.data = values
        for layer in layers:
            layer.merged_adapters.clear()


@contextmanager
def merged_for_eval(adapted: AdaptedModel) -> Iterator[None]:
    """Merge the adapters inside the block (`merged_layers`) if the result is the same.

    Does nothing if merging would round (weights below 32 bits) or is impossible (quantised or sharded weights, adapters that are not
    linear, methods without adapters).
    """
    layers = [module for module in adapted.model.modules() if isinstance(module, BaseTunerLayer)]
    is_mergeable = all(getattr(layer, "is_mergeable", True) for layer in layers)
    is_sharded = any(isinstance(module, FSDPModule) for module in adapted.model.modules())
    is_exact = all(_is_exact(layer.get_base_layer()) for layer in layers)
    with ExitStack() as stack:
        if layers and is_mergeable and is_exact and not is_sharded and not any(layer.merged for layer in layers):
            with suppress(NotImplementedError):  # such as peft's Lily
                stack.enter_context(merged_layers(adapted.model))
        yield


def merge_and_unload(adapted: AdaptedModel) -> nn.Module:
    """Return the model with its adapters merged and all peft layers removed.

    Raises:
        QgoftError: the method cannot be merged, or merged weights would not be finite.
    """
    if not adapted.is_peft:
        return adapted.model
    tuner = adapted.model.base_model
    # peft moves `weight` onto the replacement of a layer, and fails if that is a saved module without one, such as DeBERTa's pooler. Here
    # the replacement is the layer itself.
    tuner._replace_module = lambda parent, name, new_module, _: setattr(parent, name, new_module)
    try:
        plain: nn.Module = adapted.model.merge_and_unload(safe_merge=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise QgoftError(f"the adapters cannot be merged: {error}") from error
    return plain


def _is_exact(base: nn.Module) -> bool:
    weight = getattr(base, "weight", None)
    return type(weight) is nn.Parameter and weight.dtype in (torch.float32, torch.float64)
