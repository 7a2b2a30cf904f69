"""Memory of a run: its peak, and whether the C library keeps freed memory."""

import ctypes
import platform
from pathlib import Path

import torch


def reset_peak_memory() -> None:
    """Reset the peak. On a CPU this needs Linux; elsewhere the peak is unknown."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int | None:
    """Return the peak bytes since the last reset; None if the system does not report them."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


# Parameters of mallopt (malloc.h): bytes of free memory at the end of the heap before it shrinks, bytes added when it grows, and how many
# blocks may come from the system instead of the heap.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the life of this process, and return True if it does.

    By default glibc returns large blocks to the system and faults them in again at every step, which costs small models on a CPU a tenth of
    their time (docs/LOG.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) for name, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20), (_MMAP_MAX, 0)))
