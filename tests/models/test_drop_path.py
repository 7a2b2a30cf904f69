"""Stochastic depth: disabled in evaluation, correct in the mean, increasing with depth."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.models.drop_path import DropPath, set_drop_path
from qgoft.run_id import identify
from qgoft.tasks.registry import suite_class
from qgoft.train.run import prepare


def vit():
    return ViTForImageClassification(
        ViTConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4)
    )


def test_drop_path_drops_rows_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, branch = DropPath(0.25).train(), torch.ones(20000, 2, 3)
    out = drop(branch)
    assert {round(v, 4) for v in out.unique().tolist()} == {0.0, round(1 / 0.75, 4)}
    assert torch.equal(out[:, :1, :1].expand_as(out), out), "all of an item, or nothing"
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert drop.eval()(branch) is branch


def test_drop_path_rates_increase():
    model = vit()
    set_drop_path(model, 0.1)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.05, 0.1])
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels).logits, model(pixels).logits)
        torch.manual_seed(0)
        assert not torch.equal(model.train()(pixels.repeat(40, 1, 1, 1)).logits, model.eval()(pixels.repeat(40, 1, 1, 1)).logits)


def test_drop_path_unsupported_model():
    model = vit()
    set_drop_path(model, 0.0)
    assert not [module for module in model.modules() if isinstance(module, DropPath)]
    with pytest.raises(QgoftError, match="0 and more, below 1"):
        set_drop_path(model, 1.0)
    bert = BertForSequenceClassification(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    )
    with pytest.raises(QgoftError, match="needs the blocks of a ViT"):
        set_drop_path(bert, 0.1)


@pytest.mark.parametrize(
    ("words", "is_random"),
    [
        (["task=glue/rte"], False),
        (["task=glue/rte", "train.hidden_dropout=0.1"], True),
        (["task=squad/v1", "train.hidden_dropout=0.1"], True),
        (["task=glue/rte", "train.classifier_dropout=0.5"], True),
    ],
)
def test_dropout_settings_have_an_effect(tmp_path, words, is_random):
    settings = compose_settings([f"results.root={tmp_path}", *words])
    model = suite_class(settings).build_model(settings, identify(settings).model.directory).train()
    ids = torch.arange(16).reshape(2, 8)
    with torch.no_grad():
        one, two = (tuple(model(input_ids=ids).values()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)) is not is_random


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=math/gsm8k", "train.hidden_dropout=0.1"], "train.hidden_dropout=0.1: the architecture llama has no hidden_dropout_prob"),
        (["task=math/gsm8k", "train.classifier_dropout=0.1"], "the architecture llama has no classifier_dropout"),
        (["task=glue/rte", "train.drop_path=0.1"], "train.drop_path=0.1 needs the blocks of a ViT"),
        (["task=glue/rte", "train.holdout_rows=8"], "train.holdout_rows=8 is for decoders"),
        (["task=vtab/digits", "train.group_by_length=true"], "the rows of suite vtab have no lengths"),
    ],
)
def test_dropout_without_effect_is_refused(tmp_path, words, message):
    def build():
        settings = compose_settings([f"results.root={tmp_path}", *words])
        prepare(settings, identify(settings))

    with pytest.raises(QgoftError, match=message):
        build()
