"""Backend dispatch of the Givens product. All backends are exact; they differ in speed and in the devices they support."""

import functools
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# trees: stages of small dense matrices on chunks of rows. triton: all levels of a row in GPU registers, from the 2x2 blocks. graph:
# differentiable operations only, for compilers that trace.
BACKENDS = ("trees", "triton", "graph")
_forced: list[str] = []


@contextmanager
def force_backend(name: str) -> Iterator[None]:
    """Force one backend (a name of `BACKENDS`) for all inputs, for tests and benchmarks."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r} of the Givens operator; allowed are {', '.join(BACKENDS)}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def choose_backend(*tensors: Tensor) -> str:
    """Return the backend for these rows and blocks."""
    if _forced:
        return _forced[-1]
    if torch.compiler.is_compiling() or is_functorch_active():
        return "graph"
    # The Triton kernels compute in float32.
    if all(tensor.is_cuda and tensor.dtype != torch.float64 for tensor in tensors) and triton_available():
        return "triton"
    return "trees"


def is_functorch_active() -> bool:
    """Return True inside torch.func.grad, vmap and similar transforms, which support only operations they know."""
    return torch._C._functorch.maybe_current_level() is not None


@functools.cache
def triton_available() -> bool:
    """Return True if the Triton kernels are correct on this GPU, checked once on a small case."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    from qgoft.ops.givens import triton_kernels

    try:
        error = triton_kernels.self_check(torch.device("cuda"))
    except Exception as failure:
        warnings.warn(f"the Triton kernels do not run on this device ({failure}); using the slower matrix products", stacklevel=2)
        return False
    if error > triton_kernels.TOLERANCE:
        warnings.warn(f"the Triton kernels are wrong by {error:.1e} on this device; using the slower matrix products", stacklevel=2)
        return False
    return True


def should_rotate_weight(rows: int, outputs: int) -> bool:
    """Return True to compute W (R^T x) as (W R^T) x: rotating a row costs the same on either side, so the side with fewer rows is rotated."""
    return outputs <= rows


def can_cache_factors(parameter: Tensor) -> bool:
    """Return True if a layer may cache its factors: not while a compiler traces, and only if comparing the parameter with the cached values
    does not synchronise with a device.
    """
    return choose_backend(parameter) == "trees" and parameter.device.type == "cpu" and type(parameter) in (Tensor, torch.nn.Parameter)
