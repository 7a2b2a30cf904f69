"""For every method, away from the initial parameters: reloaded equals saved, and the same seed gives the same weights."""

import peft
import pytest
import torch

from qgoft.config.compose import compose_settings
from qgoft.models import load_classifier
from qgoft.pocket.weights import weights_directory
from qgoft.train.adapter_files import load_adapter
from tests.methods.test_merging import move
from tests.methods.test_methods import METHODS, build, ids

VARIANTS = ["psoft@r8-borth", "psoft@r8-strict-exact", "lora_xs@r8-pissa", "qgoft@qgoft-sequential", "goft@goft-butterfly"]


def words(name):
    method, _, variant = name.partition("@")
    return method, [f"method.variant={variant}"] if variant else []


@torch.no_grad()
@pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
def test_method_is_seeded_and_reloads(name, tmp_path):
    method, variant = words(name)
    (_, adapted), (_, again) = build(method, *variant), build(method, *variant)
    for (first, a), (second, b) in zip(adapted.model.state_dict().items(), again.model.state_dict().items(), strict=True):
        assert first == second
        assert torch.equal(a, b)
    move(adapted)
    adapted.model.eval()
    expected = adapted.model(input_ids=ids()).logits
    if adapted.is_peft:
        adapted.model.save_pretrained(tmp_path)
        load_adapter(again, tmp_path)
        # Another program uses only peft, with its own head to be replaced.
        torch.manual_seed(9)
        base = load_classifier(compose_settings(["task=glue/rte", f"method={method}", *variant]), weights_directory("pocket-deberta"))
        loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        assert torch.equal(loaded(input_ids=ids()).logits, expected)
    else:
        again.model.load_state_dict(adapted.model.state_dict())
    assert torch.equal(again.model.eval()(input_ids=ids()).logits, expected)
