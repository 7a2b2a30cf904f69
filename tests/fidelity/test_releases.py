"""GOFT, GOFT* and qGOFT against the formulas of the authors' two releases, written here independently of the package.

First release (peft-givens 0fe813e): R = P_L ... P_1 diag(v); the layer computes F.linear(F.linear(x, R^T), W, b), so that features see R^T x,
and merges W R^T. Second release (e6f03ec): see `second_release`.
"""

import json
import math

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qgoft.ops import givens
from qgoft.tuners.goft.convert import convert_directory

pytestmark = pytest.mark.fidelity
WIDTHS = [7, 8, 12, 13, 16, 96, 100, 768]
SWITCHES = {"goft": (True, True), "goft_star": (True, False), "qgoft": (False, False)}
LAYER = "base_model.model.0"


def released_state(variant, d):
    """Random parameters under the names of both releases, as leaves that require gradients."""
    generator = torch.Generator().manual_seed(d)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if variant == "qgoft":
        state = {"givens_soft": torch.eye(2, dtype=torch.float64) + 0.3 * draw(d - 1, 2, 2)}
    else:
        state = {"givens_hard": 0.4 * draw(d - 1)}
    if variant == "goft_star":
        state["givens_scaler"] = 1 + 0.3 * draw(d)
    return {name: tensor.requires_grad_() for name, tensor in state.items()}


def released_blocks(state):
    if "givens_soft" in state:
        return state["givens_soft"]
    angle = math.pi * torch.tanh(state["givens_hard"])
    return torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).unflatten(-1, (2, 2))


def first_release(state, d):
    """R = P_L ... P_1 diag(v), level by level: the pairs of a level are (i, i + stride), a leftover coordinate passes to the next level."""
    blocks, matrix = released_blocks(state), torch.diag(state["givens_scaler"]) if "givens_scaler" in state else torch.eye(d)
    matrix, used, stride, count = matrix.double(), 0, 1, d
    while count > 1:
        pairs, first = count // 2, torch.arange(count // 2) * 2 * stride
        level, own = torch.eye(d, dtype=torch.float64), blocks[used : used + pairs]
        for row in (0, 1):
            for column in (0, 1):
                level = level.index_put((first + row * stride, first + column * stride), own[:, row, column])
        matrix, used = level @ matrix, used + pairs
        stride, count = 2 * stride, pairs + count % 2
    assert used == d - 1
    return matrix


def second_release(x, state, d):
    """Level by level from the largest stride: x * c + rotate_half(x) * s, rotate_half(x)[2k] = -x[2k+1], rotate_half(x)[2k+1] = x[2k]."""
    blocks, levels, used, stride, count = released_blocks(state), [], 0, 1, d
    while count > 1:
        pairs, first = count // 2, torch.arange(count // 2) * 2 * stride
        own = blocks[used : used + pairs]
        c, s = torch.ones(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        levels.append(
            (
                c.index_put((first,), own[:, 0, 0]).index_put((first + stride,), own[:, 1, 1]),
                s.index_put((first,), -own[:, 0, 1]).index_put((first + stride,), own[:, 1, 0]),
            )
        )
        used, stride, count = used + pairs, 2 * stride, pairs + count % 2
    for c, s in reversed(levels):
        half = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        x = x * c + half * s
    return x


def write_released(directory, state, variant):
    directory.mkdir()
    strict, plain = SWITCHES[variant]
    config = {"peft_type": "GIVENS", "strict_oft": strict, "no_scaling": plain, "target_modules": ["0"], "base_model_name_or_path": "toy"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file({f"{LAYER}.{name}": tensor.detach().float() for name, tensor in state.items()}, directory / "adapter_model.safetensors")


def load_converted(tmp_path, state, variant, d, release, dtype=torch.float32):
    """The adapter through both files, on a frozen linear layer; also the layer's weight and bias."""
    write_released(tmp_path / "theirs", state, variant)
    convert_directory(tmp_path / "theirs", tmp_path / "ours", release)
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(d, 24)).to(dtype)
    weight, bias = base[0].weight.detach().double(), base[0].bias.detach().double()
    return peft.PeftModel.from_pretrained(base, tmp_path / "ours", is_trainable=True), weight, bias


def assert_close(ours, theirs, bound=1e-6):
    assert (ours.double() - theirs).norm() <= bound * theirs.norm()


@pytest.mark.parametrize("rows", [5, 60], ids=["rotate_x", "rotate_weight"])
@pytest.mark.parametrize("variant", list(SWITCHES))
@pytest.mark.parametrize("d", WIDTHS)
def test_first_release_forward_gradients_merge(d, variant, rows, tmp_path):
    state = {name: tensor.detach().float().double().requires_grad_() for name, tensor in released_state(variant, d).items()}
    model, weight, bias = load_converted(tmp_path, state, variant, d, "first")
    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(2))
    cotangent = torch.randn(rows, 24, generator=torch.Generator().manual_seed(3))
    matrix = first_release(state, d)
    exact_x = x.double().requires_grad_()
    expected = nn.functional.linear(nn.functional.linear(exact_x, matrix.T), weight, bias)
    expected_grads = torch.autograd.grad(expected, (exact_x, *state.values()), cotangent.double())

    layer, ours_x = model.base_model.model[0], x.clone().requires_grad_()
    stores = {"givens_hard": layer.goft_theta, "givens_soft": layer.goft_blocks, "givens_scaler": layer.goft_scale}
    output = model(ours_x)
    grads = torch.autograd.grad(output, (ours_x, *(stores[name]["default"] for name in state)), cotangent)
    for ours, theirs in zip((output, *grads), (expected, *expected_grads), strict=True):
        assert_close(ours, theirs.detach())

    model.merge_adapter()
    assert_close(layer.base_layer.weight.detach(), (weight @ matrix.T).detach())


@pytest.mark.parametrize("variant", ["goft", "qgoft"])
@pytest.mark.parametrize("d", [8, 12, 16, 96, 100, 768])
def test_second_release_forward(d, variant, tmp_path):
    state = {name: tensor.detach().float().double() for name, tensor in released_state(variant, d).items()}
    model, weight, bias = load_converted(tmp_path, state, variant, d, "second")
    x = torch.randn(9, d, generator=torch.Generator().manual_seed(2))
    assert_close(model(x).detach(), nn.functional.linear(second_release(x.double(), state, d), weight, bias))


@pytest.mark.parametrize("d", [12, 96])
def test_releases_differ_on_one_adapter(d, tmp_path):
    """The release must be named, since one file has two products."""
    state, outputs = released_state("qgoft", d), []
    for release in ("first", "second"):
        (tmp_path / release).mkdir()
        model, _, _ = load_converted(tmp_path / release, state, "qgoft", d, release)
        outputs.append(model(torch.ones(1, d)).detach())
    assert (outputs[0] - outputs[1]).norm() > 0.05 * outputs[0].norm()


@pytest.mark.parametrize("variant", list(SWITCHES))
def test_goft_rotates_rows_of_the_weight(variant, tmp_path):
    """h = (R W^T)^T x in the paper, with R on the rows of W: not W (R x)."""
    d, state = 13, released_state(variant, 13)
    model, weight, bias = load_converted(tmp_path, state, variant, d, "first")
    matrix, x = first_release(state, d).detach(), torch.randn(4, d)
    paper = ((matrix @ weight.T).T @ x.double().T).T + bias
    assert_close(model(x).detach(), paper)
    assert (weight @ matrix @ x.double().T - (paper - bias).T).norm() > 0.1 * paper.norm()


def test_mix_pairs_equals_product_of_levels():
    d, state = 100, released_state("qgoft", 100)
    matrix, x = first_release(state, d).detach(), torch.randn(3, d, dtype=torch.float64)
    assert_close(givens.mix_pairs(x, state["givens_soft"]).detach(), x @ matrix.T, 1e-12)
    assert_close(givens.mix_pairs(x, state["givens_soft"], transpose=True).detach(), x @ matrix, 1e-12)
