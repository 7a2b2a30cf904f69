"""Native backend of the operator: the C code of this directory, compiled once per machine and called through ctypes.

Rows are float32 or bfloat16 on a CPU; the arithmetic is float32, with the 2x2 blocks themselves (no matrices are built). The kernels for
AVX-512, AVX2 and the baseline are in one library, and the best of the processor is used. Threads are those of OpenMP, which PyTorch has
loaded already, as many as `torch.get_num_threads()`. Results do not depend on their number.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from qgoft.config.locations import cache_directory
from qgoft.ops.givens.reference import build_check_case

SOURCES = tuple(Path(__file__).with_name(name) for name in ("givens.c", "rows.inc"))
# Without contraction to fused operations the instruction sets give the same bits. Nothing is specific to the compiling processor.
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off")
OPENMP = "-fopenmp"
COMPILE_TIMEOUT = 120.0  # seconds
DTYPES = (torch.float32, torch.bfloat16)
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


class NotAvailable(Exception):
    """The library cannot be compiled, loaded or trusted on this machine; the message is the reason."""


@functools.cache
def load() -> ctypes.CDLL:
    """Return the library, compiled on first use into the cache of the user and checked against the reference.

    Raises:
        NotAvailable: no compiler, a cache that cannot be written, or a library that fails or is wrong.
    """
    compiler = _compiler()
    path = _library_path(compiler)
    if not path.is_file():
        _compile(compiler, path)
    try:
        library = ctypes.CDLL(str(path))
        p, i, n = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        library.givens_apply.argtypes = [i, i, i, p, p, n, p, n, n, i, i]
        library.givens_gradients.argtypes = [i, i, i, p, p, n, p, n, p, n, n, i, p, i]
    except (OSError, AttributeError) as failure:
        raise NotAvailable(f"{path} cannot be loaded ({failure}); delete it") from failure
    error = self_check(library)
    if not error <= TOLERANCE:
        raise NotAvailable(f"{path} is wrong by {error:.1e}; delete it")
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


def _compiler() -> list[str]:
    words = shlex.split(os.environ.get("CC", ""))
    found = words or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    if not found or not shutil.which(found[0]):
        raise NotAvailable(f"there is no C compiler{f' {words[0]}' if words else ''}; install one, or set CC")
    return found


def _library_path(compiler: list[str]) -> Path:
    """Return the path of the library in the cache, named after its sources, the compiler and the architecture."""
    asked = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    identity = [*(source.read_text("utf-8") for source in SOURCES), *compiler, *FLAGS, OPENMP, asked, platform.machine(), sys.platform]
    return cache_directory() / "native" / hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16] / "libgivens.so"


def _compile(compiler: list[str], path: Path) -> None:
    """Compile the library. It appears atomically; if several processes compile it, the last one replaces equal files."""
    print("qgoft: compiling the native Givens kernels (once, some seconds)", file=sys.stderr, flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            target = Path(scratch) / path.name
            for flags in ((*FLAGS, OPENMP), FLAGS):  # a compiler without OpenMP: one thread
                command = [*compiler, *flags, "-o", str(target), str(SOURCES[0])]
                done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT, check=False)
                if done.returncode == 0:
                    os.replace(target, path)
                    return
            raise NotAvailable(f"the compiler failed: {' '.join(done.stderr.split())[-300:]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAvailable(f"cannot compile to {path.parent}: {error}; set QGOFT_CACHE to a writable directory") from error


def _prepare(rows: Tensor) -> Tensor:
    """Return rows [N, d] whose last axis is contiguous."""
    # An empty tensor counts as contiguous, whatever its strides are.
    return rows if rows.stride(-1) == 1 else rows.clone(memory_format=torch.contiguous_format)


def _check(blocks: Tensor, *matrices: Tensor) -> None:
    """Check that the C code may read and write these tensors.

    Raises:
        ValueError: another device, dtype or shape than the kernels support.
    """
    count, d = matrices[0].shape
    for tensor in matrices:
        if tensor.device.type != "cpu" or tensor.dtype not in DTYPES or tensor.dtype != matrices[0].dtype or tensor.shape != (count, d):
            raise ValueError(
                f"the native kernels take float32 or bfloat16 rows [{count}, {d}] on a CPU, not {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor.stride(-1) != 1 or tensor.stride(0) < 0:
            raise ValueError("the last axis of the rows must be contiguous")
    if blocks.dtype != torch.float32 or blocks.shape != (d - 1, 2, 2) or not blocks.is_contiguous():
        raise ValueError(f"the native kernels take contiguous float32 blocks [{d - 1}, 2, 2], not {blocks.dtype} {tuple(blocks.shape)}")


def _in_float32(blocks: Tensor) -> Tensor:
    return blocks.detach().to(torch.float32).contiguous()


def forward(rows: Tensor, blocks: Tensor, *, level: int = BEST) -> Tensor:
    """Apply R to every row: [N, d] and [d-1, 2, 2] -> a new [N, d]."""
    return _apply(rows, blocks, False, level)


def transpose(rows: Tensor, blocks: Tensor, *, level: int = BEST) -> Tensor:
    """Apply R^T to every row: [N, d] and [d-1, 2, 2] -> a new [N, d]."""
    return _apply(rows, blocks, True, level)


def _apply(rows: Tensor, blocks: Tensor, transpose: bool, level: int, library: ctypes.CDLL | None = None) -> Tensor:
    rows, blocks = _prepare(rows.detach()), _in_float32(blocks)
    out = torch.empty(rows.shape, dtype=rows.dtype)
    _check(blocks, rows, out)
    count, d = rows.shape
    failed = (library or load()).givens_apply(
        level,
        int(rows.dtype == torch.bfloat16),
        d,
        blocks.data_ptr(),
        *_matrix(rows),
        *_matrix(out),
        count,
        int(transpose),
        _threads(),
    )
    if failed:
        raise MemoryError("the native Givens kernels could not allocate their work")
    return out


def backward(
    rows: Tensor,
    grads: Tensor,
    blocks: Tensor,
    *,
    overwrite: bool,
    need_input: bool,
    transpose: bool = False,
    level: int = BEST,
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
    rows, grads, blocks = _prepare(rows.detach()), _prepare(grads.detach()), _in_float32(blocks)
    replaced = rows if transpose else grads
    is_dense = replaced.stride(0) >= replaced.shape[1]  # rows that share memory cannot be overwritten
    out = (replaced if overwrite and is_dense else torch.empty(rows.shape, dtype=rows.dtype)) if need_input else None
    _check(blocks, rows, grads, *([] if out is None else [out]))
    grad_blocks = torch.empty_like(blocks)
    count, d = rows.shape
    failed = (library or load()).givens_gradients(
        level,
        int(rows.dtype == torch.bfloat16),
        d,
        blocks.data_ptr(),
        *_matrix(rows),
        *_matrix(grads),
        *((None, 0) if out is None else _matrix(out)),
        count,
        int(transpose),
        grad_blocks.data_ptr(),
        _threads(),
    )
    if failed:
        raise MemoryError("the native Givens kernels could not allocate their work")
    return grad_blocks, out


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
