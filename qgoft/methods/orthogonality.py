"""Orthogonality error of adapters that rotate the input of a layer."""

from collections.abc import Iterator

import torch
from peft.tuners.boft.layer import BOFTLayer
from peft.tuners.hra.layer import HRALayer
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.psoft.layer import PsoftLayer
from torch import Tensor, nn

from qgoft.tuners import GoftLayer
from qgoft.tuners.oft_full import OftFullLayer


def transformations(model: nn.Module) -> Iterator[Tensor]:
    """Yield the dense R of every adapted layer that rotates its input (for PSOFT, the principal subspace).

    GOFT's R rotates the rows of the weight, so features see R^T. PSOFT's R is diag(beta) C diag(alpha) with trained scales; only C comes
    from its Cayley map.
    """
    for module in model.modules():
        if isinstance(module, GoftLayer):
            for name in filter(module.has_adapter, module.active_adapters):
                matrix = module.get_matrix(name)
                # The second release defines its product on features as R, the paper as R^T.
                yield matrix.T if module.goft_config[name].is_released_version else matrix
        elif isinstance(module, OftFullLayer):
            yield from (module.get_matrix(name) for name in module.active_adapters if module.has_adapter(name))
        elif isinstance(module, OFTLayer):
            yield from (module.oft_R[name].get_weight() for name in module.active_adapters if name in module.oft_R)
        elif isinstance(module, BOFTLayer):
            yield from (module.get_delta_weight(name)[0] for name in module.active_adapters if name in module.boft_R)
        elif isinstance(module, HRALayer):
            yield from (module.get_delta_weight(name) for name in module.active_adapters if name in module.hra_u)
        elif isinstance(module, PsoftLayer):
            yield from (module.psoft_R[name].get_matrix() for name in module.active_adapters if name in module.psoft_R)


@torch.no_grad()
def orthogonality_error(model: nn.Module) -> float | None:
    """Return max |R^T R - I| over all entries of all adapted layers, in float64; None if no layer rotates its input."""
    worst = None
    for found in transformations(model):
        matrix = found.double()
        error = (matrix.T @ matrix - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)).abs().max().item()
        worst = error if worst is None else max(worst, error)
    return worst
