"""Peak memory of a run: of the device's allocator, or the resident memory of this process."""

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
