"""PSOFT: factors that are the same everywhere, and its form with the orthogonal factor on the side of the output (table 7, "B orthogonal"),
which peft's initialisations lack."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from peft import PsoftConfig
from peft.tuners.psoft.layer import Linear, PsoftLayer
from peft.tuners.psoft.model import PsoftModel
from peft.utils import PeftType
from torch import Tensor, nn

from qgoft.tuners.svd import signs_of


def fix_signs() -> None:
    """Have peft's PSOFT take singular vectors of the sign that LoRA-XS takes here, too. An adapter keeps R alone: with the signs of another
    library's decomposition, loaded on another machine, it would be another model."""
    found = PsoftLayer._compute_svd_factors
    if hasattr(found, "__wrapped__"):
        return

    @functools.wraps(found)
    def with_signs(self: PsoftLayer, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = found(self, *args, **kwargs)
        signs = signs_of(u)
        return u * signs, s, vh * signs.T

    PsoftLayer._compute_svd_factors = with_signs


@dataclass
class PsoftOutputConfig(PsoftConfig):
    """A = diag(s_r) V_r^T and B = U_r, instead of A = V_r^T and B = U_r diag(s_r)."""

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType["PSOFT_OUTPUT"]


class PsoftOutputLinear(Linear):
    """PSOFT on torch.nn.Linear, its singular values moved to the side of the input."""

    @torch.no_grad()
    def _build_psoft_ab_cache_buffers(self, adapter_name: str, init_type: str) -> None:
        super()._build_psoft_ab_cache_buffers(adapter_name, init_type)
        a, b = self._get_psoft_ab_cache_buffers(adapter_name)
        values = b.norm(dim=0)
        # A weight of lower rank has singular values of zero, whose vectors move nothing on either side.
        b = torch.where(values > 0, b / values.clamp_min(torch.finfo(b.dtype).tiny), 0.0)
        self._set_psoft_ab_cache_buffers(adapter_name, (values[:, None] * a).contiguous(), b.contiguous())


class PsoftOutputModel(PsoftModel):
    @staticmethod
    def _create_new_module(psoft_config: PsoftConfig, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        if not isinstance(target, nn.Linear):
            raise ValueError(f"a layer of type {type(target).__name__} cannot be adapted; supported is torch.nn.Linear")
        return PsoftOutputLinear(target, adapter_name, config=psoft_config, **kwargs)
