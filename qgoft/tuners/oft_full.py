"""OFT as the GOFT paper counts it: h = W (R x) + b, R = diag(R_1, ..., R_q) by the Cayley map of full b x b blocks.

Each block A [b, b] gives the skew-symmetric Q = (A - A^T) / 2 and R_i = (I + Q) (I - Q)^-1, exactly orthogonal (Qiu et al., 2023). Half
of the b^2 parameters are redundant, so peft's OFT stores b (b - 1) / 2; the GOFT paper's tables count all of them, b d per layer.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qgoft.tuners.layerwise import LayerwiseConfig, LayerwiseLayer, LayerwiseModel, WeightLayer


@dataclass
class OftFullConfig(LayerwiseConfig):
    """OFT with full blocks."""

    kind: ClassVar[str] = "OFT_FULL"
    block_size: int = field(default=8, metadata={"help": "b; must divide the input width of every target."})


class OftFullLayer(WeightLayer):
    adapter_layer_names = ("oft_full_blocks",)

    def add(self, adapter_name: str, config: OftFullConfig) -> None:
        b, d = config.block_size, self.in_features
        if b < 1 or d % b:
            raise ValueError(f"block size {b} does not divide the input width {d}")
        self.oft_full_blocks[adapter_name] = nn.Parameter(torch.zeros(d // b, b, b))

    def get_rotations(self, adapter_name: str) -> Tensor:
        """Return R_i [q, b, b], in at least float32."""
        blocks = self.oft_full_blocks[adapter_name]
        blocks = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
        skew = (blocks - blocks.transpose(1, 2)) / 2
        eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
        return torch.linalg.solve(eye - skew, eye + skew, left=False)

    def get_matrix(self, adapter_name: str) -> Tensor:
        """Return R [d, d]."""
        return torch.block_diag(*self.get_rotations(adapter_name))

    def rotate(self, x: Tensor, adapter_name: str, *, transpose: bool = False) -> Tensor:
        """Return R x, or R^T x, for features [..., d]."""
        rotations = self.get_rotations(adapter_name).to(x.dtype)
        parts = x.unflatten(-1, (len(rotations), -1))
        return torch.einsum("...qi,qij->...qj" if transpose else "...qj,qij->...qi", parts, rotations).flatten(-2)

    def merged_weight(self, weight: Tensor, adapter_name: str, *, reverse: bool) -> Tensor:
        # W R is R^T applied to the rows of W.
        return self.rotate(weight, adapter_name, transpose=not reverse)

    def adapt(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        # Merging in order gives W R1 R2, so the last adapter is applied to x first.
        for name in reversed(names):
            x = self.rotate(x, name)
        return self.base_layer(x, *args, **kwargs)


class OftFullModel(LayerwiseModel):
    prefix = "oft_full_"
    layer_class: ClassVar[type[LayerwiseLayer]] = OftFullLayer
