"""Peak memory of a run: the device's allocator where there is one, else the resident memory of this process."""

from pathlib import Path

import torch


def reset_peak_memory() -> None:
    """Start counting anew. On a CPU this needs Linux; elsewhere the peak stays unknown."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int | None:
    """Bytes since the last reset; None where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
