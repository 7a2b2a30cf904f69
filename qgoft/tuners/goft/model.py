"""Replacement of layers, and the penalty over all of them."""

from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qgoft.tuners._base import AdapterDtypeMixin
from qgoft.tuners.goft.config import GoftConfig
from qgoft.tuners.goft.factor_cache import FactorCache
from qgoft.tuners.goft.layer import GoftLayer, GoftLinear


class GoftModel(AdapterDtypeMixin):
    """Pretrained model whose target layers have GOFT adapters. Built by `peft.get_peft_model(model, GoftConfig(...))`."""

    prefix = "goft_"
    tuner_layer_cls = GoftLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        goft_config: GoftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        if isinstance(target, GoftLayer):
            target.update_layer(adapter_name, goft_config)
            return
        if isinstance(target, BaseTunerLayer):
            raise TypeError(f"{current_key} already has a {type(target).__name__}; GOFT adapters cannot be stacked on another method")
        try:
            self._check_parent(parent, target_name, current_key)
            new_module = GoftLinear(target, adapter_name, goft_config, self._get_factor_cache())
        except (TypeError, ValueError) as error:
            raise type(error)(f"{current_key}: {error}") from error
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)
        self._replace_module(parent, target_name, new_module, target)

    def _get_factor_cache(self) -> FactorCache:
        # peft replaces layers inside its own __init__, before a subclass could create the cache.
        if "_shared" not in vars(self):
            object.__setattr__(self, "_shared", FactorCache())
        return self._shared

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a layer without copying `weight` and `bias` onto the replacement, as peft does. The base layer is kept, so a copy is not
        needed; it would also fail for a saved module without a weight, such as DeBERTa's pooler.
        """
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any):
        """Pass `adapter_names` of a mixed batch to every adapted layer and to every module with weights per adapter (a head), during one
        forward or generate.
        """
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("adapter_names is for inference; call model.eval() first")
        layers = [module for module in self.modules() if isinstance(module, GoftLayer)]
        known = {name for layer in layers for name in layer.goft_config}
        unknown = sorted(set(adapter_names) - known - {"__base__"})
        if unknown:
            raise ValueError(f"adapter_names names {', '.join(unknown)}; loaded are {', '.join(sorted(known))} and '__base__'")
        # Beam search repeats every item num_beams times consecutively.
        beams = kwargs.get("num_beams") or 1
        names = [name for name in adapter_names for _ in range(beams)]

        def pass_on(module: nn.Module, args: Any, kwargs: Any, names: list[str]) -> tuple[Any, Any]:
            return args, {**kwargs, "adapter_names": names}

        taking = [module for module in self.modules() if isinstance(module, GoftLayer | AuxiliaryTrainingWrapper)]
        handles = [module.register_forward_pre_hook(partial(pass_on, names=names), with_kwargs=True) for module in taking]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _active(model: nn.Module) -> list[tuple[GoftLayer, str]]:
    layers = (module for module in model.modules() if isinstance(module, GoftLayer))
    return [(layer, name) for layer in layers for name in layer.active_adapters if layer.has_adapter(name)]


def orthogonality_penalty(model: nn.Module) -> Tensor:
    """Return the sum of <alpha, beta>^2 over all blocks [alpha, beta] of all adapted layers, unweighted (GOFT, section 4.3). Scalar.

    Rotations have orthogonal columns by construction, so layers of goft and goft_star add nothing; without any free block the result is a
    zero without a gradient.
    """
    active = _active(model)
    for layer, _ in active:
        layer.factor_cache.has_penalty = True
    free = [layer.goft_blocks[name] for layer, name in active if name in layer.goft_blocks]
    if not free:
        device = next((p.device for p in model.parameters()), None)
        return torch.zeros((), device=device)
    # FSDP2 shards parameters; the penalty is that of the unsharded ones. A model may span several devices.
    by_device: dict[torch.device, list[Tensor]] = {}
    for block in free:
        whole = block.full_tensor() if hasattr(block, "full_tensor") else block
        by_device.setdefault(whole.device, []).append(whole.to(torch.promote_types(whole.dtype, torch.float32)))
    parts = []
    for alike in by_device.values():
        blocks = torch.cat(alike)
        parts.append((blocks[:, :, 0] * blocks[:, :, 1]).sum(-1).square().sum())
    first, *others = parts
    return sum((part.to(first.device) for part in others), first)
