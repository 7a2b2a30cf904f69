"""The one place where it is decided how a product is computed. Every way is exact; they differ in cost and in where they run."""

import functools
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# trees: stages of small matrices on pieces of rows; triton: all levels of a row on the chip of a GPU, from the 2x2 blocks themselves;
# graph: differentiable operations alone, which a compiler can trace.
BACKENDS = ("trees", "triton", "graph")
_forced: list[str] = []


@contextmanager
def force_backend(name: str) -> Iterator[None]:
    """Use one path whatever the input, as tests and benchmarks need it. Names are those of `BACKENDS`."""
    if name not in BACKENDS:
        raise ValueError(f"unknown path {name!r} of the Givens operator; allowed are {', '.join(BACKENDS)}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def choose_backend(*tensors: Tensor) -> str:
    """How these rows and blocks are multiplied."""
    if _forced:
        return _forced[-1]
    if torch.compiler.is_compiling() or is_functorch_active():
        return "graph"
    # The kernels compute in float32.
    if all(tensor.is_cuda and tensor.dtype != torch.float64 for tensor in tensors) and triton_available():
        return "triton"
    return "trees"


def is_functorch_active() -> bool:
    """Return True inside torch.func.grad, vmap and their like, which need operations that they know."""
    return torch._C._functorch.maybe_current_level() is not None


@functools.cache
def triton_available() -> bool:
    """Whether the kernels give the product on this machine's GPU: tried once, on a small case, before the first use."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    from qgoft.ops.givens import triton_kernels

    try:
        error = triton_kernels.self_check(torch.device("cuda"))
    except Exception as failure:
        warnings.warn(f"the Triton kernels do not run here ({failure}); the slower path of matrix products is used", stacklevel=2)
        return False
    if error > triton_kernels.TOLERANCE:
        warnings.warn(f"the Triton kernels are wrong here by {error:.1e}; the slower path of matrix products is used", stacklevel=2)
        return False
    return True


def should_rotate_weight(rows: int, outputs: int) -> bool:
    """Return True if W (R^T x) is computed as (W R^T) x. A rotated row costs the same on either side, so the side with fewer rows is rotated."""
    return outputs <= rows


def can_cache_factors(parameter: Tensor) -> bool:
    """Whether the factors of a layer may be kept between calls: not while a compiler traces, and only where comparing values with those
    the factors were made from does not wait for a device."""
    return choose_backend(parameter) == "trees" and parameter.device.type == "cpu" and type(parameter) in (Tensor, torch.nn.Parameter)
