"""Adapters behind a module: y + up(f(down(y))) on its output y. Houlsby et al. (2019) and Pfeiffer et al. (2021) differ in where they sit.

Shapes: y [..., w], down [r, w], up [w, r].
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qgoft.tuners.layerwise import LayerwiseConfig, LayerwiseLayer, LayerwiseModel

ACTIVATIONS = {"relu": nn.functional.relu, "gelu": nn.functional.gelu}


@dataclass
class BottleneckConfig(LayerwiseConfig):
    """A bottleneck of r units with biases behind every target, starting at the identity: `up` is zero, `down` drawn from N(0, 0.02^2).

    Raises:
        ValueError: an unknown activation, or r below 1.
    """

    kind: ClassVar[str] = "BOTTLENECK"
    r: int = field(default=8, metadata={"help": "Width of the bottleneck."})
    activation: Literal["relu", "gelu"] = field(default="gelu", metadata={"help": "f."})

    def __post_init__(self):
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"BottleneckConfig(activation={self.activation!r}): allowed are {', '.join(map(repr, ACTIVATIONS))}")
        if self.r < 1:
            raise ValueError(f"BottleneckConfig(r={self.r}): allowed are 1 and more")


class BottleneckLayer(LayerwiseLayer):
    adapter_layer_names = ("bottleneck_down", "bottleneck_down_bias", "bottleneck_up", "bottleneck_up_bias")
    supported: ClassVar[tuple[type, ...]] = (nn.Linear, Conv1D, nn.LayerNorm)
    is_mergeable = False

    def add(self, adapter_name: str, config: BottleneckConfig) -> None:
        r, width = config.r, self.out_features
        self.bottleneck_down[adapter_name] = nn.Parameter(0.02 * torch.randn(r, width))
        self.bottleneck_down_bias[adapter_name] = nn.Parameter(torch.zeros(r))
        self.bottleneck_up[adapter_name] = nn.Parameter(torch.zeros(width, r))
        self.bottleneck_up_bias[adapter_name] = nn.Parameter(torch.zeros(width))

    def adapt(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        for name in names:
            down = self.bottleneck_down[name]
            inner = nn.functional.linear(y.to(down.dtype), down, self.bottleneck_down_bias[name])
            inner = ACTIVATIONS[self.config_of[name].activation](inner)
            y = y + nn.functional.linear(inner, self.bottleneck_up[name], self.bottleneck_up_bias[name]).to(y.dtype)
        return y


class BottleneckModel(LayerwiseModel):
    prefix = "bottleneck_"
    layer_class: ClassVar[type[LayerwiseLayer]] = BottleneckLayer

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        raise ValueError("bottleneck adapters cannot be merged: they are not linear in the input")
