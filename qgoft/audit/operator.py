"""The operator as published and as released: orthogonality, and whether the merged weight equals the trained one."""

import torch
from torch import Tensor

from qgoft.audit.findings import Finding
from qgoft.ops.givens import mix_neighbours, reference_matrix, released_reference_matrix

WIDTH = 768


def rotations(width: int, seed: int = 0) -> Tensor:
    """Return blocks [width - 1, 2, 2] of standard normal angles, float64."""
    angles = torch.randn(width - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c, s = angles.cos(), angles.sin()
    return torch.stack((torch.stack((c, -s), -1), torch.stack((s, c), -1)), -2)


def orthogonality_error(matrix: Tensor) -> float:
    """Return max |R^T R - I| of a matrix [d, d]."""
    return (matrix.T @ matrix - torch.eye(len(matrix), dtype=matrix.dtype)).abs().max().item()


def released_merge_matrix(blocks: Tensor, width: int) -> Tensor:
    """Return the matrix [width, width] that the second release merges. Its levels are in the reverse order of its forward, smallest stride
    first.
    """
    alone = []
    first = 0
    for level in range((width - 1).bit_length()):
        count = len(range(0, width - (1 << level), 2 << level))
        only = torch.eye(2, dtype=blocks.dtype).expand(width - 1, 2, 2).clone()
        only[first : first + count] = blocks[first : first + count]
        alone.append(released_reference_matrix(only, width))
        first += count
    merged = torch.eye(width, dtype=torch.float64)
    for matrix in alone:
        merged = matrix @ merged
    return merged


def check_operator() -> tuple[list[Finding], int]:
    """Return the findings, and the number of checked operators."""
    blocks = rotations(WIDTH)
    published, forward = reference_matrix(blocks, WIDTH), released_reference_matrix(blocks, WIDTH)
    merged = released_merge_matrix(blocks, WIDTH)
    fast = mix_neighbours(torch.eye(WIDTH, dtype=torch.float64), blocks).T
    assert (fast - forward).abs().max() < 1e-12, "two spellings of the release's rule disagree"
    findings = []
    if orthogonality_error(published) > 1e-12:
        findings.append(
            Finding("operator", "GOFT as published", "orthogonal", f"max |R^T R - I| = {orthogonality_error(published):.1e}", "certain")
        )
    for name, matrix in (("forward", forward), ("merge", merged)):
        error = orthogonality_error(matrix)
        if error > 1e-6:
            findings.append(
                Finding(
                    "operator",
                    f"second release, {name}",
                    "orthogonal",
                    f"max |R^T R - I| = {error:.1f} at d = {WIDTH} with unit-normal angles (as published: {orthogonality_error(published):.0e}); "
                    "PSOFT's GOFT and qGOFT rows were run with it",
                    "certain for the index rule as transcribed",
                )
            )
    gap = (forward - merged).abs().max().item()
    if gap > 1e-6:
        follows = f"they differ by {gap:.1f} at d = {WIDTH}: the merged weight is not the one that was trained"
        findings.append(
            Finding(
                "operator", "second release, forward and merge", "the same matrix", follows, "certain for the index rule as transcribed"
            )
        )
    return findings, 3
