"""The path from the pretrained backbone to the tuned one: a part t of the change, without training.

| layers | path |
| --- | --- |
| GOFT, GOFT* | t times every angle; scales linear |
| qGOFT | free blocks linear |
| OFT, BOFT, PSOFT | t times the skew-symmetric matrix of the Cayley map; scales linear |
| HRA | R^t, the power of the product of reflections |
| bottleneck adapters | t times their output |
| all others | weights linear: W + t (W' - W) |

Exact rotations are orthogonal at every t. The head is that of the tuned model. (PEFT-Arena scales OFT's skew-symmetric matrix by the root of t.)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.boft.layer import BOFTLayer
from peft.tuners.hra.layer import HRALayer
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.psoft.layer import PsoftLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from qgoft.errors import QgoftError
from qgoft.methods import AdaptedModel
from qgoft.methods.merging import merged_layers
from qgoft.tuners import GoftLayer
from qgoft.tuners.bottleneck import BottleneckLayer
from qgoft.tuners.oft_full import OftFullLayer

ADAPTER = "default"
# Parts of a parameter's name in a peft model that the plain model lacks.
PREFIX, BASE, SAVED = "base_model.model.", ".base_layer", f".modules_to_save.{ADAPTER}"
# Eigenvalues this close to -1 have no real power in a plane.
REFLECTION = 1e-6

# Parameter -> its value at t.
Rewound = list[tuple[nn.Parameter, Tensor]]


class WeightPath:
    """Path of a method that is equivalent to other weights.

    `model` is one plain model without adapters, whose weights are replaced for each t; at t = 0 they are those of the pretrained backbone, bit
    for bit. Weights below 32 bits are converted, since they would be rounded.

    Attributes:
        kind: name of the path.
        layers: linear layers of the backbone whose weight changes, by name.
    """

    def __init__(self, pretrained: nn.Module, adapted: AdaptedModel):
        self.model, self.adapted = pretrained.float().eval(), adapted
        adapted.model.float()
        tuner_layers = [module for module in adapted.model.modules() if isinstance(module, BaseTunerLayer)]
        self.kind = next((kind for layer_class, kind, _ in ROTATIONS if any(isinstance(m, layer_class) for m in tuner_layers)), "linear")
        own = dict(self.model.named_parameters())
        head = {plain_name(name) for name in adapted.head_names}
        end = self._merged()
        if missing := set(own) - set(end):
            raise RuntimeError(f"the tuned model has no parameter {sorted(missing)[0]}")
        with torch.no_grad():
            for name in head:
                own[name].copy_(end[name])
        changed = [name for name in own if name not in head and not torch.equal(own[name], end[name])]
        if foreign := sorted(set(changed) - self._trained()):
            raise RuntimeError(f"{foreign[0]} differs from the pretrained backbone, and the method does not train it")
        self.start = {name: own[name].detach().clone() for name in changed}
        self.end = {name: end[name] for name in changed}
        self._own = own
        self.layers = {
            name.removesuffix(".weight"): module
            for name in changed
            if name.endswith(".weight") and isinstance(module := self.model.get_submodule(name.removesuffix(".weight")), nn.Linear)
        }

    def _trained(self) -> set[str]:
        """Return the parameters that the method may change, by their names in the plain model."""
        named = self.adapted.model.named_parameters()
        return {plain_name(name) for name, parameter in named if parameter.requires_grad or BASE in name}

    def _merged(self) -> dict[str, Tensor]:
        """Return the parameters of the tuned model by their names in the plain model, with the adapters merged.

        Raises:
            QgoftError: the adapters cannot be merged.
        """
        if not self.adapted.is_peft:
            return {name: parameter.detach().clone() for name, parameter in self.adapted.model.named_parameters()}
        model: Any = self.adapted.model
        try:
            with merged_layers(model):
                named = model.named_parameters()
                return {plain_name(name): parameter.detach().clone() for name, parameter in named if ".original_module." not in name}
        except (NotImplementedError, ValueError, TypeError) as error:
            name = model.peft_config[ADAPTER].peft_type.value
            raise QgoftError(
                f"the adapters of {name} cannot be merged into the weights ({error}), so that this method cannot be rewound and has no retention"
            ) from error

    @contextmanager
    def at(self, t: float) -> Iterator[nn.Module]:
        """Yield the model with a part t of its change.

        Args:
            t: 0 for the pretrained backbone, 1 for the tuned one.
        """
        values = self.start if t == 0 else self.end if t == 1 else self._between(t)
        with _replaced([(self._own[name], value) for name, value in values.items()]):
            yield self.model

    @torch.no_grad()
    def _between(self, t: float) -> dict[str, Tensor]:
        linear = {name: torch.lerp(self.start[name], self.end[name], t) for name in self.start}
        if self.kind == "linear":
            return linear
        if self.kind == HRA_POWER:
            return linear | {name: self.start[name] @ power.to(self.start[name]) for name, power in self._powers(t).items()}
        rewound = [
            pair
            for module in self.adapted.model.modules()
            for kind, _, rewind in ROTATIONS
            if isinstance(module, kind)
            for pair in rewind(module, t)
        ]
        with _replaced(rewound):
            merged = self._merged()
        rotated = {
            plain_name(f"{name}.base_layer.weight") for name, m in self.adapted.model.named_modules() if isinstance(m, BaseTunerLayer)
        }
        return linear | {name: merged[name] for name in rotated & set(linear)}

    def _powers(self, t: float) -> dict[str, Tensor]:
        layers: Iterator[tuple[str, Any]] = ((n, m) for n, m in self.adapted.model.named_modules() if isinstance(m, HRALayer))
        found = {plain_name(f"{name}.base_layer.weight"): (module, name) for name, module in layers}
        return {
            weight: rotation_power(module.get_delta_weight(ADAPTER), module.hra_u[ADAPTER], t, name)
            for weight, (module, name) in found.items()
            if weight in self.start
        }


class BottleneckPath:
    """Path of adapters between the layers, which are not equivalent to other weights: their output is scaled by t."""

    kind = "output of the adapters"

    def __init__(self, adapted: AdaptedModel):
        peft_model: Any = adapted.model
        self.adapted = adapted
        self.model: nn.Module = peft_model.get_base_model().eval()
        self.adapters: list[Any] = [module for module in self.model.modules() if isinstance(module, BottleneckLayer)]
        self.layers: dict[str, nn.Module] = {}

    @contextmanager
    def at(self, t: float) -> Iterator[nn.Module]:
        outputs = [store[ADAPTER] for layer in self.adapters for store in (layer.bottleneck_up, layer.bottleneck_up_bias)]
        with _replaced([(parameter, t * parameter.detach()) for parameter in outputs]):
            yield self.model


BackbonePath = WeightPath | BottleneckPath


def build_path(pretrained: nn.Module, adapted: AdaptedModel) -> BackbonePath:
    """Return the path of a tuned model.

    Args:
        pretrained: the same backbone without the method; its head is replaced.
        adapted: with the trained adapter.

    Raises:
        QgoftError: the method is neither equivalent to other weights nor a bottleneck.
    """
    if any(isinstance(module, BottleneckLayer) for module in adapted.model.modules()):
        return BottleneckPath(adapted)
    return WeightPath(pretrained, adapted)


def plain_name(name: str) -> str:
    """Return the name that a parameter of a peft model has in the plain model."""
    return name.removeprefix(PREFIX).replace(BASE, "").replace(SAVED, "")


@contextmanager
def _replaced(values: Rewound) -> Iterator[None]:
    """Give parameters other values inside the block."""
    kept = [(parameter, parameter.data) for parameter, _ in values]
    try:
        for parameter, value in values:
            parameter.data = value.to(parameter)
        yield
    finally:
        for parameter, value in kept:
            parameter.data = value


def _rewind_goft(layer: Any, t: float) -> Iterator[tuple[nn.Parameter, Tensor]]:
    if ADAPTER in layer.goft_theta:
        theta = layer.goft_theta[ADAPTER]
        is_bounded = layer.goft_config[ADAPTER].angle == "tanh"
        yield theta, torch.atanh(t * torch.tanh(theta.detach().double())) if is_bounded else t * theta.detach()
    if ADAPTER in layer.goft_blocks:
        blocks = layer.goft_blocks[ADAPTER]
        yield blocks, torch.lerp(torch.eye(2).to(blocks).expand_as(blocks), blocks.detach(), t)
    if ADAPTER in layer.goft_scale:
        yield from _linear_scales([layer.goft_scale[ADAPTER]], t)


def _rewind_oft(layer: Any, t: float) -> Iterator[tuple[nn.Parameter, Tensor]]:
    weight = layer.oft_R[ADAPTER].weight
    yield weight, t * weight.detach()


def _rewind_oft_full(layer: Any, t: float) -> Iterator[tuple[nn.Parameter, Tensor]]:
    blocks = layer.oft_full_blocks[ADAPTER]
    yield blocks, t * blocks.detach()


def _rewind_boft(layer: Any, t: float) -> Iterator[tuple[nn.Parameter, Tensor]]:
    blocks = layer.boft_R[ADAPTER]
    yield blocks, t * blocks.detach()
    yield from _linear_scales([layer.boft_s[ADAPTER]], t)


def _rewind_psoft(layer: Any, t: float) -> Iterator[tuple[nn.Parameter, Tensor]]:
    rotation = layer.psoft_R[ADAPTER]
    start = torch.zeros_like(rotation.weight) if rotation.orth else torch.eye(rotation.size).to(rotation.weight)
    yield rotation.weight, torch.lerp(start, rotation.weight.detach(), t)
    yield from _linear_scales([scale for scale in (rotation.vector_a, rotation.vector_b) if scale is not None], t)


def _linear_scales(scales: list[nn.Parameter], t: float) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield scales between one and their value."""
    for scale in scales:
        yield scale, torch.lerp(torch.ones_like(scale), scale.detach(), t)


HRA_POWER = "power of the product of reflections"
# Layers that rotate, the name of their path, and their parameters at t.
ROTATIONS: list[tuple[type, str, Callable[..., Iterator[tuple[nn.Parameter, Tensor]]]]] = [
    (GoftLayer, "angles or blocks", _rewind_goft),
    (OFTLayer, "skew-symmetric matrix", _rewind_oft),
    (OftFullLayer, "skew-symmetric matrix", _rewind_oft_full),
    (BOFTLayer, "skew-symmetric matrix", _rewind_boft),
    (PsoftLayer, "skew-symmetric matrix", _rewind_psoft),
    (HRALayer, HRA_POWER, lambda layer, t: iter(())),
]


def rotation_power(matrix: Tensor, directions: Tensor, t: float, layer: str) -> Tensor:
    """Return R^t [d, d] of an orthogonal R that changes only the span of some directions, in float64.

    Args:
        matrix: R [d, d].
        directions: [d, r].
        layer: name in the error.

    Raises:
        QgoftError: R has the eigenvalue -1, so that no real power of it is close to the identity.
    """
    import scipy.linalg

    basis, _ = torch.linalg.qr(directions.detach().double())
    inner = basis.T @ matrix.detach().double() @ basis
    triangular, vectors = scipy.linalg.schur(inner.cpu().numpy(), output="complex")
    eigenvalues = torch.from_numpy(triangular.diagonal().copy())
    if ((eigenvalues + 1).abs() < REFLECTION).any():
        raise QgoftError(
            f"the product of reflections of {layer} has the eigenvalue -1, so that it cannot be rewound; set retention.steps=0,1"
        )
    u = torch.from_numpy(vectors)
    power = (u * torch.exp(1j * t * eigenvalues.angle())) @ u.conj().T
    eye = torch.eye(len(inner), dtype=torch.float64)
    change = (power.real - eye).to(basis.device)
    return torch.eye(len(matrix), dtype=torch.float64, device=basis.device) + basis @ change @ basis.T
