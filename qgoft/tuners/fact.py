"""FacT (Jie and Deng, 2023): one small tensor for the updates of all layers.

With w the width of the model, a layer of n = p w outputs and d = q w inputs consists of p x q matrices [w, w]. Each has its own core
between U [w, r] and V [w, r], which all layers share: D_ij = scale * V core_ij^T U^T. FacT-TT trains the cores [r, r]; FacT-TK trains a
vector of length r per core and computes the core from a shared tensor C [r, r, r].

FacT-TK's code reshapes the four cores of a feed-forward layer together, which interleaves them: entry (a, c) of the matrix of part j is
entry (a, i // 4) of core i % 4 at i = j r + c. That is layout `code`; layout `formula` is the paper's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qgoft.tuners.layerwise import DeltaLayer, LayerwiseConfig, LayerwiseLayer, LayerwiseModel, check_dropout, check_setting


@dataclass
class FactConfig(LayerwiseConfig):
    """FacT-TT or FacT-TK of rank r.

    Raises:
        ValueError: an unknown form or layout, r below 1, or a dropout outside [0, 1).
    """

    kind: ClassVar[str] = "FACT"
    form: Literal["tt", "tk"] = field(
        default="tt", metadata={"help": "tt: one core per matrix. tk: one vector per matrix and a shared tensor."}
    )
    r: int = field(default=16, metadata={"help": "Rank."})
    scale: float = field(default=1.0, metadata={"help": "Factor of the updates."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout between core and V."})
    layout: Literal["code", "formula"] = field(
        default="code", metadata={"help": "Layout of FacT-TK's cores if a layer has several slices."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_setting(self, "layout", ("code", "formula"))
        check_dropout(self)
        check_setting(self, "form", ("tt", "tk"))
        if self.r < 1:
            raise ValueError(f"FactConfig(r={self.r}): allowed are 1 and more")


def model_width(shapes: list[tuple[int, int]]) -> int:
    """Return the smallest width of the layers [(n, d), ...].

    Raises:
        ValueError: another width is not a multiple of it, so that there is no tensor of equal matrices.
    """
    widths = sorted({width for shape in shapes for width in shape})
    if not widths:
        raise ValueError("no layer to adapt: target_modules matches none")
    odd = [width for width in widths if width % widths[0]]
    if odd:
        raise ValueError(
            f"widths {', '.join(map(str, widths))}: FacT stacks matrices of one width, and {odd[0]} is not a multiple of {widths[0]}; choose other "
            "target_modules"
        )
    return widths[0]


class FactLayer(DeltaLayer):
    adapter_layer_names = ("fact_core",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: FactConfig, model: "FactModel") -> None:
        # A plain reference: the factors belong to the model, where they are saved and counted once.
        object.__setattr__(self, "_model", model)
        super().__init__(base_layer, adapter_name, config)

    def add(self, adapter_name: str, config: FactConfig) -> None:
        width = len(self._model.fact_u[adapter_name])
        p, q, r = self.out_features // width, self.in_features // width, config.r
        if min(p, q) > 1 and config.form == "tk" and config.layout == "code":
            raise ValueError(f"FacT-TK's code has no layer of {q} x {p} parts; use layout 'formula' or other target_modules")
        shape = (q, p, r, r) if config.form == "tt" else (q, p, r)
        # Initialised as in the authors' code: a core as the weight of a linear layer, all vectors of the model together as one Xavier
        # matrix.
        bound = math.sqrt(1 / (q * r)) if config.form == "tt" else math.sqrt(6 / (r + self._model.matrices[adapter_name]))
        self.fact_core[adapter_name] = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def get_cores(self, adapter_name: str) -> Tensor:
        """Return the cores [q, p, r, r]: from part i of the input to part j of the output."""
        core, config = self.fact_core[adapter_name], self.config_of[adapter_name]
        if config.form == "tt":
            return core
        cores = torch.einsum("abk,qpk->qpab", self._model.fact_c[adapter_name].to(core.dtype), core)
        return interleave_cores(cores) if config.layout == "code" else cores

    def apply_delta(self, x: Tensor, adapter_name: str) -> Tensor:
        u, v = self._model.fact_u[adapter_name].to(x.dtype), self._model.fact_v[adapter_name].to(x.dtype)
        cores, config = self.get_cores(adapter_name), self.config_of[adapter_name]
        q, p, r, _ = cores.shape
        small = (x.unflatten(-1, (q, -1)) @ u).flatten(-2) @ cores.permute(0, 2, 1, 3).reshape(q * r, p * r)
        small = nn.functional.dropout(small, config.dropout, self.training)
        return config.scale * (small.unflatten(-1, (p, r)) @ v.T).flatten(-2)

    def get_delta(self, adapter_name: str) -> Tensor:
        u, v = self._model.fact_u[adapter_name], self._model.fact_v[adapter_name]
        blocks = torch.einsum("wa,qpab,zb->pzqw", u, self.get_cores(adapter_name).to(u.dtype), v)
        return self.config_of[adapter_name].scale * blocks.reshape(self.out_features, self.in_features)


def interleave_cores(cores: Tensor) -> Tensor:
    """Interleave cores [q, p, r, r], q or p = 1, as FacT-TK's code does: those of one layer with the part as the fastest index."""
    q, p, r, _ = cores.shape
    if p > 1:  # [a, b, part] -> [a, part' c]
        return cores[0].permute(1, 2, 0).reshape(r, p, r).transpose(0, 1)[None]
    # [a, b, part] -> [a, part' c], of which the code applies the transpose
    return cores[:, 0].permute(1, 2, 0).reshape(r, q, r).permute(1, 2, 0)[:, None] if q > 1 else cores


class FactModel(LayerwiseModel):
    """Model with U, V and C of every adapter."""

    prefix = "fact_"
    layer_class: ClassVar[type[LayerwiseLayer]] = FactLayer
    uses_shared_state = True

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Create the shared factors before the layers that use them. peft calls this for every adapter, for the first one in its __init__."""
        if "fact_u" not in self._modules:
            self.fact_u, self.fact_v, self.fact_c = nn.ParameterDict({}), nn.ParameterDict({}), nn.ParameterDict({})
            self.matrices: dict[str, int] = {}  # number of matrices of all layers, by adapter
        self._make_factors(model, adapter_name, self.peft_config[adapter_name])
        # peft makes the active adapters' parameters trainable again afterwards, but only those in layers.
        before = {parameter: parameter.requires_grad for parameter in self._factors()}
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for parameter, is_free in before.items():
            parameter.requires_grad_(is_free)

    def _make_factors(self, model: nn.Module, adapter_name: str, config: FactConfig) -> None:
        targets = _maybe_include_all_linear_layers(self._prepare_adapter_config(config, self.get_model_config(model)), model)
        shapes, weight = [], None
        for key, module in model.named_modules():
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            if isinstance(base, nn.Linear | Conv1D) and self._check_target_module_exists(targets, key):
                weight = base.weight
                shapes.append((weight.shape[1], weight.shape[0]) if isinstance(base, Conv1D) else (weight.shape[0], weight.shape[1]))
        width, r = model_width(shapes), config.r
        self.matrices[adapter_name] = sum(n // width * (d // width) for n, d in shapes)
        assert weight is not None
        # At least float32: peft casts only parameters in layers, and does not tell a tuner that it was asked not to.
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
        bound = math.sqrt(1 / width)
        factors = {"fact_u": torch.empty(width, r).uniform_(-bound, bound), "fact_v": torch.zeros(width, r)}
        if config.form == "tk":
            factors["fact_c"] = nn.init.xavier_uniform_(torch.empty(r, r, r))
        is_trained = adapter_name in self.active_adapters and not config.inference_mode
        for name, value in factors.items():
            if not config.init_weights:
                value = value + 0.1 * torch.randn_like(value)
            getattr(self, name)[adapter_name] = nn.Parameter(value.to(weight.device, dtype), requires_grad=is_trained)

    def _new_layer(self, target: nn.Module, adapter_name: str, config: Any) -> LayerwiseLayer:
        return FactLayer(target, adapter_name, config, self)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_name, inference_mode)
        active = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for store in (self.fact_u, self.fact_v, self.fact_c):
            for name, parameter in store.items():
                parameter.requires_grad_(name in active and not inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        named = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for parameter in self._factors(named):
            parameter.requires_grad_(requires_grad)

    def _factors(self, adapters: Sequence[str] | None = None) -> list[nn.Parameter]:
        stores = (self.fact_u, self.fact_v, self.fact_c)
        return [parameter for store in stores for name, parameter in store.items() if adapters is None or name in adapters]

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        for store in (self.fact_u, self.fact_v, self.fact_c):
            if adapter_name in store:
                del store[adapter_name]
