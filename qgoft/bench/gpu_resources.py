"""Registers, spills and memory traffic of the Triton kernels, read from their compiled code: python -m qgoft.bench.gpu_resources 90

No GPU is needed. A program is one block of threads. Registers are per thread, spills are bytes per thread, and shared memory is per
program. Traffic is relative to a copy of the rows, which reads and writes every element once: traffic of the memory (rows only), and of the
second-level cache, which holds the blocks and the sums of their gradients.
"""

# mypy: ignore-errors
# Triton has its own types.

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CAPABILITIES = (80, 90, 100)
WIDTHS = (768, 4096)
ROWS = 4096  # of a launch: enough for full programs


@dataclass(frozen=True)
class Resources:
    """Resources of one kernel at one width; the fields are the columns of the printed table."""

    kernel: str
    width: int
    rows: int
    threads: int
    registers: int
    spills: int
    shared: int
    memory_copies: float
    cache_copies: float


def compile_kernels(capability: int) -> list[Resources]:
    """Compile every kernel for float32 rows and a compute capability (90 is 9.0), and return its resources.

    Raises:
        ImportError: triton is not installed.
    """
    from qgoft.ops.givens import triton_kernels as kernels

    forward, gradient = kernels.FORWARD_TILE, kernels.GRADIENT_TILE
    cases = [
        ("forward", kernels._forward_kernel, forward, {}),
        ("transpose", kernels._transpose_kernel, forward, {}),
        ("gradients", kernels._backward_kernel, gradient, {"NEED_INPUT": True, "TRANSPOSE": False}),
        ("gradients of transpose", kernels._backward_kernel, gradient, {"NEED_INPUT": True, "TRANSPOSE": True}),
    ]
    found = []
    for d in WIDTHS:
        for name, kernel, tile, options in cases:
            layout = kernels._layout(torch.empty(ROWS, d, device="meta"), tile)
            warps = layout.pop("num_warps")
            registers, spills, shared = _compile(kernel, {**layout, **options}, warps, capability)
            # Every program reads the blocks, 16 bytes each; the sums of their gradients are read and written once per tile.
            passes = 3 if options else 2
            of_rows = layout["ROWS"] * d * 4
            of_blocks = (16 + (32 if options else 0)) * (d - 1)
            copies = passes / 2, (passes * of_rows + of_blocks) / (2 * of_rows)
            found.append(Resources(name, d, layout["ROWS"], 32 * warps, registers, spills, shared, *copies))
    return found


def _compile(kernel: Any, constants: dict[str, Any], warps: int, capability: int) -> tuple[int, int, int]:
    """Return registers and spilled bytes per thread, and shared bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"N": "i32", "tiles": "i32"}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        printed = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) ", printed)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no registers: {printed[-300:]}")
    return int(found[1]), int(found[2]), built.metadata.shared


def main(arguments: list[str]) -> None:
    """Print a table for every compute capability."""
    for capability in map(int, arguments or CAPABILITIES):
        print(f"compute capability {capability / 10:.1f}")
        print(f"{'kernel':24}{'width':>6}{'rows':>5}{'threads':>8}{'registers':>10}{'spills':>7}{'shared':>7}{'memory':>7}{'cache':>6}")
        for one in compile_kernels(capability):
            numbers = f"{one.width:6}{one.rows:5}{one.threads:8}{one.registers:10}{one.spills:7}{one.shared:7}"
            print(f"{one.kernel:24}{numbers}{one.memory_copies:7.2f}{one.cache_copies:6.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
