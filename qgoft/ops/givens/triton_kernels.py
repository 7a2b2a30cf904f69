# mypy: ignore-errors
# ruff: noqa: RUF005
"""Triton kernels: a program reads its rows once, applies all levels in float32 in registers, and writes once.

Shapes: N rows, d width, D the power of two at or above d. Level r = 0 .. LEVELS-1 (0-based here) has nodes at multiples of 2^(r+1).
Each level splits neighbours: after level r only the first coordinates of subtrees of width 2^(r+1) continue, the others are final.

Triton has its own types, and tuples grow by addition.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qgoft.ops.givens.reference import build_check_case

# Values per program: rows times width that fit the registers of eight warps, together with the copies that a level makes. The gradients
# keep the inputs of all levels, and spill with more (python -m qgoft.bench.gpu_resources).
FORWARD_TILE = 8192
GRADIENT_TILE = 4096
# Programs of the backward pass. Each accumulates its own partial sum, so that the order of additions is fixed.
PROGRAMS = 264
# Tolerance of `self_check`: float32 sums of a few hundred terms of order one.
TOLERANCE = 1e-4


@triton.jit
def _load_blocks(blocks, first, d: tl.constexpr, D: tl.constexpr, level: tl.constexpr):
    """Load the four entries of every block of a level, as [1, nodes]; identities if the pair extends beyond d."""
    node = tl.arange(0, D >> (level + 1))
    present = node * (2 << level) + (1 << level) < d
    place = blocks + (first + node) * 4
    a = tl.load(place, mask=present, other=1.0).to(tl.float32)[None, :]
    b = tl.load(place + 1, mask=present, other=0.0).to(tl.float32)[None, :]
    c = tl.load(place + 2, mask=present, other=0.0).to(tl.float32)[None, :]
    e = tl.load(place + 3, mask=present, other=1.0).to(tl.float32)[None, :]
    return a, b, c, e


@triton.jit
def _finished_columns(D: tl.constexpr, level: tl.constexpr):
    """Return the coordinate that each node of a level makes final, [1, nodes]."""
    return (tl.arange(0, D >> (level + 1)) * (2 << level) + (1 << level))[None, :]


@triton.jit
def _pairs_of(d: tl.constexpr, level: tl.constexpr):
    return (d - (1 << level) + (2 << level) - 1) // (2 << level)


@triton.jit
def _split_pairs(root, ROWS: tl.constexpr, D: tl.constexpr, level: tl.constexpr):
    """Split a level into the two inputs of every pair: [ROWS, 2 * nodes] -> two tensors [ROWS, nodes]."""
    return tl.split(tl.reshape(root, (ROWS, D >> (level + 1), 2)))


@triton.jit
def _join_pairs(upper, done, a, b, c, e, ROWS: tl.constexpr, D: tl.constexpr, level: tl.constexpr):
    """Apply the transposed block of every node: two tensors [ROWS, nodes] -> [ROWS, 2 * nodes]."""
    return tl.reshape(tl.join(a * upper + c * done, b * upper + e * done), (ROWS, D >> level))


@triton.jit
def _add_to(place, value, present):
    tl.store(place, tl.load(place, mask=present, other=0.0) + value, mask=present)


@triton.jit
def _forward_kernel(x, blocks, y, N, d: tl.constexpr, D: tl.constexpr, LEVELS: tl.constexpr, ROWS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    inside = row < N
    column = tl.arange(0, D)[None, :]
    root = tl.load(x + row * d + column, mask=inside & (column < d), other=0.0).to(tl.float32)
    first = 0
    for level in tl.static_range(LEVELS):
        even, odd = _split_pairs(root, ROWS, D, level)
        a, b, c, e = _load_blocks(blocks, first, d, D, level)
        second = _finished_columns(D, level)
        tl.store(y + row * d + second, (c * even + e * odd).to(y.dtype.element_ty), mask=inside & (second < d))
        root = a * even + b * odd
        first += _pairs_of(d, level)
    tl.store(y + row * d, root.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _transpose_kernel(g, blocks, y, N, d: tl.constexpr, D: tl.constexpr, LEVELS: tl.constexpr, ROWS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    inside = row < N
    root = tl.load(g + row * d, mask=inside, other=0.0).to(tl.float32)
    first = d - 1
    for level in tl.static_range(LEVELS - 1, -1, -1):
        first -= _pairs_of(d, level)
        a, b, c, e = _load_blocks(blocks, first, d, D, level)
        second = _finished_columns(D, level)
        done = tl.load(g + row * d + second, mask=inside & (second < d), other=0.0).to(tl.float32)
        root = _join_pairs(root, done, a, b, c, e, ROWS, D, level)
    column = tl.arange(0, D)[None, :]
    tl.store(y + row * d + column, root.to(y.dtype.element_ty), mask=inside & (column < d))


@triton.jit
def _backward_kernel(
    x, g, blocks, out, partial, N, tiles,
    d: tl.constexpr, D: tl.constexpr, LEVELS: tl.constexpr, ROWS: tl.constexpr, NEED_INPUT: tl.constexpr, TRANSPOSE: tl.constexpr,
):  # fmt: skip
    """Process tiles at a fixed stride per program, recompute the inputs of each level, and add to the program's slice of `partial`.

    Writes R^T g to `out`, or with TRANSPOSE R x, the gradient of the input if the product was R^T g.
    """
    program = tl.program_id(0)
    mine = partial + program.to(tl.int64) * (d - 1) * 4
    column = tl.arange(0, D)[None, :]
    for tile in range(program, tiles, tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
        inside = row < N
        root = tl.load(x + row * d + column, mask=inside & (column < d), other=0.0).to(tl.float32)
        evens = ()
        odds = ()
        first = 0
        for level in tl.static_range(LEVELS):
            even, odd = _split_pairs(root, ROWS, D, level)
            a, b, c, e = _load_blocks(blocks, first, d, D, level)
            evens = evens + (even,)
            odds = odds + (odd,)
            root = a * even + b * odd
            first += _pairs_of(d, level)
        upper = tl.load(g + row * d, mask=inside, other=0.0).to(tl.float32)
        first = d - 1
        for level in tl.static_range(LEVELS - 1, -1, -1):
            first -= _pairs_of(d, level)
            a, b, c, e = _load_blocks(blocks, first, d, D, level)
            second = _finished_columns(D, level)
            done = tl.load(g + row * d + second, mask=inside & (second < d), other=0.0).to(tl.float32)
            node = tl.arange(0, D >> (level + 1))
            present = node * (2 << level) + (1 << level) < d
            place = mine + (first + node) * 4
            _add_to(place, tl.sum(upper * evens[level], 0), present)
            _add_to(place + 1, tl.sum(upper * odds[level], 0), present)
            _add_to(place + 2, tl.sum(done * evens[level], 0), present)
            _add_to(place + 3, tl.sum(done * odds[level], 0), present)
            upper = _join_pairs(upper, done, a, b, c, e, ROWS, D, level)
        # `out` may alias `g` or `x`, so all threads must have read before one writes; the next tile adds to the stored sums.
        tl.debug_barrier()
        if NEED_INPUT:
            if TRANSPOSE:
                first = 0
                for level in tl.static_range(LEVELS):
                    a, b, c, e = _load_blocks(blocks, first, d, D, level)
                    second = _finished_columns(D, level)
                    done = c * evens[level] + e * odds[level]
                    tl.store(out + row * d + second, done.to(out.dtype.element_ty), mask=inside & (second < d))
                    first += _pairs_of(d, level)
                tl.store(out + row * d, root.to(out.dtype.element_ty), mask=inside)
            else:
                tl.store(out + row * d + column, upper.to(out.dtype.element_ty), mask=inside & (column < d))


def _layout(rows: Tensor, tile: int) -> dict[str, int]:
    count, d = rows.shape
    width = triton.next_power_of_2(d)
    tall = max(1, min(tile // width, 16, triton.next_power_of_2(max(count, 1))))
    return {"d": d, "D": width, "LEVELS": (d - 1).bit_length(), "ROWS": tall, "num_warps": 4 if width * tall <= 2048 else 8}


def forward(rows: Tensor, blocks: Tensor) -> Tensor:
    """Apply R to every row: [N, d] and [d-1, 2, 2] -> a new [N, d]."""
    return _launch(_forward_kernel, rows, blocks)


def transpose(rows: Tensor, blocks: Tensor) -> Tensor:
    """Apply R^T to every row: [N, d] and [d-1, 2, 2] -> a new [N, d]."""
    return _launch(_transpose_kernel, rows, blocks)


def _launch(kernel: Any, rows: Tensor, blocks: Tensor) -> Tensor:
    rows, blocks = rows.contiguous(), blocks.contiguous()
    out = torch.empty_like(rows)
    if len(rows):
        layout = _layout(rows, FORWARD_TILE)
        with torch.cuda.device_of(rows):  # Triton launches on the current device, not on that of its arguments
            kernel[(triton.cdiv(len(rows), layout["ROWS"]),)](rows, blocks, out, len(rows), **layout)
    return out


def backward(
    rows: Tensor, grads: Tensor, blocks: Tensor, *, overwrite: bool, need_input: bool, transpose: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of y = R x: of the blocks [d-1, 2, 2] in float32, and of x.

    Args:
        rows: x [N, d].
        grads: gradient of y [N, d].
        overwrite: reuse the memory of `grads` (of `rows` with `transpose`) for the gradient of x.
        transpose: return R x instead of the gradient of x. For y = R^T x, <g, R^T x> = <R g, x>: called with rows g and grads x, this
            returns the gradients of both.
    """
    rows, grads, blocks = rows.contiguous(), grads.contiguous(), blocks.contiguous()
    reused = rows if transpose else grads
    out = (reused if overwrite else torch.empty_like(reused)) if need_input else None
    layout = _layout(rows, GRADIENT_TILE)
    tiles = triton.cdiv(len(rows), layout["ROWS"])
    programs = min(PROGRAMS, max(tiles, 1))
    partial = torch.zeros(programs, len(blocks), 2, 2, dtype=torch.float32, device=rows.device)
    if len(rows):
        with torch.cuda.device_of(rows):
            _backward_kernel[(programs,)](
                rows,
                grads,
                blocks,
                reused if out is None else out,
                partial,
                len(rows),
                tiles,
                NEED_INPUT=need_input,
                TRANSPOSE=transpose,
                **layout,
            )
    return partial.sum(0), out


def self_check(device: torch.device) -> float:
    """Return the largest difference between the kernels and the reference, on a small case of odd width."""
    rows, grads, blocks, exact, exact_rows, exact_blocks = build_check_case(device)
    grad_blocks, grad_rows = backward(rows, grads.clone(), blocks, overwrite=True, need_input=True)
    same_blocks, turned = backward(rows.clone(), grads, blocks, overwrite=True, need_input=True, transpose=True)
    pairs = (
        (forward(rows, blocks), exact),
        (transpose(grads, blocks), exact_rows),
        (grad_rows, exact_rows),
        (grad_blocks, exact_blocks),
        (turned, exact),
        (same_blocks, exact_blocks),
    )
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs if ours is not None)
