"""Backend dispatch of the Givens product. All backends are exact; they differ in speed and in the devices they support."""

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from qgoft.ops.givens import native
from qgoft.ops.givens.reference import run_without_modes

# native: compiled C code on a CPU, from the 2x2 blocks. trees: stages of small dense matrices on chunks of rows, on any device. triton: all
# levels of a row in GPU registers, from the blocks. graph: differentiable operations only, for compilers that trace.
BACKENDS = ("native", "trees", "triton", "graph")
# Backends that take the blocks themselves instead of stages.
ON_BLOCKS = ("native", "triton")
# Subclasses, such as fake tensors and shards, have no memory of their own that C code may read.
PLAIN = (Tensor, torch.nn.Parameter)
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
    named = os.environ.get("QGOFT_BACKEND") or None
    if named not in (None, *BACKENDS):
        raise ValueError(f"QGOFT_BACKEND={named}: unknown backend; allowed are {', '.join(BACKENDS)}")
    if torch.compiler.is_compiling():
        # A compiler calls the native kernels as operators, and traces everything else.
        is_native = named in (None, "native") and all(map(native_supports, tensors)) and _is_native_available()
        return "native" if is_native else "graph"
    if is_functorch_active():
        return "graph"
    # The Triton kernels compute in float32.
    if named in (None, "triton") and all(tensor.is_cuda and tensor.dtype != torch.float64 for tensor in tensors) and triton_available():
        return "triton"
    if named in (None, "native") and all(map(native_supports, tensors)) and native.is_available():
        return "native"
    return "trees"


@torch.compiler.assume_constant_result
def _is_native_available() -> bool:
    return native.is_available()


def native_supports(tensor: Tensor) -> bool:
    """Return True if C code can read this tensor: in memory, float32 or bfloat16."""
    return tensor.device.type == "cpu" and tensor.dtype in native.DTYPES and type(tensor) in PLAIN


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
        error = run_without_modes(triton_kernels.self_check, torch.device("cuda"))
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
    if torch.compiler.is_compiling():
        return False
    return choose_backend(parameter) in ("native", "trees") and parameter.device.type == "cpu" and type(parameter) in PLAIN
