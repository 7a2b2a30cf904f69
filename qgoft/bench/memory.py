"""Memory: bytes saved by autograd, and peak bytes of live tensors."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Count the storages that operations allocate and Python frees: on a CPU, what a GPU's allocator would report.

    Scratch space inside an operation is not counted, for any contender. Attributes: now, peak, in bytes.
    """

    def __init__(self, alive: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        for tensor in alive:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        if tensor.is_sparse:
            self._add(tensor._indices())
            tensor = tensor._values()
        elif tensor.layout == torch.sparse_csr:
            self._add(tensor.col_indices())
            tensor = tensor.values()
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def forget(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_bytes(alive: Iterable[Tensor], step: Callable[[], object], device: str) -> int:
    """Return the peak of live bytes during one call of `step`; `alive` (weights, optimiser state, inputs) counts from the start."""
    if device != "cuda":
        with LiveBytes(alive) as mode:
            step()
        return mode.peak
    # Other contenders' tensors are on the device too, so only the increase during this step is added.
    own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before + sum(own.values())


def saved_bytes(module: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd saves for backward besides the weights, counting each storage once."""
    weights = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> None:
        # Return a new object: a node that held its own output would be a reference cycle.
        parts = [tensor]
        if tensor.is_sparse:
            parts = [tensor._indices(), tensor._values()]
        elif tensor.layout == torch.sparse_csr:
            parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        for part in parts:
            storage = part.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        out = forward()
    total = sum(storage.nbytes() for storage in kept.values())
    del out
    return total
