"""Any tuner of peft as a method: it is built, trained and counted, or the reason is one line."""

import pytest
import torch
from peft.utils import PeftType

from qgoft.config.compose import compose_settings
from qgoft.config.peft_types import peft_types
from qgoft.config.suites import has_config, unsupported_reason
from qgoft.errors import QgoftError
from qgoft.methods import merged_for_eval
from qgoft.methods.registry import method_named, parse_variant
from qgoft.sweep.items import read_items
from tests.methods.test_methods import build, ids

OWN = {"goft", "bottleneck", "fact", "lora_xs", "oft_full", "psoft_output", "svft"}
OTHERS = [name for name in peft_types() if not has_config(f"method/{name}")]
LEADERBOARD = {row[0].removeprefix("method=") for row in read_items("pocket")["leaderboard"].grids[0].rows} & set(OTHERS)


def test_types_are_read_without_importing_peft():
    assert set(peft_types()) == {kind.name.lower() for kind in PeftType} - OWN


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # frod
@pytest.mark.parametrize("name", OTHERS)
def test_tuner_trains_or_says_why(name):
    assert unsupported_reason("pocket", "glue/rte", name) is None
    adapted, reason = None, ""
    try:
        _, adapted = build(name)
    except QgoftError as error:
        reason = str(error)
    if adapted is None:
        assert name not in LEADERBOARD, reason
        assert name in reason
        assert "\n" not in reason
        return
    assert name in LEADERBOARD
    free = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in free.values()) == adapted.trainable + adapted.head
    assert adapted.trainable > 0
    before = {n: p.detach().clone() for n, p in free.items()}
    optimizer = torch.optim.AdamW(free.values(), 1e-2)
    adapted.model.train()
    for _ in range(2):
        adapted.model(input_ids=ids(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, p in free.items() if not torch.equal(p, before[n])}
    assert moved - adapted.head_names, "the adapter is trained, not only the head"
    check_evaluation(adapted)


@torch.no_grad()
def check_evaluation(adapted):
    """Evaluation with merged weights predicts the same, and leaves the model as it was."""
    adapted.model.eval()
    before, expected = {n: v.clone() for n, v in adapted.model.state_dict().items()}, adapted.model(input_ids=ids()).logits
    with merged_for_eval(adapted):
        torch.testing.assert_close(adapted.model(input_ids=ids()).logits, expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in adapted.model.state_dict().items())
    assert torch.equal(adapted.model(input_ids=ids()).logits, expected)


def test_variants_and_options():
    method = method_named("fourierft")
    assert parse_variant(method, "n100") == {"n": 100}
    assert parse_variant(method, "fourierft") == {}
    _, few = build("fourierft", "method.variant=n100")
    _, more = build("fourierft", "++method.options.n_frequency=200")
    assert more.trainable == 2 * few.trainable
    with pytest.raises(QgoftError, match=r"expected the form n<number of frequencies or vectors>"):
        parse_variant(method, "r8")
    with pytest.raises(QgoftError, match=r"method.options.nothing: method vera has no such option; allowed are .*d_initial"):
        build("vera", "++method.options.nothing=1")
    with pytest.raises(QgoftError, match=r"unknown method 'verra'.*did you mean vera"):
        compose_settings(["method=verra", "task=glue/rte"])


def test_prompt_tuning_says_why():
    with pytest.raises(QgoftError, match="adds inputs or whole modules instead of adapting layers"):
        build("prompt_tuning")
