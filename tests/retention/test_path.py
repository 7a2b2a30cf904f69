"""The path from the pretrained to the tuned backbone: exact at both ends, and orthogonal between them for rotations."""

import math

import pytest
import torch

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.methods import merged_for_eval
from qgoft.models import load_classifier
from qgoft.pocket.weights import weights_directory
from qgoft.retention.path import BottleneckPath, build_path, rotation_power
from tests.methods.test_merging import move
from tests.methods.test_methods import METHODS, build, ids

ROTATIONS = ["goft", "oft", "oft_paper", "boft", "hra"]


def pretrained():
    torch.manual_seed(0)
    return load_classifier(compose_settings(["task=glue/rte"]), weights_directory("pocket-deberta")).eval()


def tuned(method, *words, only=""):
    """Return a model away from its start, and its path.

    Args:
        only: part of the names of the parameters that move; empty for all.
    """
    _, adapted = build(method, *words)
    before = {name: parameter.clone() for name, parameter in adapted.model.named_parameters()}
    move(adapted)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if only not in name:
                parameter.copy_(before[name])
    adapted.model.eval()
    return adapted, build_path(pretrained(), adapted)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_path(method):
    """At t = 0 the backbone is the pretrained one bit for bit, at t = 1 the outputs are those of the merged model, and at t = 0.5 they are
    between; the head stays, and the tuned model is unchanged.
    """
    adapted, path = tuned(method)
    before = adapted.model(input_ids=ids()).logits
    with merged_for_eval(adapted):
        merged = adapted.model(input_ids=ids()).logits
    outputs, heads = [], []
    for t in (0.0, 0.5, 1.0):
        with path.at(t) as model:
            if t == 0:
                states = pretrained().base_model(input_ids=ids()).last_hidden_state
                assert torch.equal(model.base_model(input_ids=ids()).last_hidden_state, states)
            outputs.append(model(input_ids=ids()).logits)
            heads.append(model.classifier.weight.clone())
    assert torch.equal(outputs[2], merged)
    assert torch.equal(heads[0], heads[2])
    assert torch.equal(adapted.model(input_ids=ids()).logits, before)
    if method == "linear":
        assert torch.equal(outputs[0], outputs[2])
        return
    change = (outputs[2] - outputs[0]).norm()
    for end in (outputs[0], outputs[2]):
        assert 0 < (outputs[1] - end).norm() < 1.5 * change


@torch.no_grad()
@pytest.mark.parametrize("method", ROTATIONS)
def test_rotations_are_orthogonal_between_the_ends(method):
    """W(t) W(t)^T = W W^T: the rows are rotated together at t = 0.5, and have moved about half the way."""
    _, path = tuned(method, only="boft_R" if method == "boft" else "")
    assert path.kind != "linear"
    with path.at(0.5) as model:
        for name, layer in path.layers.items():
            half, start, end = layer.weight.double(), path.start[f"{name}.weight"].double(), path.end[f"{name}.weight"].double()
            torch.testing.assert_close(half @ half.T, start @ start.T, rtol=0, atol=2e-6 * start.norm() ** 2)
            assert 0.4 < (half - start).norm() / (end - start).norm() < 0.6
        assert model is path.model


@torch.no_grad()
def test_linear_path_is_linear():
    _, path = tuned("lora")
    with path.at(0.25):
        for name in path.start:
            expected = path.start[name] + 0.25 * (path.end[name] - path.start[name])
            torch.testing.assert_close(dict(path.model.named_parameters())[name], expected)


@torch.no_grad()
def test_goft_path_has_half_the_angles():
    adapted, path = tuned("goft")
    for module in adapted.model.modules():
        if hasattr(module, "goft_theta"):
            theta = module.goft_theta["default"]
            theta.copy_(torch.atanh(0.5 * torch.tanh(theta)))
    halved = build_path(pretrained(), adapted)
    with path.at(1.0):
        expected = {name: weight.clone() for name, weight in halved.end.items()}
    fresh, other = tuned("goft")
    with other.at(0.5):
        for name, weight in expected.items():
            torch.testing.assert_close(dict(other.model.named_parameters())[name], weight, rtol=0, atol=1e-6)
    assert fresh.trainable > 0


def test_bottleneck_adapters_are_scaled():
    adapted, path = tuned("h_adapter")
    assert isinstance(path, BottleneckPath)
    assert not path.layers
    assert adapted.trainable > 0


@torch.no_grad()
def test_rotation_power():
    torch.manual_seed(0)
    u = torch.randn(12, 4, dtype=torch.float64)
    matrix = torch.eye(12, dtype=torch.float64)
    for column in u.T:
        unit = column / column.norm()
        matrix = matrix @ (torch.eye(12, dtype=torch.float64) - 2 * torch.outer(unit, unit))
    half = rotation_power(matrix, u, 0.5, "layer")
    torch.testing.assert_close(half @ half, matrix)
    torch.testing.assert_close(half @ half.T, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(rotation_power(matrix, u, 1.0, "layer"), matrix)


def test_reflection_cannot_be_rewound():
    u = torch.zeros(4, 1, dtype=torch.float64)
    u[0] = 1
    reflection = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    with pytest.raises(QgoftError, match=r"eigenvalue -1.*retention.steps=0,1"):
        rotation_power(reflection, u, 0.5, "query")


def test_method_that_cannot_be_merged_is_named():
    _, adapted = build("lily")
    with pytest.raises(QgoftError, match=r"LILY cannot be merged.*cannot be rewound"):
        build_path(pretrained(), adapted)


def test_psoft_scales_are_linear():
    """At a rotation of zero, PSOFT's path is the linear one of its scales."""
    _, path = tuned("psoft", only="vector_a")
    with path.at(0.5):
        for name, layer in path.layers.items():
            middle = (path.start[f"{name}.weight"] + path.end[f"{name}.weight"]) / 2
            torch.testing.assert_close(layer.weight, middle, rtol=0, atol=1e-5 * math.sqrt(middle.numel()))
