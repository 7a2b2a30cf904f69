"""Base classes of the small tuners: target layers, and adding, merging and unmerging of adapters.

GOFT's configuration, layer and model repeat some of it: they depend only on the operator and peft, so that they could be contributed
to peft unchanged.

Shapes: a layer has n outputs and d inputs, x is [..., d], its weight W [n, d] (transformers' Conv1D stores [d, n]).
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft.config import PeftConfig
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qgoft.tuners._base import AdapterDtypeMixin, MergeableLayer, check_onloaded, normalize_lists, sort_sets


@dataclass
class LayerwiseConfig(PeftConfig):
    """Settings of every small tuner.

    Raises:
        ValueError: layer indices together with a regular expression, or a pattern without indices.
    """

    kind: ClassVar[str]  # name of the tuner in peft

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of the layers to adapt, a regular expression, or 'all-linear'."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names or regular expression to leave out."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Indexes of the blocks to adapt."})
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of blocks, if it is not a common one."}
    )
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Further modules to train and save, such as the head."})
    init_weights: bool = field(default=True, metadata={"help": "Start as the method does. False moves away from that start, for tests."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType[self.kind]
        normalize_lists(self)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform needs a list of target_modules, not a regular expression")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain data in a fixed order."""
        return sort_sets(super().to_dict())


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (outputs, inputs) of torch.nn.Linear or transformers' Conv1D; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        d, n = module.weight.shape
        return n, d
    return None


class LayerwiseLayer(nn.Module, BaseTunerLayer):
    """A layer with adapters. Subclasses name their parameter stores, fill them in `add`, and apply them in `adapt`."""

    other_param_names = ("config_of",)
    frozen_names: ClassVar[tuple[str, ...]] = ()  # buffers per adapter, recomputed from the weight and never saved
    is_mergeable: ClassVar[bool] = True
    was_called = False
    shape_of: ClassVar[Callable[[nn.Module], tuple[int, int] | None]] = staticmethod(linear_shape)
    supported: ClassVar[str] = "torch.nn.Linear and transformers' Conv1D"

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any) -> None:
        super().__init__()
        shape = self.shape_of(base_layer)
        if shape is None:
            raise TypeError(
                f"a layer of type {type(base_layer).__name__} cannot be adapted by {config.kind}; supported are {self.supported}"
            )
        check_onloaded(base_layer)
        self.out_features, self.in_features = shape
        self.base_layer = base_layer
        for store in self.adapter_layer_names:
            setattr(self, store, nn.ParameterDict({}))
        for store in self.frozen_names:
            setattr(self, store, BufferDict(persistent=False))
        self.config_of: dict[str, Any] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add one adapter.

        Raises:
            ValueError: it does not fit this layer, or adapters are merged, so that the weight is not the pretrained one.
        """
        if self.merged:
            raise ValueError("adapters are merged; call unmerge_adapter() before adding another one")
        self.add(adapter_name, config)
        self.config_of[adapter_name] = config
        if not config.init_weights:
            for store in self.adapter_layer_names:
                parameter = getattr(self, store).get(adapter_name)
                if parameter is not None:
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def add(self, adapter_name: str, config: Any) -> None:
        raise NotImplementedError

    def adapt(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the layer with these adapters, applied in order."""
        raise NotImplementedError

    def has_adapter(self, adapter_name: str) -> bool:
        return adapter_name in self.config_of

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        _refuse_mixed(self, kwargs.pop("adapter_names", None))
        self.was_called = True
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [name for name in self.active_adapters if self.has_adapter(name)]
        if self.disable_adapters or self.merged or not names:
            return self.base_layer(x, *args, **kwargs)
        return self.adapt(x, names, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(f"{type(self).__name__} cannot be merged: its adapters are not linear in the input")

    def unmerge(self) -> None:
        warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)


class WeightLayer(MergeableLayer, LayerwiseLayer):
    """Adapters that are equivalent to another weight, computed by `merged_weight`."""

    def merged_weight(self, weight: Tensor, adapter_name: str, *, reverse: bool) -> Tensor:
        """Return the weight [n, d] with one adapter merged, or unmerged with `reverse`."""
        raise NotImplementedError

    def pretrained_weight(self) -> Tensor:
        """Return the current W [n, d] in at least float32.

        Raises:
            TypeError: it is quantised, or not a plain floating-point parameter.
        """
        weight = self.base_layer.weight
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise TypeError(
                f"the weight of this {type(self.base_layer).__name__} is a {type(weight).__name__} of {weight.dtype}; {type(self).__name__} needs "
                "a plain floating-point weight. Load the base model without quantisation"
            )
        stored = weight.data.T if isinstance(self.base_layer, Conv1D) else weight.data
        return stored.to(torch.promote_types(stored.dtype, torch.float32))

    def _merge_into_weight(self, adapter_name: str, *, reverse: bool) -> Tensor:
        weight = self.merged_weight(self.pretrained_weight(), adapter_name, reverse=reverse)
        weight = weight.T if isinstance(self.base_layer, Conv1D) else weight
        return weight.to(self.base_layer.weight.dtype).contiguous()


class DeltaLayer(WeightLayer):
    """Adapters that add D to the weight: h = W x + D x + b."""

    def get_delta(self, adapter_name: str) -> Tensor:
        """Return D [n, d]."""
        raise NotImplementedError

    def apply_delta(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return D x [..., n], without forming D if that is cheaper."""
        raise NotImplementedError

    def merged_weight(self, weight: Tensor, adapter_name: str, *, reverse: bool) -> Tensor:
        delta = self.get_delta(adapter_name).to(weight.dtype)
        return weight - delta if reverse else weight + delta

    def adapt(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        h = self.base_layer(x, *args, **kwargs)
        for name in names:
            dtype = getattr(self, self.adapter_layer_names[0])[name].dtype
            h = h + self.apply_delta(x.to(dtype), name).to(h.dtype)
        return h


class LayerwiseModel(AdapterDtypeMixin):
    """Pretrained model whose target layers have adapters of one kind."""

    layer_class: ClassVar[type[LayerwiseLayer]]
    tuner_layer_cls = LayerwiseLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        try:
            if isinstance(target, self.layer_class):
                target.update_layer(adapter_name, config)
                return
            if isinstance(target, BaseTunerLayer):
                raise TypeError(f"it already has a {type(target).__name__}; {config.kind} adapters cannot be stacked on another method")
            self._check_parent(parent, target_name, current_key)
            new_module = self._new_layer(target, adapter_name, config)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{current_key}: {error}") from error
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)
        self._replace_module(parent, target_name, new_module, target)

    def _new_layer(self, target: nn.Module, adapter_name: str, config: Any) -> LayerwiseLayer:
        return self.layer_class(target, adapter_name, config)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Reject a batch for several adapters, whose names peft would ignore silently.

        Raises:
            ValueError: adapter_names is given.
        """
        _refuse_mixed(self, kwargs.get("adapter_names"))
        yield

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a layer without copying `weight` and `bias` onto the replacement, as peft does: the base layer is kept."""
        setattr(parent, child_name, new_module)


def _refuse_mixed(asked: nn.Module, adapter_names: Any) -> None:
    if adapter_names is not None:
        raise ValueError(f"{type(asked).__name__} cannot take several adapters in one batch; run them one after the other")


def check_setting(config: LayerwiseConfig, name: str, allowed: Collection[str]) -> None:
    """Raise ValueError unless a field of a configuration has one of the allowed values."""
    value = getattr(config, name)
    if value not in allowed:
        raise ValueError(f"{type(config).__name__}({name}={value!r}): allowed are {', '.join(map(repr, allowed))}")


def check_dropout(config: Any) -> None:
    """Raise ValueError if `dropout` is outside [0, 1)."""
    if not 0 <= config.dropout < 1:
        raise ValueError(f"{type(config).__name__}(dropout={config.dropout}): allowed are 0 and more, below 1")


def check_rank(r: int, n: int, d: int) -> None:
    """Raise ValueError if the rank is below 1 or exceeds the layer."""
    if not 1 <= r <= min(n, d):
        raise ValueError(f"rank {r} does not fit a layer of {n} outputs and {d} inputs; allowed are 1 to {min(n, d)}")
