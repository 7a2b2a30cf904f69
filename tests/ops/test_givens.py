"""The operator against its definition, at random parameters: values, both gradients, and its properties."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qgoft.ops import givens
from qgoft.ops.givens import factors

WIDTHS = [2, 3, 7, 64, 96, 100, 768, 1021, 3072, 4096]
SMALL = [2, 3, 7, 33, 64, 96, 100]


def random_blocks(d, *, rotations=False, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + d)
    if rotations:
        return givens.rotation_blocks(torch.randn(d - 1, generator=generator, dtype=torch.float64) * 2).to(dtype)
    return torch.randn(d - 1, 2, 2, generator=generator, dtype=torch.float64).mul(0.6).to(dtype)


def random_rows(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("d", WIDTHS)
def test_pairs_are_d_minus_1_in_order(d):
    listed = list(givens.pairs(d))
    assert len(listed) == d - 1
    assert listed == sorted(listed)
    for level, i, j in listed:
        assert j - i == 2 ** (level - 1)
        assert i % (2**level) == 0
        assert j < d
    assert len({j for _, _, j in listed}) == d - 1, "every coordinate but 0 is finished exactly once"


def test_reference_is_product_of_embedded_blocks():
    """A second, independent implementation of the definition: d x d matrices multiplied level by level."""
    d = 11
    blocks = random_blocks(d)
    product = torch.eye(d, dtype=torch.float64)
    for block, (_, i, j) in zip(blocks, givens.pairs(d), strict=True):
        step = torch.eye(d, dtype=torch.float64)
        step[i, i], step[i, j], step[j, i], step[j, j] = block.flatten()
        product = step @ product
    torch.testing.assert_close(givens.reference_matrix(blocks, d), product, rtol=0, atol=1e-14)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("d", WIDTHS)
def test_mix_pairs_equals_reference(d, transpose):
    blocks = random_blocks(d).requires_grad_()
    x, cotangent = random_rows(5, d).requires_grad_(), random_rows(5, d, seed=2)
    dense = givens.reference_matrix(blocks, d)
    expected = x @ (dense if transpose else dense.T)
    expected_grads = torch.autograd.grad(expected, (x, blocks), cotangent)
    y = givens.mix_pairs(x, blocks, transpose=transpose)
    grads = torch.autograd.grad(y, (x, blocks), cotangent)
    scale = expected.abs().max().item()
    assert (y - expected).abs().max() < 1e-13 * max(1.0, scale)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert (ours - theirs).abs().max() < 1e-12 * max(1.0, theirs.abs().max().item())


def by_levels(x, blocks):
    """The definition on vectors, one level at a time, for widths whose dense matrix would not fit in memory."""
    y, used, stride = x.clone(), 0, 1
    while stride < x.shape[-1]:
        i = torch.arange(0, x.shape[-1] - stride, 2 * stride)
        part = blocks[used : used + len(i)]
        first, second = y[..., i], y[..., i + stride]
        y[..., i] = part[:, 0, 0] * first + part[:, 0, 1] * second
        y[..., i + stride] = part[:, 1, 0] * first + part[:, 1, 1] * second
        used, stride = used + len(i), 2 * stride
    return y


@pytest.mark.parametrize("d", [2, 3, 5, 17, 255, 257, 1023, 1025, 4099, 8192, 11008, 14336, 16381, 16384])
def test_mix_pairs_all_widths(d):
    blocks, x = random_blocks(d).requires_grad_(), random_rows(3, d).requires_grad_()
    expected = by_levels(x.detach(), blocks.detach())
    y = givens.mix_pairs(x, blocks)
    assert (y - expected).abs().max() < 1e-12 * max(1.0, expected.abs().max().item())
    # Gradients: that of x is R^T g by the transposed product, that of the blocks agrees with a central difference along a random direction.
    g = random_rows(3, d, seed=2)
    grad_x, grad_blocks = torch.autograd.grad(y, (x, blocks), g)
    torch.testing.assert_close(givens.mix_pairs(g, blocks, transpose=True), grad_x, rtol=1e-11, atol=1e-11)
    step = random_blocks(d, seed=5) * 1e-6
    moved = (by_levels(x.detach(), blocks.detach() + step) - by_levels(x.detach(), blocks.detach() - step)) * g / 2
    assert moved.sum().item() == pytest.approx((grad_blocks * step).sum().item(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("d", WIDTHS)
def test_mix_pairs_lower_precision(d, dtype, tolerance):
    blocks = random_blocks(d, rotations=True, dtype=torch.float32)
    x = random_rows(9, d, dtype=dtype)
    y = givens.mix_pairs(x, blocks)
    expected = x.double() @ givens.reference_matrix(blocks, d).T
    assert y.dtype == dtype
    assert (y.double() - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("d", SMALL)
def test_mix_pairs_gradcheck(d):
    blocks, x = random_blocks(d).requires_grad_(), random_rows(2, 3, d).requires_grad_()
    for transpose in (False, True):
        assert torch.autograd.gradcheck(lambda a, b, t=transpose: givens.mix_pairs(a, b, transpose=t), (x, blocks), fast_mode=d > 33)


@pytest.mark.parametrize("d", WIDTHS)
def test_mix_pairs_rotations_are_orthogonal(d):
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        matrix = givens.mix_pairs(torch.eye(d, dtype=dtype), random_blocks(d, rotations=True, dtype=dtype))
        assert (matrix @ matrix.T - torch.eye(d, dtype=dtype)).abs().max() < bound


@pytest.mark.parametrize("d", WIDTHS)
def test_transpose_inverts_rotations(d):
    blocks, x = random_blocks(d, rotations=True), random_rows(4, d)
    y = givens.mix_pairs(x, blocks)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)
    torch.testing.assert_close(givens.mix_pairs(y, blocks, transpose=True), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("d", WIDTHS)
def test_inverse_blocks_invert_free_blocks(d):
    blocks = givens.identity_blocks(d - 1, dtype=torch.float64) + 0.2 * random_blocks(d)
    x = random_rows(4, d)
    y = givens.mix_pairs(givens.mix_pairs(x, blocks), givens.inverse_blocks(blocks), transpose=True)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-9)


def test_inverse_blocks_singular():
    blocks = givens.identity_blocks(6)
    blocks[3] = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    with pytest.raises(ValueError, match="singular"):
        givens.inverse_blocks(blocks)


@pytest.mark.parametrize("d", WIDTHS)
def test_mix_pairs_identity(d):
    x = random_rows(3, d)
    assert torch.equal(givens.mix_pairs(x, givens.identity_blocks(d - 1, dtype=torch.float64)), x)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (0, 7), (2, 3, 7), (2, 0, 7), (2, 1, 3, 7)])
def test_mix_pairs_leading_shapes(shape):
    blocks, x = random_blocks(7), random_rows(*shape)
    y = givens.mix_pairs(x, blocks)
    assert y.shape == x.shape
    torch.testing.assert_close(y, x @ givens.reference_matrix(blocks, 7).T, rtol=0, atol=1e-13)


def test_mix_pairs_non_contiguous():
    d, blocks = 100, random_blocks(100)
    x = random_rows(d, 6).T.requires_grad_()
    y = givens.mix_pairs(x, blocks)
    dense = givens.reference_matrix(blocks, d)
    torch.testing.assert_close(y, x @ dense.T, rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(y, x, torch.ones(d, 6, dtype=torch.float64).T)
    torch.testing.assert_close(grad, torch.ones(6, d, dtype=torch.float64) @ dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("transpose", [False, True])
def test_mix_pairs_does_not_modify_inputs(transpose):
    x, blocks = random_rows(4, 96).requires_grad_(), random_blocks(96).requires_grad_()
    before = x.detach().clone()
    y = givens.mix_pairs(x, blocks, transpose=transpose)
    cotangent = random_rows(4, 96, seed=3)
    kept = cotangent.clone()
    y.backward(cotangent)
    assert torch.equal(x.detach(), before)
    assert torch.equal(cotangent, kept)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("d", [96, 100, 768, 3072])
def test_mix_pairs_saves_only_its_input(d, transpose):
    rows = 512
    x, blocks = random_rows(rows, d, dtype=torch.float32).requires_grad_(), random_blocks(d, dtype=torch.float32).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        givens.mix_pairs(x, blocks, transpose=transpose)
    assert {t.data_ptr() for t in saved if t.numel() >= rows} >= {x.data_ptr()}
    others = {t.data_ptr(): t.numel() for t in saved if t.data_ptr() != x.data_ptr()}
    assert sum(others.values()) <= sum(2 * count * width**2 for width, count in factors.stage_sizes(d))


def test_mix_pairs_uninitialised_memory(monkeypatch):
    """Outputs are written completely: newly allocated memory is filled with NaN, and none may remain."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        x, blocks = random_rows(3, 100).requires_grad_(), random_blocks(100).requires_grad_()
        y = givens.mix_pairs(x, blocks)
        y.sum().backward()
        assert all(t.isfinite().all() for t in (y, x.grad, blocks.grad))
    finally:
        torch.use_deterministic_algorithms(False)


def test_mix_pairs_under_autocast():
    x, blocks = random_rows(8, 96, dtype=torch.float32), random_blocks(96, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = givens.mix_pairs(x, blocks)
    assert torch.equal(y, givens.mix_pairs(x, blocks))


def test_mix_pairs_on_the_meta_device():
    """On the meta device and under fake tensors, as in memory estimators; they must not affect later real calls."""
    for linear in (False, True):
        x, blocks = torch.empty(3, 70, device="meta", requires_grad=True), torch.empty(69, 2, 2, device="meta", requires_grad=True)
        if linear:
            y = givens.rotated_linear(x, givens.build_factors(blocks, 70), torch.empty(5, 70, device="meta"), None)
        else:
            y = givens.mix_pairs(x, blocks)
        y.sum().backward()
        assert (x.grad.shape, blocks.grad.shape) == (x.shape, blocks.shape)
    with FakeTensorMode():
        assert givens.mix_pairs(torch.randn(3, 77), torch.randn(76, 2, 2)).shape == (3, 77)
    x, blocks = random_rows(3, 77, dtype=torch.float64), random_blocks(77, dtype=torch.float64)
    torch.testing.assert_close(givens.mix_pairs(x, blocks), x @ givens.reference_matrix(blocks, 77).T)


@pytest.mark.parametrize(("width", "shape"), [(7, (7, 2, 2)), (8, (6, 2, 2)), (8, (7, 4))])
def test_mix_pairs_invalid_blocks(width, shape):
    with pytest.raises(ValueError, match="blocks have shape"):
        givens.mix_pairs(torch.zeros(width), torch.zeros(shape))


def test_mix_pairs_width_1():
    with pytest.raises(ValueError, match="d >= 2"):
        givens.mix_pairs(torch.zeros(3, 1), torch.zeros(0, 2, 2))


@pytest.mark.parametrize("d", [2, 6, 64, 96, 100, 768])
def test_release_follows_its_index_rule(d):
    blocks, x = random_blocks(d).requires_grad_(), random_rows(3, 2, d).requires_grad_()
    dense = givens.released_reference_matrix(blocks.detach(), d)
    y = givens.mix_neighbours(x, blocks)
    assert (y - x @ dense.T).abs().max() < 1e-12 * max(1.0, y.abs().max().item())
    if d <= 64:
        assert torch.autograd.gradcheck(givens.mix_neighbours, (x, blocks), fast_mode=True)


def test_release_is_not_orthogonal():
    """|R R^T - I| of the release at d = 768 with unit-normal angles is above 1; this project's is at rounding error."""
    theta = torch.randn(767, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = givens.rotation_blocks(theta)
    released = givens.released_reference_matrix(blocks, 768)
    ours = givens.reference_matrix(blocks, 768)
    eye = torch.eye(768, dtype=torch.float64)
    assert (released @ released.T - eye).abs().max() > 1
    assert (ours @ ours.T - eye).abs().max() < 1e-13


def test_release_refuses_odd_widths():
    with pytest.raises(ValueError, match="even width"):
        givens.mix_neighbours(torch.zeros(7), torch.zeros(6, 2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inverse_blocks_half_precision(dtype):
    """LU does not support half precision on a CPU."""
    blocks = (givens.identity_blocks(11) + 0.2 * random_blocks(12).float()).to(dtype)
    inverse = givens.inverse_blocks(blocks)
    assert inverse.dtype == torch.float32
    assert (inverse.transpose(1, 2) @ blocks.float() - torch.eye(2)).abs().max() < 1e-5
