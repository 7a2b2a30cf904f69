"""This machine."""

import platform
from pathlib import Path


def processor_name() -> str | None:
    """Return the model of the processor, or None if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
