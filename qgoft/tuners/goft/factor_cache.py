"""The factors of all adapted layers of one width, built together once per optimiser step.

Building is a few dozen small calls, whatever the number of layers. A layer that asks for its factors compares its own parameter with the
values the factors were made from, entry by entry, so that no way of writing to a parameter - an optimiser, a loaded state, `.data` - can
leave stale factors behind; it costs microseconds. Every forward pass gets its own node in the graph, whose backward turns the gradients
of all its layers into those of their parameters in one go, and which may run more than once: with accumulation, several losses, or
reentrant checkpointing, each run adds what has arrived.
"""

import math
import warnings
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from qgoft.ops.givens import Factors, rotation_blocks
from qgoft.ops.givens.factors import Tape, grow, pull_back, pull_back_in_graph

if TYPE_CHECKING:
    from qgoft.tuners.goft.layer import GoftLayer


class Kind(NamedTuple):
    """What layers must have in common to be built together."""

    adapter: str
    width: int
    is_free: bool
    angle: str
    dtype: torch.dtype


@dataclass(frozen=True)
class _Build:
    """One build: the parameters, a copy of their values, and everything made from them. `place` is the index of a layer, by identity."""

    kind: Kind
    parameters: list[Tensor]
    values: Tensor
    blocks: Tensor
    factors: Factors
    tape: Tape
    place: dict[int, int]


@dataclass
class _Current:
    """The newest build of a kind, the outputs of its newest node in the graph, and the layers that have taken theirs."""

    build: _Build
    outputs: tuple[Tensor, ...] = ()
    taken: set[int] = field(default_factory=set)


class SharedFactors:
    """Hands every layer of a tuner its factors."""

    def __init__(self) -> None:
        self._layers: list[weakref.ref[GoftLayer]] = []  # a copy of one layer is not one of all
        self._current: dict[Kind, _Current] = {}
        self.has_penalty = False  # the penalty was computed for these layers
        self._watched: tuple[weakref.ref[Tensor], int] | None = None  # a free block and its version at the first training pass
        self._is_divided = False  # FSDP2: a parameter is whole only while its own block is at work

    def __getstate__(self) -> dict[str, Any]:
        # What was built belongs to the graph of the original; copied and unpickled layers enter themselves again.
        return {"_layers": [], "_current": {}, "_is_divided": self._is_divided, "has_penalty": self.has_penalty, "_watched": None}

    def add(self, layer: "GoftLayer") -> None:
        self._layers.append(weakref.ref(layer))

    def watch(self, layer: "GoftLayer") -> None:
        """Warn once if free blocks are trained, and no penalty was computed before their optimizer's first step."""
        if self.has_penalty:
            return
        if self._watched is None:
            names = [name for name in layer.active_adapters if name in layer.goft_blocks and layer.goft_config[name].variant == "qgoft"]
            blocks = [layer.goft_blocks[name] for name in names if layer.goft_blocks[name].requires_grad]
            if blocks:
                self._watched = weakref.ref(blocks[0]), blocks[0]._version
            return
        block, version = self._watched[0](), self._watched[1]
        if block is not None and block._version != version:
            self.has_penalty = True
            warnings.warn(
                "a qgoft adapter was trained by a step without the orthogonality penalty, so its blocks drift from rotations; add "
                "weight * qgoft.orthogonality_penalty(model) to the loss, or give a transformers.Trainer "
                "callbacks=[qgoft.OrthogonalityPenaltyCallback(weight)] (0 to train without)",
                stacklevel=4,
            )

    @property
    def layers(self) -> list["GoftLayer"]:
        """Those that are still there."""
        return [layer for reference in self._layers if (layer := reference()) is not None]

    def factors(self, layer: "GoftLayer", adapter: str) -> Factors:
        """Factors of one adapter of one layer, differentiable in its parameter."""
        parameter = layer.get_parameter_of(adapter)
        kind = layer.get_kind(adapter)
        current = self._current.get(kind)
        if current is None or not _is_current(current.build, layer, parameter):
            current = self._current[kind] = _Current(_build(kind, self._members(kind, layer, parameter)))
        build = current.build
        index = build.place[id(layer)]
        if not (torch.is_grad_enabled() and parameter.requires_grad):
            return Factors(tuple(stage[index] for stage in build.factors.stages))
        if _is_within_backward():
            # Recomputed by checkpointing. If it is the reentrant one, a node of all layers would tell DDP that the others' gradients have come.
            return Factors(_Node.apply(build, (index,), parameter))
        if not current.outputs or index in current.taken:
            if not self._is_whole(build):
                current = self._current[kind] = _Current(_build(kind, self._members(kind, layer, parameter)))
                build, index = current.build, current.build.place[id(layer)]
            current.outputs = _Node.apply(build, tuple(range(len(build.parameters))), *build.parameters)
            current.taken = set()
        current.taken.add(index)
        return Factors(current.outputs[index :: len(build.parameters)])

    def _members(self, kind: Kind, layer: "GoftLayer", parameter: Tensor) -> list[tuple["GoftLayer", Tensor]]:
        """The layers to build with; the asking one alone where sharded parameters are only whole inside their own layer."""
        alike = [other for other in self.layers if other.has_adapter(kind.adapter) and other.get_kind(kind.adapter) == kind]
        members = [(other, other.get_parameter_of(kind.adapter)) for other in alike]
        self._is_divided |= any(type(p) not in (Tensor, torch.nn.Parameter) for _, p in members)
        is_together = all(p.device == parameter.device for _, p in members) and any(other is layer for other in alike)
        return members if is_together and not self._is_divided else [(layer, parameter)]

    def _is_whole(self, build: _Build) -> bool:
        """Whether the layers still hold the parameters of a build: after an evaluation on gathered weights they are divided again, and a node
        of all layers would hand its gradients to blocks that have done their part."""
        if len(build.parameters) == 1:
            return True
        own = {id(layer): layer for layer in self.layers if id(layer) in build.place}
        return all(own[key].get_parameter_of(build.kind.adapter) is build.parameters[index] for key, index in build.place.items())


def _is_within_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _is_current(build: _Build, layer: "GoftLayer", parameter: Tensor) -> bool:
    index = build.place.get(id(layer))
    return index is not None and build.parameters[index] is parameter and torch.equal(build.values[index], parameter.detach())


@torch.inference_mode(False)
@torch.no_grad()
def _build(kind: Kind, members: list[tuple["GoftLayer", Tensor]]) -> _Build:
    parameters = [parameter for _, parameter in members]
    values = torch.stack(parameters)
    blocks = values if kind.is_free else rotation_blocks(_angle(values, kind))
    factors, tape = grow(blocks, kind.width)
    place = {id(layer): index for index, (layer, _) in enumerate(members)}
    return _Build(kind, parameters, values, blocks, factors, tape, place)


def _angle(theta: Tensor, kind: Kind) -> Tensor:
    return math.pi * torch.tanh(theta) if kind.angle == "tanh" else theta


class _Node(torch.autograd.Function):
    """Parameters of some layers of a build, given by their places -> the first stage of these layers, then the second ... Nothing is computed:
    it is built already."""

    @staticmethod
    def forward(ctx: Any, build: _Build, places: tuple[int, ...], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.build, ctx.places = build, places
        ctx.set_materialize_grads(False)
        return tuple(matrices[place] for matrices in map(Tensor.unbind, build.factors.stages) for place in places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        build: _Build = ctx.build
        count = len(ctx.places)
        reached = [index for index in range(count) if grads[index] is not None]
        if not reached:
            return None, None, *[None] * count
        arrived = [torch.stack([grads[first + index] for index in reached]) for first in range(0, len(grads), count)]
        result: list[Tensor | None] = [None] * count
        if torch.is_grad_enabled():  # create_graph=True
            own = [build.parameters[ctx.places[index]] for index in reached]
            blocks = torch.stack(own) if build.kind.is_free else rotation_blocks(_angle(torch.stack(own), build.kind))
            for index, part in zip(reached, pull_back_in_graph(own, blocks, build.kind.width, arrived), strict=True):
                result[index] = part
            return None, None, *result
        is_whole = len(reached) == len(build.parameters)
        rows = slice(None) if is_whole else torch.tensor([ctx.places[index] for index in reached], device=build.values.device)
        tape = build.tape if is_whole else build.tape.select(rows)
        grad = pull_back(tape, Factors(tuple(arrived)))
        if not build.kind.is_free:
            grad = _grad_of_angle(grad, build.blocks[rows], build.values[rows], build.kind)
        for index, part in zip(reached, grad.unbind(), strict=True):
            result[index] = part
        return None, None, *result


def _grad_of_angle(grad: Tensor, blocks: Tensor, theta: Tensor, kind: Kind) -> Tensor:
    """Gradient [L, d-1] of the raw angles from that of the blocks [[cos, -sin], [sin, cos]]."""
    cos, sin = blocks[..., 0, 0], blocks[..., 1, 0]
    turned = (grad[..., 1, 0] - grad[..., 0, 1]) * cos - (grad[..., 0, 0] + grad[..., 1, 1]) * sin
    return turned * (math.pi * (1 - torch.tanh(theta).square())) if kind.angle == "tanh" else turned
