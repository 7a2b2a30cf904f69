"""Base classes of the peft tuners of this package: dtypes, merging, and a check for layers that are never called."""

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

# List-like fields of a configuration.
LISTS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
# Parents that read the weight of these children instead of calling them, so that an adapter would have no effect.
READS_WEIGHT = {
    "MultiheadAttention": ("out_proj",),
    "TransformerEncoderLayer": ("linear1", "linear2"),  # fast path of evaluation
    "MambaMixer": ("dt_proj",),
    "FalconMambaMixer": ("dt_proj",),
    "JambaMambaMixer": ("dt_proj",),
    "ZambaMambaMixer": ("dt_proj",),
}


def normalize_lists(config: Any) -> None:
    """Convert every sequence among the list-like fields of a configuration (a tuple, OmegaConf's list) to a list, or to a set of targets."""
    for name in LISTS:
        value = getattr(config, name)
        if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
            continue
        setattr(config, name, set(value) if name in ("target_modules", "exclude_modules") else list(value))


def sort_sets(data: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with sets as sorted lists, so that the saved file is the same in all processes."""
    return {name: sorted(value) if isinstance(value, set) else value for name, value in data.items()}


class _CalledCheck:
    """Forward hook that warns after the first training pass about adapted layers that were not called, and removes itself."""

    handle: Any = None
    is_done = False

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        if self.is_done or not model.training or torch.compiler.is_compiling():
            return
        self.is_done = True  # the handle of a copied model belongs to the original
        self.handle.remove()
        unused = [
            name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer) and not getattr(module, "was_called", True)
        ]
        if unused:
            warnings.warn(
                f"{len(unused)} adapted layers were not called in the first forward pass, such as {unused[0]}: if the model reads their weight "
                "instead, their adapters have no effect and merging changes the output; remove them from target_modules",
                stacklevel=2,
            )


class AdapterDtypeMixin(BaseTuner):
    """Tuner that casts 16-bit adapter parameters to float32 and changes nothing else."""

    def inject_adapter(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the layers of a model, and check at the next training pass that the model calls them."""
        super().inject_adapter(model, *args, **kwargs)
        if not any(isinstance(hook, _CalledCheck) for hook in model._forward_hooks.values()):
            check = _CalledCheck()
            check.handle = model.register_forward_hook(check)

    def _check_parent(self, parent: nn.Module, name: str, key: str) -> None:
        """Raise if the parent of a layer reads its weight instead of calling it.

        Raises:
            ValueError: names the layer and its parent.
        """
        for kind in type(parent).__mro__:
            if name in READS_WEIGHT.get(kind.__name__, ()):
                raise ValueError(
                    f"{kind.__name__} reads the weight of {name} instead of calling it, so an adapter would have no effect; "
                    f"leave it out with exclude_modules=['{key}'] or name other target_modules"
                )

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep requires_grad: peft replaces the parameters by trainable ones, even if the adapter is frozen or inactive."""
        before = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(before[name])


def check_onloaded(base: nn.Module) -> None:
    """Raise if accelerate keeps the weight of a layer elsewhere until it is called.

    Raises:
        ValueError: the weight is offloaded to the CPU or to a disk.
    """
    hook = getattr(base, "_hf_hook", None)
    if any(getattr(part, "offload", False) for part in (hook, *getattr(hook, "hooks", ()))):
        raise ValueError(
            "its weight is offloaded (device_map with cpu or disk), so an adapter cannot be made for it; load the model without offloading, "
            "or remove this layer from target_modules"
        )


class MergeableLayer(BaseTunerLayer):
    """Layer whose adapters can be merged into its weight. Subclasses implement `_merge_into_weight` and `has_adapter`.

    Merging replaces the Parameter of the weight, because the original may be shared: a tied `lm_head`, or two layers with one weight.
    """

    was_called = False
    _unmerged: weakref.ref[nn.Parameter] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_unmerged": None}

    def _merge_into_weight(self, adapter_name: str, *, reverse: bool) -> Tensor:
        """Return the weight as stored by the base layer, with one adapter merged, or unmerged with `reverse`."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge the active adapters into the weight, in order: W becomes W R1 R2.

        Raises:
            ValueError: only some of several active adapters are named, so that the others would be lost; or with `safe_merge`, the merged
                weight is not finite. The weight is left unchanged.
        """
        base, count = self.get_base_layer(), len(self.merged_adapters)
        before = base.weight
        names = check_adapters_to_merge(self, adapter_names)
        merged = {*self.merged_adapters, *names}
        dropped = [name for name in self.active_adapters if name not in merged and self.has_adapter(name)]
        if dropped and len(self.active_adapters) > 1:
            raise ValueError(
                f"merging {', '.join(names)} would drop the active adapter {dropped[0]!r}; merge all active adapters, or set_adapter(...) to those "
                "to merge"
            )
        for name in names:
            if not self.has_adapter(name):
                continue
            weight = self._merge_into_weight(name, reverse=False)
            if safe_merge and not torch.isfinite(weight).all():
                base.weight = before
                del self.merged_adapters[count:]
                raise ValueError(f"merging adapter {name!r} gives weights that are not finite; the adapter is probably corrupt")
            base.weight = nn.Parameter(weight, requires_grad=before.requires_grad)
            self.merged_adapters.append(name)
        if not count and self.merged_adapters:
            self._unmerged = weakref.ref(before)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Unmerge the merged adapters, last one first. Exact up to rounding in the dtype of the weight; a shared weight is restored
        exactly.
        """
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base, shared = self.get_base_layer(), self._unmerged and self._unmerged()
        if shared is not None and (shared.device, shared.dtype) != (base.weight.device, base.weight.dtype):
            shared = None  # the model was moved in between
        while self.merged_adapters:
            name = self.merged_adapters[-1]
            if shared is None:
                base.weight = nn.Parameter(self._merge_into_weight(name, reverse=True), requires_grad=base.weight.requires_grad)
            self.merged_adapters.pop()
        if shared is not None:
            base.weight = shared
        self._unmerged = None
