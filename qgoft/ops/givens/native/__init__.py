"""Native backend of the operator: the C code of this directory, compiled once per machine and called through ctypes.

Rows are float32 or bfloat16 on a CPU; the arithmetic is float32, with the 2x2 blocks themselves (no matrices are built). The kernels for
AVX-512, AVX2 and the baseline are in one library, and the best of the processor is used. Threads are those of OpenMP, which PyTorch has
loaded already, as many as `torch.get_num_threads()`. Results do not depend on their number.
"""

import ctypes
import functools
import os
import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from qgoft.config.locations import cache_directory
from qgoft.ops.givens.native.build import NotAvailable, compile_once, installed_library, source_hash
from qgoft.ops.givens.reference import build_check_case, run_without_modes

DTYPES = (torch.float32, torch.bfloat16)
MAX_WIDTH = 2**26  # places in a row are 32-bit numbers
BEST = 2  # instruction set: the best that the processor has (0: baseline, 1: AVX2, 2: AVX-512)
TOLERANCE = 1e-5  # of the self-check, relative


# Set in a forked process: OpenMP's threads do not exist there, and starting them again would wait forever.
_is_forked = False


def _mark_forked() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def _threads() -> int:
    return 1 if _is_forked else torch.get_num_threads()


@functools.cache
def load() -> ctypes.CDLL:
    """Return the library, checked against the reference: that of the installation, or compiled on first use into the cache of the user.

    Raises:
        NotAvailable: no compiler, a cache that cannot be written, or a library that fails or is wrong.
    """
    path = installed_library()
    library = None if path is None else _open(str(path))
    # In a source tree the sources may be newer than the installation.
    if library is None or library.givens_source().decode() != source_hash():
        path = compile_once(cache_directory() / "native")
        library = _open(str(path))
    error = run_without_modes(self_check, library)
    if not error <= TOLERANCE:
        raise NotAvailable(f"{path} is wrong by {error:.1e}; delete it")
    return library


def _open(path: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(path)
        p, i, n = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        library.givens_apply.argtypes = [i, i, i, p, p, n, p, n, n, i, i]
        library.givens_gradients.argtypes = [i, i, i, p, p, n, p, n, p, n, n, i, p, i]
        library.givens_source.restype = ctypes.c_char_p
    except (OSError, AttributeError) as failure:
        raise NotAvailable(f"{path} cannot be loaded ({failure}); delete it") from failure
    return library


@functools.cache
def is_available() -> bool:
    """Return True if the native kernels are correct on this machine. Warns once if they are not available."""
    try:
        load()
    except NotAvailable as reason:
        warnings.warn(f"the native Givens kernels are not available ({reason}); using the slower matrix products", stacklevel=2)
        return False
    return True


def _prepare(rows: Tensor) -> Tensor:
    """Return rows [N, d] whose last axis is contiguous."""
    # An empty tensor counts as contiguous, whatever its strides are.
    return rows if rows.stride(-1) == 1 else rows.clone(memory_format=torch.contiguous_format)


def _in_float32(blocks: Tensor) -> Tensor:
    return blocks if blocks.dtype is torch.float32 and blocks.is_contiguous() else blocks.detach().to(torch.float32).contiguous()


def _check(blocks: Tensor, rows: Tensor, *others: Tensor) -> None:
    """Check that the C code may read and write these tensors.

    Raises:
        ValueError: another device, dtype or shape than the kernels support.
    """
    count, d = rows.shape
    for tensor in (rows, *others):
        if tensor.dtype not in DTYPES or tensor.dtype is not rows.dtype or tensor.shape != (count, d) or not tensor.is_cpu:
            raise ValueError(
                f"the native kernels take float32 or bfloat16 rows [{count}, {d}] on a CPU, not {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor.stride(-1) != 1 or tensor.stride(0) < 0:
            raise ValueError("the last axis of the rows must be contiguous")
    if d > MAX_WIDTH:
        raise ValueError(f"the native kernels take rows of at most {MAX_WIDTH} values, not {d}")
    if blocks.dtype is not torch.float32 or blocks.shape != (d - 1, 2, 2) or not blocks.is_contiguous() or not blocks.is_cpu:
        raise ValueError(f"the native kernels take contiguous float32 blocks [{d - 1}, 2, 2], not {blocks.dtype} {tuple(blocks.shape)}")


def forward(rows: Tensor, blocks: Tensor, *, isa: int = BEST) -> Tensor:
    """Apply R to every row: [N, d] and [d-1, 2, 2] -> a new [N, d]."""
    return _apply(rows, blocks, False, isa)


def transpose(rows: Tensor, blocks: Tensor, *, isa: int = BEST) -> Tensor:
    """Apply R^T to every row: [N, d] and [d-1, 2, 2] -> a new [N, d]."""
    return _apply(rows, blocks, True, isa)


def _apply(rows: Tensor, blocks: Tensor, transpose: bool, isa: int, library: ctypes.CDLL | None = None) -> Tensor:
    rows, blocks = _prepare(rows), _in_float32(blocks)
    out = torch.empty(rows.shape, dtype=rows.dtype)
    _check(blocks, rows, out)
    _call((library or load()).givens_apply, isa, rows, blocks, *_matrix(rows), *_matrix(out), len(rows), int(transpose))
    return out


def backward(
    rows: Tensor,
    grads: Tensor,
    blocks: Tensor,
    *,
    overwrite: bool,
    need_input: bool,
    transpose: bool = False,
    isa: int = BEST,
    library: ctypes.CDLL | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of y = R x: of the blocks [d-1, 2, 2] in float32, and of x.

    Args:
        rows: x [N, d].
        grads: gradient of y [N, d].
        overwrite: reuse the memory of `grads` (of `rows` with `transpose`) for the gradient of x.
        transpose: return R x instead of the gradient of x. For y = R^T x, <g, R^T x> = <R g, x>: called with rows g and grads x, this
            returns the gradients of both.
    """
    rows, grads, blocks = _prepare(rows), _prepare(grads), _in_float32(blocks)
    replaced = rows if transpose else grads
    is_dense = replaced.stride(0) >= replaced.shape[1]  # rows that share memory cannot be overwritten
    out = (replaced if overwrite and is_dense else torch.empty(rows.shape, dtype=rows.dtype)) if need_input else None
    _check(blocks, rows, grads, *([] if out is None else [out]))
    grad_blocks = torch.empty_like(blocks)
    matrices = (*_matrix(rows), *_matrix(grads), *((None, 0) if out is None else _matrix(out)))
    _call((library or load()).givens_gradients, isa, rows, blocks, *matrices, len(rows), int(transpose), grad_blocks.data_ptr())
    return grad_blocks, out


def _call(kernel: Callable[..., int], isa: int, rows: Tensor, blocks: Tensor, *arguments: int | None) -> None:
    """Call a function of the library.

    Raises:
        MemoryError: it could not allocate its work.
    """
    if kernel(isa, int(rows.dtype == torch.bfloat16), rows.shape[1], blocks.data_ptr(), *arguments, _threads()):
        raise MemoryError("the native Givens kernels could not allocate their work")


def _matrix(rows: Tensor) -> tuple[int, int]:
    return rows.data_ptr(), rows.stride(0)


def self_check(library: ctypes.CDLL) -> float:
    """Return the largest relative error of a library on a small case of odd width, for products and gradients; infinity if it fails."""
    rows, grads, blocks, exact, exact_rows, exact_blocks = build_check_case(torch.device("cpu"))
    with suppress(MemoryError, ValueError):
        grad_blocks, grad_rows = backward(rows, grads, blocks, overwrite=False, need_input=True, library=library)
        pairs = (
            (_apply(rows, blocks, False, BEST, library), exact),
            (_apply(grads, blocks, True, BEST, library), exact_rows),
            (grad_blocks, exact_blocks),
            (grad_rows, exact_rows),
        )
        return max(float((ours.double() - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs if ours is not None)
    return float("inf")
