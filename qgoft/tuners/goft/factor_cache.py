"""Factors of all adapted layers of one width, built together once per optimiser step.

Building takes a few dozen small calls, whatever the number of layers. A layer that requests its factors compares its parameter with the
values that the factors were built from, entry by entry, which takes microseconds. So no kind of write to a parameter - an optimiser, a
loaded state, `.data` - can leave stale factors behind. Every forward pass gets its own autograd node. Its backward converts the gradients
of all its layers at once, and may run more than once: under accumulation, several losses or reentrant checkpointing, each run adds the
gradients that have arrived.
"""

import math
import warnings
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from qgoft.ops.givens import Factors, rotation_blocks
from qgoft.ops.givens.dispatch import ON_BLOCKS, choose_backend
from qgoft.ops.givens.factors import BuildContext, build_backward, build_backward_in_graph, build_forward

if TYPE_CHECKING:
    from qgoft.tuners.goft.layer import GoftLayer


class CacheKey(NamedTuple):
    """Properties that layers must share to be built together."""

    adapter: str
    width: int
    has_free_blocks: bool
    angle: str
    dtype: torch.dtype


@dataclass(frozen=True)
class _Build:
    """One build: the parameters, a copy of their values, and everything computed from them. `index_by_layer` maps id(layer) to its index."""

    cache_key: CacheKey
    parameters: list[Tensor]
    values: Tensor
    blocks: Tensor
    factors: Factors
    context: BuildContext | None  # None if the blocks are the factors
    index_by_layer: dict[int, int]


@dataclass
class _CacheEntry:
    """The newest build of a key, the outputs of its newest autograd node, and the layers that have used theirs."""

    build: _Build
    outputs: tuple[Tensor, ...] = ()
    consumed: set[int] = field(default_factory=set)


class FactorCache:
    """Factors of every layer of a tuner."""

    def __init__(self) -> None:
        self._layers: list[weakref.ref[GoftLayer]] = []  # weak references: deep copies are not registered
        self._current: dict[CacheKey, _CacheEntry] = {}
        self.has_penalty = False  # the penalty was computed for these layers
        self._watched: tuple[weakref.ref[GoftLayer], str, Tensor] | None = None  # layer, adapter and its blocks at the first training pass
        self._is_sharded = False  # FSDP2: a parameter is unsharded only while its own block runs

    def __getstate__(self) -> dict[str, Any]:
        # Builds belong to the graph of the original; copied and unpickled layers register again.
        return {"_layers": [], "_current": {}, "_is_sharded": self._is_sharded, "has_penalty": self.has_penalty, "_watched": None}

    def add(self, layer: "GoftLayer") -> None:
        self._layers.append(weakref.ref(layer))

    def warn_if_unpenalised(self, layer: "GoftLayer") -> None:
        """Warn once if free blocks are trained and no penalty was computed before their optimiser's first step."""
        if self.has_penalty:
            return
        if self._watched is None:
            for name in layer.active_adapters:
                if name in layer.goft_blocks and layer.goft_config[name].variant == "qgoft" and layer.goft_blocks[name].requires_grad:
                    self._watched = weakref.ref(layer), name, layer.goft_blocks[name].detach().clone()
                    return
            return
        reference, name, values = self._watched
        # In the layer's own pass, since FSDP2 frees its parameters outside. Values, since the step of a fused optimiser leaves the version
        # of a tensor as it was.
        if reference() is not layer or name not in layer.goft_blocks:
            return
        block = layer.goft_blocks[name]
        if block.device == values.device and not torch.equal(block, values):
            self.has_penalty = True
            warnings.warn(
                "a qgoft adapter was trained by a step without the orthogonality penalty, so its blocks drift from orthogonality; add "
                "weight * qgoft.orthogonality_penalty(model) to the loss, or give a transformers.Trainer "
                "callbacks=[qgoft.OrthogonalityPenaltyCallback(weight)] (0 to train without)",
                stacklevel=4,
            )

    @property
    def layers(self) -> list["GoftLayer"]:
        """The layers that still exist."""
        return [layer for reference in self._layers if (layer := reference()) is not None]

    def factors(self, layer: "GoftLayer", adapter: str) -> Factors:
        """Return the factors of one adapter of one layer, differentiable in its parameter."""
        parameter = layer.get_parameter_of(adapter)
        cache_key = layer.get_cache_key(adapter)
        current = self._current.get(cache_key)
        if current is None or not _is_fresh(current.build, layer, parameter):
            current = self._current[cache_key] = _CacheEntry(_build(cache_key, self._members(cache_key, layer, parameter)))
        build = current.build
        index = build.index_by_layer[id(layer)]
        if not (torch.is_grad_enabled() and parameter.requires_grad):
            return Factors(tuple(stage[index] for stage in build.factors.stages), build.factors.backend)
        if _is_within_backward():
            # Recomputed by checkpointing. With the reentrant kind, a node of all layers would report the others' gradients to DDP too
            # early.
            return Factors(_FactorsFunction.apply(build, (index,), parameter), build.factors.backend)
        if not current.outputs or index in current.consumed:
            if not self._holds_parameters(build):
                current = self._current[cache_key] = _CacheEntry(_build(cache_key, self._members(cache_key, layer, parameter)))
                build, index = current.build, current.build.index_by_layer[id(layer)]
            current.outputs = _FactorsFunction.apply(build, tuple(range(len(build.parameters))), *build.parameters)
            current.consumed = set()
        current.consumed.add(index)
        return Factors(current.outputs[index :: len(build.parameters)], build.factors.backend)

    def _members(self, cache_key: CacheKey, layer: "GoftLayer", parameter: Tensor) -> list[tuple["GoftLayer", Tensor]]:
        """Return the layers to build together; only the requesting one if sharded parameters are unsharded one layer at a time."""
        alike = [
            other for other in self.layers if other.has_adapter(cache_key.adapter) and other.get_cache_key(cache_key.adapter) == cache_key
        ]
        members = [(other, other.get_parameter_of(cache_key.adapter)) for other in alike]
        self._is_sharded |= any(type(p) not in (Tensor, torch.nn.Parameter) for _, p in members)
        is_together = all(p.device == parameter.device for _, p in members) and any(other is layer for other in alike)
        return members if is_together and not self._is_sharded else [(layer, parameter)]

    def _holds_parameters(self, build: _Build) -> bool:
        """Return True if the layers still hold the parameters of a build. After an evaluation on unsharded weights they are sharded again,
        and a node of all layers would send gradients to blocks whose backward has finished.
        """
        if len(build.parameters) == 1:
            return True
        own = {id(layer): layer for layer in self.layers if id(layer) in build.index_by_layer}
        return all(
            own[key].get_parameter_of(build.cache_key.adapter) is build.parameters[index] for key, index in build.index_by_layer.items()
        )


def _is_within_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _is_fresh(build: _Build, layer: "GoftLayer", parameter: Tensor) -> bool:
    index = build.index_by_layer.get(id(layer))
    is_same = index is not None and build.parameters[index] is parameter and torch.equal(build.values[index], parameter.detach())
    return is_same and build.factors.backend == choose_backend(parameter)


@torch.inference_mode(False)
@torch.no_grad()
def _build(cache_key: CacheKey, members: list[tuple["GoftLayer", Tensor]]) -> _Build:
    parameters = [parameter for _, parameter in members]
    values = torch.stack(parameters)
    blocks = values if cache_key.has_free_blocks else rotation_blocks(_angle(values, cache_key))
    backend = choose_backend(parameters[0])
    if backend in ON_BLOCKS:
        factors, context = Factors((blocks,), backend), None
    else:
        factors, context = build_forward(blocks, cache_key.width)
    index_by_layer = {id(layer): index for index, (layer, _) in enumerate(members)}
    return _Build(cache_key, parameters, values, blocks, factors, context, index_by_layer)


def _angle(theta: Tensor, cache_key: CacheKey) -> Tensor:
    return math.pi * torch.tanh(theta) if cache_key.angle == "tanh" else theta


class _FactorsFunction(torch.autograd.Function):
    """Parameters of some layers of a build, given by index -> the first stage of these layers, then the second, and so on. Forward computes
    nothing, since the factors are built already.
    """

    @staticmethod
    def forward(ctx: Any, build: _Build, indices: tuple[int, ...], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.build, ctx.indices = build, indices
        ctx.set_materialize_grads(False)
        return tuple(matrices[index] for matrices in map(Tensor.unbind, build.factors.stages) for index in indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        build: _Build = ctx.build
        count = len(ctx.indices)
        with_grad = [index for index in range(count) if grads[index] is not None]
        if not with_grad:
            return None, None, *[None] * count
        stage_grads = [torch.stack([grads[first + index] for index in with_grad]) for first in range(0, len(grads), count)]
        result: list[Tensor | None] = [None] * count
        if torch.is_grad_enabled():  # create_graph=True
            own = [build.parameters[ctx.indices[index]] for index in with_grad]
            blocks = torch.stack(own) if build.cache_key.has_free_blocks else rotation_blocks(_angle(torch.stack(own), build.cache_key))
            if build.context is None:
                parts = torch.autograd.grad(blocks, own, stage_grads[0], create_graph=True)
            else:
                parts = build_backward_in_graph(own, blocks, build.cache_key.width, stage_grads)
            for index, part in zip(with_grad, parts, strict=True):
                result[index] = part
            return None, None, *result
        is_complete = len(with_grad) == len(build.parameters)
        rows = slice(None) if is_complete else torch.tensor([ctx.indices[index] for index in with_grad], device=build.values.device)
        if build.context is None:
            grad = stage_grads[0]
        else:
            context = build.context if is_complete else build.context.select(rows)
            grad = build_backward(context, Factors(tuple(stage_grads)))
        if not build.cache_key.has_free_blocks:
            grad = _grad_of_angle(grad, build.blocks[rows], build.values[rows], build.cache_key)
        for index, part in zip(with_grad, grad.unbind(), strict=True):
            result[index] = part
        return None, None, *result


def _grad_of_angle(grad: Tensor, blocks: Tensor, theta: Tensor, cache_key: CacheKey) -> Tensor:
    """Return the gradient [L, d-1] of the raw angles from that of the blocks [[cos, -sin], [sin, cos]]."""
    cos, sin = blocks[..., 0, 0], blocks[..., 1, 0]
    angle_grad = (grad[..., 1, 0] - grad[..., 0, 1]) * cos - (grad[..., 0, 0] + grad[..., 1, 1]) * sin
    return angle_grad * (math.pi * (1 - torch.tanh(theta).square())) if cache_key.angle == "tanh" else angle_grad
