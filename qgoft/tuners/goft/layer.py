"""An adapted layer: h = W (R^T x) + b with W frozen; merged, the weight is W R^T (GOFT, section 4: the rows of W are rotated by R).

Shapes: d input width, n output width, x [..., d], W [n, d] (transposed for Conv1D), blocks [d-1, 2, 2].
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qgoft.ops.givens import (
    Factors,
    apply_factors,
    build_factors,
    count_pairs,
    identity_blocks,
    inverse_blocks,
    mix_neighbours,
    mix_pairs,
    pairing_matrix,
    rotated_linear,
    rotation_blocks,
    scale_blocks,
)
from qgoft.ops.givens.dispatch import ON_BLOCKS, can_cache_factors, choose_backend
from qgoft.ops.givens.released_v2 import check_even
from qgoft.tuners._base import MergeableLayer, check_onloaded
from qgoft.tuners.goft.config import GoftConfig
from qgoft.tuners.goft.factor_cache import CacheKey, FactorCache


def _is_plain_linear(base: nn.Module) -> bool:
    """Return True if `base` computes only W x + b with a frozen weight: no subclass, no quantised or sharded weight, no hook, no patch."""
    tensors = [base.weight] if base.bias is None else [base.weight, base.bias]
    hooks = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
    return (
        type(base) in (nn.Linear, Conv1D)
        and all(type(tensor) is nn.Parameter and not tensor.requires_grad for tensor in tensors)
        and not hooks
        and "forward" not in vars(base)
        and not nn.utils.parametrize.is_parametrized(base)
    )


class GoftLayer(MergeableLayer):
    """State of the adapters of one layer: `goft_theta` holds angles, `goft_blocks` free blocks, `goft_scale` the norms of GOFT*."""

    adapter_layer_names = ("goft_theta", "goft_blocks", "goft_scale")
    other_param_names = ("goft_config",)

    def __init__(self, base_layer: nn.Module, factor_cache: FactorCache, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.factor_cache = factor_cache
        self.goft_theta = nn.ParameterDict({})
        self.goft_blocks = nn.ParameterDict({})
        self.goft_scale = nn.ParameterDict({})
        self.goft_config: dict[str, GoftConfig] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.kwargs = kwargs
        base = self.get_base_layer()
        check_onloaded(base)
        if isinstance(base, nn.Linear):
            self.in_features, self.out_features = base.in_features, base.out_features
        elif isinstance(base, Conv1D):
            self.in_features, self.out_features = base.weight.shape
        else:
            raise TypeError(
                f"GOFT cannot adapt a layer of type {type(base).__name__}; supported are torch.nn.Linear and transformers' Conv1D. "
                "Name only such layers in target_modules"
            )
        factor_cache.add(self)

    def update_layer(self, adapter_name: str, config: GoftConfig) -> None:
        """Add one adapter, at the identity unless `config.init_weights` is False."""
        d = self.in_features
        if d < 2:
            raise ValueError(f"width d is {d}; rotations need at least 2 inputs. Remove the layer from target_modules")
        if config.is_released_version:
            check_even(d)
        self.goft_config[adapter_name] = config
        count = count_pairs(d, config.pairing)
        if config.has_free_blocks:
            self.goft_blocks[adapter_name] = nn.Parameter(identity_blocks(count))
        else:
            self.goft_theta[adapter_name] = nn.Parameter(torch.zeros(count))
        if config.variant == "goft_star":
            self.goft_scale[adapter_name] = nn.Parameter(torch.ones(d))
        if not config.init_weights:
            self._randomise(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _randomise(self, adapter_name: str) -> None:
        """Perturb the parameters, so that a test sees an adapter with an effect."""
        for store in (self.goft_theta, self.goft_blocks, self.goft_scale):
            if adapter_name in store:
                parameter = store[adapter_name]
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)

    def get_blocks(self, adapter_name: str) -> Tensor:
        """Return the blocks [d-1, 2, 2] of an adapter (more for a butterfly), differentiable in its parameters."""
        if adapter_name in self.goft_blocks:
            return self.goft_blocks[adapter_name]
        theta = self.goft_theta[adapter_name]
        if self.goft_config[adapter_name].angle == "tanh":
            theta = math.pi * torch.tanh(theta)
        return rotation_blocks(theta)

    def get_parameter_of(self, adapter_name: str) -> Tensor:
        """Return the angles [d-1] or free blocks [d-1, 2, 2] of an adapter."""
        return self.goft_blocks[adapter_name] if adapter_name in self.goft_blocks else self.goft_theta[adapter_name]

    def get_cache_key(self, adapter_name: str) -> CacheKey:
        config = self.goft_config[adapter_name]
        return CacheKey(adapter_name, self.in_features, config.has_free_blocks, config.angle, self.get_parameter_of(adapter_name).dtype)

    def get_factors(self, adapter_name: str) -> Factors:
        """Return R of an adapter as factors, with the scales of GOFT* folded in: R = P_L ... P_1 diag(v)."""
        if can_cache_factors(self.get_parameter_of(adapter_name)):
            factors = self.factor_cache.factors(self, adapter_name)
        else:
            factors = build_factors(self.get_blocks(adapter_name), self.in_features)
        if adapter_name not in self.goft_scale:
            return factors
        if factors.backend in ON_BLOCKS:
            return Factors((scale_blocks(*factors.stages, self.goft_scale[adapter_name]),), factors.backend)
        trees, *rest = factors.stages
        count, width, _ = trees.shape
        scale = nn.functional.pad(self.goft_scale[adapter_name], (0, count * width - self.in_features))
        return Factors((trees * scale.view(count, 1, width), *rest), factors.backend)

    def rotate(self, x: Tensor, adapter_name: str) -> Tensor:
        """Apply R^T to features, in the dtype of x: P_1^T ... P_L^T x; for GOFT* v * (P_1^T ... P_L^T x)."""
        if self.goft_config[adapter_name].is_released_version:
            return mix_neighbours(x, self.get_blocks(adapter_name))
        if self.goft_config[adapter_name].pairing != "tree":
            return x @ self._dense(adapter_name).to(x.dtype)
        return apply_factors(x, self.get_factors(adapter_name), transpose=True)

    def _dense(self, adapter_name: str) -> Tensor:
        """Return R [d, d] of an ordering other than the tree, with the scales of GOFT*, in at least float32."""
        blocks = self.get_blocks(adapter_name)
        blocks = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
        matrix = pairing_matrix(blocks, self.in_features, self.goft_config[adapter_name].pairing)
        return matrix * self.goft_scale[adapter_name] if adapter_name in self.goft_scale else matrix

    def get_matrix(self, adapter_name: str) -> Tensor:
        """Return R [d, d] of an adapter: the layer is applied to R^T x, and merging replaces W by W R^T."""
        blocks = self.get_blocks(adapter_name)
        return self.rotate(torch.eye(self.in_features, dtype=blocks.dtype, device=blocks.device), adapter_name)

    def has_adapter(self, adapter_name: str) -> bool:
        return adapter_name in self.goft_config


def givens_backend(model: nn.Module) -> str | None:
    """Return the backend of the operator in the adapted layers of a model, or None if it has none."""
    layers = (module for module in model.modules() if isinstance(module, GoftLayer))
    return next((choose_backend(layer.get_parameter_of(name)) for layer in layers for name in layer.goft_config), None)


class GoftLinear(nn.Module, GoftLayer):
    """GOFT on torch.nn.Linear, or on transformers' Conv1D, whose weight is stored as [d, n]."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: GoftConfig, factor_cache: FactorCache, **kwargs: Any) -> None:
        super().__init__()
        GoftLayer.__init__(self, base_layer, factor_cache, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.factor_cache.add(self)

    def _rotate_weight(self, weight: Tensor, adapter_name: str, *, reverse: bool) -> Tensor:
        """Return W R^T, or with `reverse` W R^-T: [n, d] -> [n, d], computed in at least float32."""
        blocks = self.get_blocks(adapter_name)
        weight = weight.to(torch.promote_types(weight.dtype, blocks.dtype))
        config = self.goft_config[adapter_name]
        scale = self.goft_scale.get(adapter_name)
        if config.pairing != "tree" or config.is_released_version:
            # Neither has a fast product on the rows of a weight.
            matrix = self.get_matrix(adapter_name).to(weight.dtype)
            return torch.linalg.solve(matrix.T, weight, left=False) if reverse else weight @ matrix.T
        if reverse:
            weight = mix_pairs(weight, inverse_blocks(blocks) if config.has_free_blocks else blocks, transpose=True)
            return weight if scale is None else weight / scale
        return mix_pairs(weight if scale is None else weight * scale, blocks)

    def _merge_into_weight(self, adapter_name: str, *, reverse: bool) -> Tensor:
        base = self.get_base_layer()
        if type(base.weight) is not nn.Parameter or not base.weight.is_floating_point():
            raise TypeError(
                f"cannot merge into a {type(base).__name__} whose weight is a {type(base.weight).__name__} of {base.weight.dtype}: merging needs a "
                "plain floating-point weight. Load the base model without quantisation, put the adapter on it, and merge there"
            )
        stored = base.weight.data
        is_transposed = isinstance(base, Conv1D)
        turned = self._rotate_weight(stored.T if is_transposed else stored, adapter_name, reverse=reverse)
        return (turned.T if is_transposed else turned).to(stored.dtype).contiguous()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter_names = kwargs.pop("adapter_names", None)
        self.was_called = True
        if self.training and not torch.compiler.is_compiling():
            self.factor_cache.warn_if_unpenalised(self)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
        elif adapter_names is not None:
            x = self._rotate_per_example(x, adapter_names)
        elif not self.merged:
            # Merging in order gives W R1^T R2^T, so the last adapter is applied to x first.
            names = [name for name in self.active_adapters if self.has_adapter(name)]
            for name in reversed(names[1:]):
                x = self.rotate(x, name)
            if names:
                return self._rotate_and_apply(x, names[0], *args, **kwargs)
        return self.base_layer(x, *args, **kwargs)

    def _rotate_and_apply(self, x: Tensor, adapter_name: str, *args: Any, **kwargs: Any) -> Tensor:
        """Return W (R^T x) + b: in one step if the base layer is plain and frozen, otherwise by rotating x and calling the layer."""
        base = self.base_layer
        config = self.goft_config[adapter_name]
        if config.is_released_version or config.pairing != "tree" or args or kwargs or not _is_plain_linear(base):
            return self.base_layer(self.rotate(x, adapter_name), *args, **kwargs)
        weight, bias = base.weight, base.bias
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return rotated_linear(x, self.get_factors(adapter_name), weight.T if isinstance(base, Conv1D) else weight, bias)

    def _rotate_per_example(self, x: Tensor, adapter_names: list[str]) -> Tensor:
        """Rotate each item of the batch by its own adapter; "__base__" and adapters that this layer lacks leave it unchanged."""
        if self.merged:
            raise ValueError("adapter_names cannot be used while adapters are merged; call unmerge_adapter() first")
        if len(x) != len(adapter_names):
            raise ValueError(
                f"adapter_names has {len(adapter_names)} entries, but a {self.in_features} wide layer got a batch of {len(x)}. Give one name "
                "per item. A layer that gets another batch than the model (DeBERTa's query and key see the table of relative positions, "
                "batch size 1) cannot be adapted differently per item: remove it from target_modules, or run one adapter at a time"
            )
        mixed = x.clone()
        for name in dict.fromkeys(adapter_names):
            if self.has_adapter(name):
                rows = torch.tensor([i for i, other in enumerate(adapter_names) if other == name], device=x.device)
                mixed = mixed.index_copy(0, rows, self.rotate(x[rows], name))
        return mixed

    def __repr__(self) -> str:
        return "goft." + super().__repr__()
