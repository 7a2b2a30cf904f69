"""Bottleneck adapters: up(f(down(h))) added to the output of a sublayer, as in AdaLoRA's code (Zhang et al., 2023; the rows that GOFT
copied).

Shapes: h [..., w], down [r, w], up [w, r].
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qgoft.tuners.layerwise import LayerwiseConfig, LayerwiseLayer, LayerwiseModel, check_setting, linear_shape

# Houlsby et al. (2019) and Pfeiffer et al. (2021), with the activations of AdaLoRA's code.
ACTIVATIONS = {"houlsby": nn.functional.silu, "pfeiffer": nn.functional.relu}
INIT_STD = 0.02  # initializer_range of the backbone, which that code applies to both matrices


def bottleneck_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (outputs, inputs) of a linear layer, or of the projection of a post-norm output block; None for other modules."""
    return linear_shape(module.dense if is_post_norm(module) else module)


def is_post_norm(module: nn.Module) -> bool:
    """Return True for an output block of BERT or DeBERTa: LayerNorm(dropout(dense(h)) + x)."""
    return all(isinstance(getattr(module, name, None), nn.Module) for name in ("dense", "dropout", "LayerNorm"))


@dataclass
class BottleneckConfig(LayerwiseConfig):
    """Bottleneck of r units with biases after every target; both matrices are drawn from N(0, 0.02^2), the biases are zero.

    On a post-norm output block with input h and residual x, with a = dropout(dense(h)):

    - houlsby: LayerNorm(a + up(swish(down(a))) + x)
    - pfeiffer: LayerNorm(up(relu(down(LayerNorm(a + x)))) + a + x)

    On a linear layer with output y: y + up(f(down(y))).

    Raises:
        ValueError: an unknown form, or r below 1.
    """

    kind: ClassVar[str] = "BOTTLENECK"
    r: int = field(default=8, metadata={"help": "Width of the bottleneck."})
    form: Literal["houlsby", "pfeiffer"] = field(default="houlsby", metadata={"help": "Activation, and place relative to the norm."})

    def __post_init__(self):
        super().__post_init__()
        check_setting(self, "form", ACTIVATIONS)
        if self.r < 1:
            raise ValueError(f"BottleneckConfig(r={self.r}): allowed are 1 and more")


class BottleneckLayer(LayerwiseLayer):
    adapter_layer_names = ("bottleneck_down", "bottleneck_down_bias", "bottleneck_up", "bottleneck_up_bias")
    shape_of = staticmethod(bottleneck_shape)
    supported = "torch.nn.Linear, transformers' Conv1D and the output blocks of BERT and DeBERTa"
    is_mergeable = False

    def add(self, adapter_name: str, config: BottleneckConfig) -> None:
        r, width = config.r, self.out_features
        self.bottleneck_down[adapter_name] = nn.Parameter(INIT_STD * torch.randn(r, width))
        self.bottleneck_down_bias[adapter_name] = nn.Parameter(torch.zeros(r))
        self.bottleneck_up[adapter_name] = nn.Parameter(INIT_STD * torch.randn(width, r))
        self.bottleneck_up_bias[adapter_name] = nn.Parameter(torch.zeros(width))

    def bottleneck(self, h: Tensor, name: str) -> Tensor:
        """Return up(f(down(h))) of one adapter [..., w], in the dtype of h."""
        down = self.bottleneck_down[name]
        inner = nn.functional.linear(h.to(down.dtype), down, self.bottleneck_down_bias[name])
        inner = ACTIVATIONS[self.config_of[name].form](inner)
        return nn.functional.linear(inner, self.bottleneck_up[name], self.bottleneck_up_bias[name]).to(h.dtype)

    def adapt(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if is_post_norm(self.base_layer):
            return self._adapt_post_norm(x, names, *args, **kwargs)
        y = self.base_layer(x, *args, **kwargs)
        for name in names:
            y = y + self.bottleneck(y, name)
        return y

    def _adapt_post_norm(self, hidden_states: Tensor, names: list[str], input_tensor: Tensor) -> Tensor:
        block = self.base_layer
        h = block.dropout(block.dense(hidden_states))
        for name in names:
            is_normed = self.config_of[name].form == "pfeiffer"
            h = h + self.bottleneck(block.LayerNorm(h + input_tensor) if is_normed else h, name)
        return block.LayerNorm(h + input_tensor)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        return super()._get_base_layer_device_and_dtype(base_layer.dense if is_post_norm(base_layer) else base_layer)


class BottleneckModel(LayerwiseModel):
    prefix = "bottleneck_"
    layer_class: ClassVar[type[LayerwiseLayer]] = BottleneckLayer

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        raise ValueError("bottleneck adapters cannot be merged: they are not linear in the input")
