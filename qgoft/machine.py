"""This machine."""

import os
import platform
from pathlib import Path


def available_cores() -> int:
    """Return the cores that this process may use: in a SLURM job those of the job, not of the node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str | None:
    """Return the model of the processor, or None if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
