"""Adapters between frozen singular vectors: LoRA-XS and SVFT.

W = U diag(s) V^T is computed from the pretrained weight when an adapter is added and is not saved, so the base model must be the same.
Singular vectors are unique up to their sign, which is fixed here for all libraries.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from qgoft.tuners.layerwise import DeltaLayer, LayerwiseConfig, LayerwiseLayer, LayerwiseModel, check_dropout, check_rank, check_setting

Factors = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def singular_factors(weight: Tensor, r: int, iterations: int | None = None) -> Factors:
    """Return the r largest singular values and vectors of W [n, d]: U [n, r], s [r], V [d, r].

    Args:
        iterations: of the randomised method (Halko et al., 2011), seeded without changing the caller's random state; None for the full SVD.
    """
    n, d = weight.shape
    if weight.is_meta:
        return weight.new_empty(n, r), weight.new_empty(r), weight.new_empty(d, r)
    if iterations is None:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, v = u[:, :r], s[:r], vh[:r].T
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(weight, q=r, niter=iterations)
    largest = u.abs().argmax(0, keepdim=True)
    svd_signs = u.gather(0, largest).sign()
    return u * svd_signs, s, v * svd_signs


class SingularLayer(DeltaLayer):
    """Layer that stores the frozen factors of every adapter: `left` [n, k] and `right` [d, k]."""

    frozen_names = ("left", "right")
    other_param_names = ("config_of", *frozen_names)

    def keep(self, adapter_name: str, left: Tensor, right: Tensor) -> None:
        self.left[adapter_name], self.right[adapter_name] = left.contiguous(), right.contiguous()


@dataclass
class LoraXsConfig(LayerwiseConfig):
    """LoRA-XS (Balazy et al., 2024) with a trainable R [r, r], drawn from N(0, 1e-5^2).

    singular_values: `input` is D = scale * U_r R diag(s_r) V_r^T, as in its code (which decomposes W^T); `output` is the paper's
    D = scale * U_r diag(s_r) R V_r^T. Adam takes different steps for the two.

    Raises:
        ValueError: an unknown side, or a dropout outside [0, 1).
    """

    kind: ClassVar[str] = "LORA_XS"
    r: int = field(default=16, metadata={"help": "Rank."})
    scale: float = field(default=1.0, metadata={"help": "Factor of the update, alpha / r in the paper."})
    svd_iterations: int | None = field(default=None, metadata={"help": "Iterations of a randomised SVD; none for the full one."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout of the input."})
    singular_values: Literal["input", "output"] = field(default="input", metadata={"help": "Side of R that carries the singular values."})

    def __post_init__(self):
        super().__post_init__()
        check_setting(self, "singular_values", ("input", "output"))
        check_dropout(self)


class LoraXsLayer(SingularLayer):
    adapter_layer_names = ("lora_xs_R",)

    def add(self, adapter_name: str, config: LoraXsConfig) -> None:
        check_rank(config.r, self.out_features, self.in_features)
        u, s, v = singular_factors(self.pretrained_weight(), config.r, config.svd_iterations)
        self.keep(adapter_name, *((u, v * s) if config.singular_values == "input" else (u * s, v)))
        self.lora_xs_R[adapter_name] = nn.Parameter(1e-5 * torch.randn(config.r, config.r))

    def get_delta(self, adapter_name: str) -> Tensor:
        wide = torch.float32
        core = self.config_of[adapter_name].scale * self.lora_xs_R[adapter_name].to(wide)
        return self.left[adapter_name].to(wide) @ core @ self.right[adapter_name].to(wide).T

    def apply_delta(self, x: Tensor, adapter_name: str) -> Tensor:
        x = nn.functional.dropout(x, self.config_of[adapter_name].dropout, self.training)
        small = nn.functional.linear(x @ self.right[adapter_name].to(x.dtype), self.lora_xs_R[adapter_name])
        return self.config_of[adapter_name].scale * nn.functional.linear(small, self.left[adapter_name].to(x.dtype))


class LoraXsModel(LayerwiseModel):
    prefix = "lora_xs_"
    layer_class: ClassVar[type[LayerwiseLayer]] = LoraXsLayer


@dataclass
class SvftConfig(LayerwiseConfig):
    """SVFT_P (Lingam et al., 2024): D = sigmoid(g) U diag(m) V^T over all k = min(n, d) singular vectors.

    As in its code, m is drawn from N(0, 2 / k) (Kaiming's rule on [1, k]) and each layer has a trainable gate g, initialised to 0. The
    paper has m = 0 and no gate.
    """

    kind: ClassVar[str] = "SVFT"


class SvftLayer(SingularLayer):
    adapter_layer_names = ("svft_m", "svft_gate")

    def add(self, adapter_name: str, config: SvftConfig) -> None:
        rank = min(self.out_features, self.in_features)
        u, _, v = singular_factors(self.pretrained_weight(), rank)
        self.keep(adapter_name, u, v)
        self.svft_m[adapter_name] = nn.Parameter(math.sqrt(2 / rank) * torch.randn(rank))
        self.svft_gate[adapter_name] = nn.Parameter(torch.zeros(1))

    def get_values(self, adapter_name: str) -> Tensor:
        """Return sigmoid(g) m [k]."""
        return torch.sigmoid(self.svft_gate[adapter_name]) * self.svft_m[adapter_name]

    def get_delta(self, adapter_name: str) -> Tensor:
        wide = torch.float32
        return (self.left[adapter_name].to(wide) * self.get_values(adapter_name).to(wide)) @ self.right[adapter_name].to(wide).T

    def apply_delta(self, x: Tensor, adapter_name: str) -> Tensor:
        inner = (x @ self.right[adapter_name].to(x.dtype)) * self.get_values(adapter_name)
        return nn.functional.linear(inner, self.left[adapter_name].to(x.dtype))


class SvftModel(LayerwiseModel):
    prefix = "svft_"
    layer_class: ClassVar[type[LayerwiseLayer]] = SvftLayer
