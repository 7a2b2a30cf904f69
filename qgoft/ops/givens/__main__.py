"""Print the backend of the Givens operator on this machine, and the reason: python -m qgoft.ops.givens"""

import os

import torch

from qgoft.ops.givens import native
from qgoft.ops.givens.dispatch import choose_backend


def describe_backend() -> list[str]:
    """Return what runs on this machine, and why. Compiles the native kernels if necessary."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = [f"backend on {device}: {choose_backend(torch.zeros(1, device=device))}"]
    try:
        library = native.load()
        lanes = library.givens_lanes(native.BEST)
        lines.append(f"native: available, {lanes} float32 values per vector, {torch.get_num_threads()} threads, {library._name}")
    except native.NotAvailable as reason:
        lines.append(f"native: not available: {reason}")
    if os.environ.get("QGOFT_BACKEND"):
        lines.append(f"QGOFT_BACKEND={os.environ['QGOFT_BACKEND']}")
    return lines


if __name__ == "__main__":
    print("\n".join(describe_backend()))
