"""Compilation of the native kernels, at installation (setup.py) or at first use. This module imports nothing of the package, nor torch."""

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent
SOURCES = (DIRECTORY / "givens.c", DIRECTORY / "rows.inc")
# Without contraction to fused operations the instruction sets give the same bits. Nothing is specific to the compiling processor. OpenMP
# is GCC's, which PyTorch has loaded already: a second pool of threads would compete with the first.
COMPILE_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fopenmp", "-Wno-psabi")
LINK_FLAGS = ("-fopenmp",)
COMPILE_TIMEOUT = 120.0  # seconds


class NotAvailable(Exception):
    """The library cannot be compiled, loaded or trusted on this machine; the message is the reason."""


@functools.cache
def source_hash() -> str:
    """Return the hash of the sources and flags. A library carries the one that it was compiled from."""
    parts = [*(source.read_text("utf-8") for source in SOURCES), *COMPILE_FLAGS]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def installed_library() -> Path | None:
    """Return the library that was compiled when the package was installed, if there is one."""
    return next(iter(sorted(DIRECTORY.glob("_library*.so"))), None)


def compile_once(cache: Path) -> Path:
    """Return the library in a cache directory, compiled if it is missing. One process compiles; others that need it wait.

    Raises:
        NotAvailable: no compiler, one that fails, or a directory that cannot be written.
    """
    compiler = _find_compiler()
    import fcntl  # POSIX only

    path = cache / _directory_name(compiler) / "libgivens.so"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                _compile(compiler, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAvailable(f"cannot compile to {path.parent}: {error}; set QGOFT_CACHE to a writable directory") from error
    return path


def _find_compiler() -> list[str]:
    if sys.platform != "linux":
        raise NotAvailable(f"they are built for Linux only, not {sys.platform}")
    words = shlex.split(os.environ.get("CC", ""))
    found = words or [name for name in ("cc", "gcc") if shutil.which(name)][:1]
    if not found or not shutil.which(found[0]):
        raise NotAvailable(f"no C compiler{f' {words[0]}' if words else ''} was found; install gcc, or set CC")
    return found


def _directory_name(compiler: list[str]) -> str:
    """Return a name for the sources, the compiler and the architecture."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    if "clang" in version:
        raise NotAvailable("clang's OpenMP would be a second pool of threads; set CC=gcc")
    return hashlib.sha256("\0".join([source_hash(), *compiler, version, platform.machine()]).encode()).hexdigest()[:16]


def _compile(compiler: list[str], path: Path) -> None:
    """Compile the library, which appears atomically."""
    print("qgoft: compiling the native Givens kernels (once, some seconds)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        target = Path(scratch) / path.name
        command = [
            *compiler,
            *COMPILE_FLAGS,
            f'-DGIVENS_SOURCE="{source_hash()}"',
            "-shared",
            *LINK_FLAGS,
            "-o",
            str(target),
            str(SOURCES[0]),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT, check=False)
        if done.returncode != 0:
            raise NotAvailable(f"the compiler failed: {' '.join(done.stderr.split())[-300:]}")
        os.replace(target, path)
