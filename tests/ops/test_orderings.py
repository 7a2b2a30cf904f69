"""Orderings other than the tree against their definitions, pair by pair."""

import math

import pytest
import torch

from qgoft.ops import givens

WIDTHS = (2, 3, 5, 8, 12, 17)


def butterfly_pairs(d):
    for level in range(math.ceil(math.log2(d))):
        stride = 2**level
        yield from ((i, i + stride) for i in range(d - stride) if not i & stride)


def sequential_pairs(d):
    yield from ((i, i + 1) for i in range(d - 1))


PAIRS = {"butterfly": butterfly_pairs, "sequential": sequential_pairs}


def random_blocks(count, seed=0):
    return torch.eye(2, dtype=torch.float64) + 0.5 * torch.randn(
        count, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def defined(blocks, d, pairing):
    rows = list(torch.eye(d, dtype=torch.float64))
    for block, (i, j) in zip(blocks, PAIRS[pairing](d), strict=True):
        rows[i], rows[j] = block[0, 0] * rows[i] + block[0, 1] * rows[j], block[1, 0] * rows[i] + block[1, 1] * rows[j]
    return torch.stack(rows)


@pytest.mark.parametrize("pairing", PAIRS)
@pytest.mark.parametrize("d", WIDTHS)
def test_ordering_equals_definition(d, pairing):
    count = givens.count_pairs(d, pairing)
    assert count == len(list(PAIRS[pairing](d)))
    blocks = random_blocks(count).requires_grad_()
    found, expected = givens.pairing_matrix(blocks, d, pairing), defined(blocks, d, pairing)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = random_blocks(d * d, 1).flatten()[: d * d].view(d, d)
    (ours,) = torch.autograd.grad((found * weights).sum(), blocks, retain_graph=True)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), blocks)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pairing", PAIRS)
@pytest.mark.parametrize("d", WIDTHS)
def test_ordering_rotations_are_orthogonal(d, pairing):
    count = givens.count_pairs(d, pairing)
    turned = givens.pairing_matrix(givens.rotation_blocks(torch.randn(count, dtype=torch.float64)), d, pairing)
    eye = torch.eye(d, dtype=torch.float64)
    torch.testing.assert_close(turned.T @ turned, eye, rtol=0, atol=1e-12)
    assert torch.equal(givens.pairing_matrix(givens.identity_blocks(count), d, pairing), torch.eye(d))


def test_ordering_counts():
    assert [givens.count_pairs(8, pairing) for pairing in givens.PAIRINGS] == [7, 12, 7]
    assert givens.count_pairs(768, "butterfly") == len(list(butterfly_pairs(768)))


def test_butterfly_connects_all_coordinates():
    """Every entry of the butterfly's product is non-zero; the tree's d-1 blocks leave most of a row at zero."""
    turned = givens.pairing_matrix(random_blocks(12), 8, "butterfly")
    assert (turned.abs() > 1e-9).all()
    assert (givens.reference_matrix(random_blocks(7), 8).abs() > 1e-9).float().mean() < 0.7


def test_ordering_invalid_arguments():
    with pytest.raises(ValueError, match=r"needs \[12, 2, 2\]"):
        givens.pairing_matrix(random_blocks(7), 8, "butterfly")
    with pytest.raises(ValueError, match="allowed here are butterfly, sequential"):
        givens.pairing_matrix(random_blocks(7), 8, "tree")
