"""What any tuner needs of peft, done right: merging, and which parameters are free."""

import warnings

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor


class Widening(BaseTuner):
    """A tuner whose 16-bit parameters become float32 and nothing else."""

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """peft puts new parameters in their place, which are free even where the adapter is frozen or not active."""
        before = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(before[name])


class Merging(BaseTunerLayer):
    """A layer whose adapters amount to another weight; `_merge_into_weight` and `has_adapter` are the layer's own."""

    def _merge_into_weight(self, adapter_name: str, *, undo: bool) -> Tensor:
        """The weight as the base layer stores it, with one adapter put in, or taken out."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the active adapters into the weight, in order: W becomes W R1 R2.

        Raises:
            ValueError: with `safe_merge`, when the merged weight would not be finite; the weight is then left as it was.
        """
        base, before, count = self.get_base_layer(), self.get_base_layer().weight.data, len(self.merged_adapters)
        for name in check_adapters_to_merge(self, adapter_names):
            if not self.has_adapter(name):
                continue
            weight = self._merge_into_weight(name, undo=False)
            if safe_merge and not torch.isfinite(weight).all():
                base.weight.data = before
                del self.merged_adapters[count:]
                raise ValueError(f"merging adapter {name!r} gives weights that are not finite; the adapter seems to be broken")
            base.weight.data = weight
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged adapters out again, last one first. Exact up to rounding in the dtype of the weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            name = self.merged_adapters[-1]
            self.get_base_layer().weight.data = self._merge_into_weight(name, undo=True)
            self.merged_adapters.pop()
