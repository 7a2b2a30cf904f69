"""The GPU kernels: in Triton's interpreter on any machine with triton, and on the device if there is one."""

import os
import re
import subprocess
import sys

import pytest
import torch

from qgoft.ops import givens
from tests.ops.test_givens import random_blocks, random_rows

triton = pytest.importorskip("triton", reason="needs triton, which `make test` adds on Linux; the other paths are tested above")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTHS = [2, 3, 7, 33, 64, 100, 257]


def exact(x, blocks, g, *, transpose=False):
    x, blocks = x.detach().double().requires_grad_(), blocks.detach().double().requires_grad_()
    dense = givens.reference_matrix(blocks, x.shape[-1])
    y = x @ (dense if transpose else dense.T)
    return y, *torch.autograd.grad(y, (x, blocks), g.double())


def assert_near(ours, theirs, bound):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.double() - b).norm() <= bound * max(b.norm().item(), 1e-6)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("d", WIDTHS)
def test_kernels_equal_reference(d, rows, transpose):
    x, blocks = random_rows(rows, d, dtype=torch.float32).to(DEVICE).requires_grad_(), random_blocks(d, dtype=torch.float32).to(DEVICE)
    blocks.requires_grad_()
    g = random_rows(rows, d, dtype=torch.float32, seed=2).to(DEVICE)
    with givens.force_backend("triton"):
        y = givens.mix_pairs(x, blocks, transpose=transpose)
        ours = (y, *torch.autograd.grad(y, (x, blocks), g))
    assert_near(ours, exact(x, blocks, g, transpose=transpose), 2e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_kernels_round_half_precision_once(dtype, bound):
    d = 100
    x, blocks = random_rows(9, d, dtype=dtype).to(DEVICE).requires_grad_(), random_blocks(d, rotations=True, dtype=torch.float32).to(DEVICE)
    blocks.requires_grad_()
    g = random_rows(9, d, dtype=dtype, seed=2).to(DEVICE)
    with givens.force_backend("triton"):
        y = givens.mix_pairs(x, blocks)
        ours = (y, *torch.autograd.grad(y, (x, blocks), g))
    assert (y.dtype, ours[1].dtype, ours[2].dtype) == (dtype, dtype, torch.float32)
    assert_near(ours, exact(x, blocks, g), bound)


@pytest.mark.parametrize(("rows", "outputs"), [(30, 12), (12, 30)])
def test_kernels_with_linear_layer(rows, outputs):
    d = 33
    x, blocks = random_rows(rows, d, dtype=torch.float32).to(DEVICE).requires_grad_(), random_blocks(d, dtype=torch.float32).to(DEVICE)
    blocks.requires_grad_()
    weight, g = random_rows(outputs, d, dtype=torch.float32, seed=3).to(DEVICE), random_rows(rows, outputs, dtype=torch.float32).to(DEVICE)
    with givens.force_backend("triton"):
        h = givens.rotated_linear(x, givens.build_factors(blocks, d), weight)
        ours = (h, *torch.autograd.grad(h, (x, blocks), g))
    exact_x, exact_blocks = x.detach().double().requires_grad_(), blocks.detach().double().requires_grad_()
    theirs = exact_x @ givens.reference_matrix(exact_blocks, d) @ weight.double().T
    assert_near(ours, (theirs, *torch.autograd.grad(theirs, (exact_x, exact_blocks), g.double())), 2e-6)


@pytest.mark.parametrize("variant", ["goft", "goft_star", "qgoft"])
def test_tuner_uses_kernels(variant):
    """GOFT* uses matrix products, since the kernels take blocks without scales; the result is the same."""
    from tests.tuners.test_factor_cache import grads_of, make, rows

    results = []
    for backend in ("trees", "triton"):
        model = make(variant).to(DEVICE)
        with givens.force_backend(backend):
            y = model(rows().to(DEVICE))
            y.square().sum().backward()
        results.append({"y": y.detach(), **grads_of(model)})
    assert len(results[0]) > 6
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-4, atol=1e-5)


def test_kernels_are_deterministic():
    d = 100
    blocks, x, g = random_blocks(d, dtype=torch.float32).to(DEVICE), random_rows(50, d, dtype=torch.float32).to(DEVICE), None
    from qgoft.ops.givens import triton_kernels

    g = random_rows(50, d, dtype=torch.float32, seed=2).to(DEVICE)
    results = [triton_kernels.backward(x, g, blocks, overwrite=False, need_input=True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    empty, _ = triton_kernels.backward(x[:0], g[:0], blocks, overwrite=False, need_input=True)
    assert empty.shape == blocks.shape
    assert not empty.any()
    assert triton_kernels.forward(x[:0], blocks).shape == (0, d)


def test_self_check_detects_an_error(monkeypatch):
    from qgoft.ops.givens import triton_kernels

    assert triton_kernels.self_check(torch.device(DEVICE)) < triton_kernels.TOLERANCE
    monkeypatch.setattr(triton_kernels, "forward", lambda rows, blocks: rows)
    assert triton_kernels.self_check(torch.device(DEVICE)) > triton_kernels.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_without_spills(capability):
    """Ahead of time, without a device: the compiler may refuse code that the interpreter accepts."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "qgoft.bench.gpu_resources", str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()[2:]]
    assert len(lines) == 8
    for name, *values in lines:
        width, _, threads, registers, spills = map(int, values[:5])
        assert spills == 0, f"{name} at width {width} spills {spills} bytes"
        assert registers * threads <= 65536, "of a multiprocessor"
