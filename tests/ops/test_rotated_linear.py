"""The fused rotation and frozen layer, and every backend of the operator, against the definition."""

import pytest
import torch

from qgoft.ops import givens
from qgoft.ops.givens import factors
from qgoft.ops.givens import rotate as tree
from tests.ops.test_givens import random_blocks, random_rows

# Backends that compute in the precision of the rows; the kernels compute in float32 and have their own tests.
EXACT_PATHS = ("trees", "graph")
SHAPES = [(3, 2, 5), (40, 7, 3), (300, 96, 40), (5, 33, 40), (64, 96, 64), (7, 100, 130), (3, 1021, 8)]


def expected_output(x, blocks, weight, bias):
    return (x @ givens.reference_matrix(blocks, x.shape[-1])) @ weight.T + bias


@pytest.mark.parametrize("backend", EXACT_PATHS)
@pytest.mark.parametrize(("rows", "d", "outputs"), SHAPES)
def test_rotated_linear_equals_reference(rows, d, outputs, backend):
    """More rows than outputs and fewer: both sides on which the rotation may be computed."""
    blocks, x = random_blocks(d).requires_grad_(), random_rows(rows, d).requires_grad_()
    weight, bias, cotangent = random_rows(outputs, d, seed=4), random_rows(outputs, seed=5), random_rows(rows, outputs, seed=6)
    expected = expected_output(x, blocks, weight, bias)
    expected_grads = torch.autograd.grad(expected, (x, blocks), cotangent)
    with givens.force_backend(backend):
        h = givens.rotated_linear(x, givens.build_factors(blocks, d), weight, bias)
        grads = torch.autograd.grad(h, (x, blocks), cotangent)
    assert (h - expected).abs().max() < 1e-12 * max(1.0, expected.abs().max().item())
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert (ours - theirs).abs().max() < 1e-12 * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("backend", EXACT_PATHS)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("d", [2, 7, 96, 100, 1021])
def test_mix_pairs_every_backend(d, transpose, backend):
    blocks, x, cotangent = random_blocks(d).requires_grad_(), random_rows(5, d).requires_grad_(), random_rows(5, d, seed=2)
    dense = givens.reference_matrix(blocks, d)
    expected = x @ (dense if transpose else dense.T)
    expected_grads = torch.autograd.grad(expected, (x, blocks), cotangent)
    with givens.force_backend(backend):
        y = givens.mix_pairs(x, blocks, transpose=transpose)
        grads = torch.autograd.grad(y, (x, blocks), cotangent)
    for ours, theirs in zip((y, *grads), (expected, *expected_grads), strict=True):
        assert (ours - theirs).abs().max() < 1e-12 * max(1.0, theirs.abs().max().item())


def test_force_backend_unknown_name():
    with pytest.raises(ValueError, match="allowed are native, trees"), givens.force_backend("fast"):
        pass


@pytest.mark.parametrize("d", [100, 768])
@pytest.mark.parametrize("transpose", [False, True])
def test_result_independent_of_chunks(d, transpose, monkeypatch):
    results = []
    for piece in (1, 2**30):
        monkeypatch.setattr(tree, "CHUNK_ELEMENTS", piece)
        blocks, x = random_blocks(d).requires_grad_(), random_rows(150, d).requires_grad_()
        y = givens.mix_pairs(x, blocks, transpose=transpose)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, blocks))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("d", [2, 7, 64, 100, 1021])
def test_factors_of_many_layers_equal_single(d, layers):
    stacked = torch.stack([random_blocks(d, seed=seed) for seed in range(layers)]).requires_grad_()
    together, tape = factors.build_forward(stacked.detach(), d)
    cotangent = factors.Factors(tuple(torch.randn_like(stage) for stage in together.stages))
    grad = factors.build_backward(tape, cotangent)
    for index in range(layers):
        blocks = stacked[index].detach().requires_grad_()
        with givens.force_backend("graph"):
            alone = givens.build_factors(blocks, d)
        for stage, all_of_it in zip(alone.stages, together.stages, strict=True):
            assert torch.equal(stage, all_of_it[index])
        total = sum((stage * c[index]).sum() for stage, c in zip(alone.stages, cotangent.stages, strict=True))
        (expected,) = torch.autograd.grad(total, blocks)
        torch.testing.assert_close(grad[index], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rows", "outputs"), [(50, 20), (20, 50)])
def test_rotated_linear_views_and_shapes(rows, outputs):
    d, blocks = 33, random_blocks(33)
    stored = random_rows(d, outputs)
    x = random_rows(2, rows, d)
    h = givens.rotated_linear(x, givens.build_factors(blocks, d), stored.T)
    torch.testing.assert_close(h, expected_output(x, blocks, stored.T, 0), rtol=1e-12, atol=1e-11)
    empty = givens.rotated_linear(x[:0], givens.build_factors(blocks, d), stored.T)
    assert empty.shape == (0, rows, outputs)


@pytest.mark.parametrize(("rows", "outputs"), [(600, 96), (96, 600)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_rotated_linear_precision(rows, outputs, dtype, tolerance):
    d = 96
    blocks = random_blocks(d, rotations=True, dtype=torch.float32).requires_grad_()
    x, weight, cotangent = (random_rows(*s, dtype=dtype, seed=i) for i, s in enumerate([(rows, d), (outputs, d), (rows, outputs)]))
    x.requires_grad_()
    h = givens.rotated_linear(x, givens.build_factors(blocks, d), weight)
    grads = torch.autograd.grad(h, (x, blocks), cotangent)
    exact_x, exact_blocks = x.detach().double().requires_grad_(), blocks.detach().double().requires_grad_()
    exact = expected_output(exact_x, exact_blocks, weight.double(), 0)
    exact_grads = torch.autograd.grad(exact, (exact_x, exact_blocks), cotangent.double())
    for ours, theirs in zip((h, *grads), (exact, *exact_grads), strict=True):
        assert (ours.double() - theirs).norm() / theirs.norm() < tolerance


def test_rotated_linear_saves_only_its_input():
    x, blocks, weight = (
        torch.randn(512, 96, requires_grad=True),
        random_blocks(96, dtype=torch.float32).requires_grad_(),
        torch.randn(64, 96),
    )
    built = givens.build_factors(blocks, 96)
    known = {t.data_ptr() for t in (x, weight, *built.stages)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        givens.rotated_linear(x, built, weight)
    assert saved
    assert {t.data_ptr() for t in saved} <= known


def test_rotated_linear_trainable_weight():
    built = givens.build_factors(random_blocks(6), 6)
    with pytest.raises(ValueError, match="freeze both"):
        givens.rotated_linear(torch.zeros(2, 6), built, torch.zeros(3, 6, requires_grad=True))
