"""At random parameters: orthogonal methods are exact, nearly orthogonal ones have a measured error, and methods without rotation have none."""

import json

import pytest
import torch
from torch import nn

from qgoft.config.compose import compose_settings
from qgoft.methods.orthogonality import orthogonality_error, transformations
from qgoft.methods.registry import REGISTRY
from qgoft.train.run import run
from tests.methods.test_methods import build

EXACT = {"goft", "oft", "oft_paper", "boft", "hra"}
FREE = {"goft_star", "qgoft", "goft_v2", "qgoft_v2", "oft_v2", "psoft"}  # nearly, or not at all


def moved(method, scale=0.1):
    _, adapted = build(method)
    torch.manual_seed(1)
    for name, parameter in adapted.model.named_parameters():
        if parameter.requires_grad and name not in adapted.head_names:
            parameter.data.add_(scale * torch.randn_like(parameter))
    return adapted.model


@pytest.mark.parametrize("method", sorted(EXACT))
def test_orthogonal_methods_at_random_parameters(method):
    assert orthogonality_error(moved(method, 0.5)) < 2e-5


@pytest.mark.parametrize("method", sorted(FREE))
def test_other_methods_have_an_error(method):
    _, adapted = build(method)
    assert orthogonality_error(adapted.model) < 1e-6
    assert orthogonality_error(moved(method)) > 1e-4


@pytest.mark.parametrize("method", sorted(set(REGISTRY) - EXACT - FREE - {"base"}))
def test_no_error_without_rotation(method):
    assert orthogonality_error(build(method)[1].model) is None


def test_neumann_error_grows_with_the_angle():
    errors = [orthogonality_error(moved("oft_v2", scale)) for scale in (0.01, 0.03, 0.1)]
    assert errors[0] < 1e-3
    assert errors == sorted(errors)


def test_psoft_without_scales_is_nearly_orthogonal():
    model = moved("psoft", 0.01)
    for module in model.modules():
        if hasattr(module, "psoft_R"):
            rotation = module.psoft_R["default"]
            nn.init.ones_(rotation.vector_a)
            nn.init.ones_(rotation.vector_b)
    assert orthogonality_error(model) < 1e-3
    assert len(list(transformations(model))) == 18


def test_run_stores_its_trace(tmp_path):
    for method, is_there in (("goft", True), ("lora", False)):
        words = [
            f"method={method}",
            "task=glue/rte",
            "train.max_steps=6",
            "train.num_evals=3",
            f"results.root={tmp_path}",
            "selection=last",
        ]
        record = run(compose_settings(words))
        lines = [json.loads(line) for line in (tmp_path / "runs" / record["key"] / "history.jsonl").read_text().splitlines()]
        trace = [(line["step"], line["orthogonality"]) for line in lines if "orthogonality" in line]
        assert [step for step, _ in trace] == ([2, 4, 6] if is_there else [])
        assert all(0 <= error < 1e-5 for _, error in trace)
        assert (record["orthogonality"]["max_error"] is not None) == is_there
