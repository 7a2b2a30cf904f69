"""Evaluation with merged weights: the same predictions, and the original weights afterwards."""

from types import SimpleNamespace

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from qgoft import GoftConfig
from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.methods import merge_and_unload, merged_for_eval
from qgoft.models import load_classifier
from qgoft.pocket.weights import weights_directory
from tests.methods.test_methods import METHODS, build, ids


def tuner_layers(adapted):
    return [module for module in adapted.model.modules() if isinstance(module, BaseTunerLayer)]


def move(adapted):
    """Move away from the start, at which merging changes nothing."""
    torch.manual_seed(1)
    for name, parameter in adapted.model.named_parameters():
        if parameter.requires_grad and name not in adapted.head_names:
            parameter.data.add_(0.02 * torch.randn_like(parameter))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_merged_for_eval_restores_weights(method):
    _, adapted = build(method)
    move(adapted)
    adapted.model.eval()
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    plain = adapted.model(ids()).logits
    with merged_for_eval(adapted):
        # Adapters that are not linear in their input cannot be merged and stay unmerged.
        assert all(layer.merged == getattr(layer, "is_mergeable", True) for layer in tuner_layers(adapted))
        inside = adapted.model(ids()).logits
    torch.testing.assert_close(inside, plain, rtol=1e-4, atol=2e-5)
    assert not any(layer.merged for layer in tuner_layers(adapted))
    assert all(torch.equal(value, before[name]) for name, value in adapted.model.state_dict().items())
    assert torch.equal(adapted.model(ids()).logits, plain)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_unload_predicts_the_same(method):
    _, adapted = build(method)
    move(adapted)
    adapted.model.eval()
    expected = adapted.model(ids()).logits
    names = set(load_classifier(compose_settings(["task=glue/rte"]), weights_directory("pocket-deberta")).state_dict())
    if not all(getattr(layer, "is_mergeable", True) for layer in tuner_layers(adapted)):
        with pytest.raises(QgoftError, match="cannot be merged"):
            merge_and_unload(adapted)
        return
    plain = merge_and_unload(adapted)
    assert set(plain.state_dict()) == names
    torch.testing.assert_close(plain(ids()).logits, expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_merged_for_eval_restores_after_error():
    _, adapted = build("qgoft")
    move(adapted)
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="in the middle"), merged_for_eval(adapted):
        raise RuntimeError("in the middle")
    assert not any(layer.merged for layer in tuner_layers(adapted))
    assert all(torch.equal(value, before[name]) for name, value in adapted.model.state_dict().items())


@torch.no_grad()
def test_merged_for_eval_skips_half_precision():
    _, adapted = build("qgoft")
    adapted.model.bfloat16()
    with merged_for_eval(adapted):
        assert not any(layer.merged for layer in tuner_layers(adapted))


def test_evaluation_keeps_shared_weights():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    wrapped = peft.get_peft_model(model, GoftConfig(target_modules=["0"], init_weights=False))
    weight = wrapped.base_model.model[1].weight
    with merged_for_eval(SimpleNamespace(model=wrapped)):
        assert wrapped.base_model.model[0].get_base_layer().weight is not weight
    assert wrapped.base_model.model[0].get_base_layer().weight is weight
