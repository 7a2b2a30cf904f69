"""PSOFT adapters that are independent of the machine, and the form with the orthogonal factor at the output (table 7, "B orthogonal"),
which peft's initialisations lack.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PsoftConfig
from peft.tuners.psoft.layer import Linear, PsoftLayer
from peft.tuners.psoft.model import PsoftModel
from peft.utils import PeftType
from torch import nn

ADAPTER = "default"


@torch.no_grad()
def read_svd_signs(model: nn.Module) -> dict[str, str]:
    """Return the signs of the singular vectors of every adapted layer: those of the largest entries of B's columns, as `+-+...` of length
    r.
    """
    return {name: "".join("+" if sign else "-" for sign in _is_positive(layer)) for name, layer in _layers(model)}


@torch.no_grad()
def apply_svd_signs(model: nn.Module, svd_signs: dict[str, str]) -> None:
    """Convert parameters trained with singular vectors of other signs to the signs of this model: R becomes D R D.

    An adapter stores only R, and its factors are recomputed when it is loaded; another library may choose other signs.

    Raises:
        ValueError: the signs do not match the model.
    """
    for name, layer in _layers(model):
        here, rotation = _is_positive(layer), layer.psoft_R[ADAPTER]
        there = svd_signs.get(name, "")
        if len(there) != len(here):
            raise ValueError(f"the signs of the factors of {name} are missing")
        turned = torch.tensor([1.0 if (sign == "+") == is_positive else -1.0 for sign, is_positive in zip(there, here, strict=True)])
        turned = turned.to(rotation.weight)
        if rotation.orth:
            rotation.weight.mul_(turned[rotation.rows] * turned[rotation.cols])
        else:
            rotation.weight.mul_(turned[:, None] * turned)


def _layers(model: nn.Module) -> Iterator[tuple[str, PsoftLayer]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, PsoftLayer))


def _is_positive(layer: PsoftLayer) -> list[bool]:
    _, b = layer._get_psoft_ab_cache_buffers(ADAPTER)
    found: list[bool] = (b.gather(0, b.abs().argmax(0, keepdim=True))[0] >= 0).tolist()
    return found


@dataclass
class PsoftOutputConfig(PsoftConfig):
    """A = diag(s_r) V_r^T and B = U_r, instead of A = V_r^T and B = U_r diag(s_r)."""

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType["PSOFT_OUTPUT"]


class PsoftOutputLinear(Linear):
    """PSOFT on torch.nn.Linear with the singular values at the input."""

    @torch.no_grad()
    def _build_psoft_ab_cache_buffers(self, adapter_name: str, init_type: str) -> None:
        super()._build_psoft_ab_cache_buffers(adapter_name, init_type)
        a, b = self._get_psoft_ab_cache_buffers(adapter_name)
        values = b.norm(dim=0)
        # A weight of lower rank has singular values of zero, whose vectors have no effect on either side.
        b = torch.where(values > 0, b / values.clamp_min(torch.finfo(b.dtype).tiny), 0.0)
        self._set_psoft_ab_cache_buffers(adapter_name, (values[:, None] * a).contiguous(), b.contiguous())


class PsoftOutputModel(PsoftModel):
    @staticmethod
    def _create_new_module(psoft_config: PsoftConfig, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        if not isinstance(target, nn.Linear):
            raise ValueError(f"a layer of type {type(target).__name__} cannot be adapted; supported is torch.nn.Linear")
        return PsoftOutputLinear(target, adapter_name, config=psoft_config, **kwargs)
