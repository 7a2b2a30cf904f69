"""Print the backend of the Givens operator on this machine, and the reason: python -m qgoft.ops.givens"""

import os

import torch

from qgoft.ops.givens import native
from qgoft.ops.givens.dispatch import choose_backend


def main() -> None:
    """Compile the native kernels if necessary, and print what is used."""
    try:
        library = native.load()
        lanes = library.givens_lanes(native.BEST)
        found = f"native: available, {lanes} float32 values per vector, {torch.get_num_threads()} threads, {library._name}"
    except native.NotAvailable as reason:
        found = f"native: not available: {reason}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"backend on {device}: {choose_backend(torch.zeros(1, device=device))}")
    print(found)
    if os.environ.get("QGOFT_BACKEND"):
        print(f"QGOFT_BACKEND={os.environ['QGOFT_BACKEND']}")


if __name__ == "__main__":
    main()
