"""Every method on the embedded encoder: its parameter count, its start at the base model, and its training."""

import dataclasses
import re

import pytest
import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertSelfOutput

from qgoft.config.compose import compose_settings
from qgoft.config.suites import config_names
from qgoft.errors import QgoftError
from qgoft.methods import apply_method
from qgoft.methods.registry import REGISTRY, Method, MethodContext, find_targets, method_names, parse_variant, register
from qgoft.models import load_classifier
from qgoft.models.architectures import build_shapes
from qgoft.pocket.weights import weights_directory

METHODS = sorted(set(REGISTRY) - {"base"})  # base is for decoders: tests/train/test_decoder_run.py
# d and n of the six linear layers of one block of DeBERTaV3-base, and of ViT-B/16's query and value, as (n, d).
DEBERTA = 12 * [(768, 768), (768, 768), (768, 768), (768, 768), (3072, 768), (768, 3072)]
VIT_QUERY_VALUE = 24 * [(768, 768)]


def build(method, *words, total_steps=20):
    settings = compose_settings([f"method={method}", "task=glue/rte", *words])
    torch.manual_seed(0)
    model = load_classifier(settings, weights_directory("pocket-deberta")).eval()
    return model, apply_method(model, settings.model, settings.method, total_steps=total_steps)


def ids():
    return torch.randint(7, 500, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("method", "variant", "shapes", "expected"),
    [
        ("lora", "r2", DEBERTA, 331_776),
        ("lora", "r8", DEBERTA, 1_327_104),
        ("goft", "goft", DEBERTA, 82_872),
        ("goft_star", "goft_star", DEBERTA, 165_816),
        ("qgoft", "qgoft", DEBERTA, 331_488),
        ("oft_v2", "b32", DEBERTA, 1_285_632),
        ("oft", "b4", DEBERTA, 124_416),
        ("boft", "b8m2", DEBERTA, 1_410_048),
        ("psoft", "r46", DEBERTA, 81_144),
        ("dora", "r8", DEBERTA, 1_410_048),
        ("hra", "r8", DEBERTA, 663_552),
        ("fact_tt", "r16", DEBERTA, 61_440),
        ("fact_tk", "r32", DEBERTA, 86_528),
        ("lora_xs", "r136", DEBERTA, 1_331_712),
        ("svft_p", "svft_p", DEBERTA, 55_296 + 72),  # and a gate for each layer
        ("oft_paper", "b4", DEBERTA, 331_776),
        ("oft_paper", "b8", DEBERTA, 663_552),
        ("h_adapter", "r8", 24 * [(768, 768)], 313_536),
        ("p_adapter", "r16", 12 * [(768, 768)], 304_320),
        ("oft_paper", "b8", VIT_QUERY_VALUE, 147_456),
        ("goft", "goft", VIT_QUERY_VALUE, 18_408),
        ("qgoft", "qgoft", VIT_QUERY_VALUE, 73_632),
        ("lora", "r8", VIT_QUERY_VALUE, 294_912),
    ],
)
def test_num_params_on_published_shapes(method, variant, shapes, expected):
    entry = REGISTRY[method]
    assert entry.num_params(shapes, parse_variant(entry, variant)) == expected


def test_bitfit_count_on_deberta_v3_base():
    """All biases except pooler and head: 102,912 (GOFT, table 1 prints 0.1M). Shapes only; no weights are allocated."""
    model = build_shapes("deberta_v3_base")
    spec = compose_settings(["protocol=goft_icml24", "method=bitfit"])
    adapted = apply_method(model, spec.model, spec.method, total_steps=1)
    assert adapted.trainable == 102_912
    assert len(find_targets(model, spec.model.target_sets["all_linear"])) == 72


@pytest.mark.parametrize("method", METHODS)
def test_method_has_its_num_params_and_trains(method):
    _, adapted = build(method)
    assert adapted.head == sum(p.numel() for n, p in adapted.model.named_parameters() if n in adapted.head_names)
    assert adapted.head > 0
    free = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in free.values()) == adapted.trainable + adapted.head
    before = {n: p.detach().clone() for n, p in adapted.model.named_parameters()}
    optimizer = torch.optim.AdamW(free.values(), 1e-2)
    adapted.model.train()
    # Two steps: LoRA's A changes only after B has left zero.
    for step in (1, 2):
        adapted.model(input_ids=ids(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimizer.step()
        if adapted.after_step:
            adapted.after_step(adapted.model, step)
        optimizer.zero_grad()
    moved = {n for n, p in adapted.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= set(free)
    assert (moved - adapted.head_names != set()) == (method != "linear")
    assert moved & adapted.head_names


# As in their authors' code: drawn from N(0, 0.02^2), and half of N(0, 2 / k).
DRAWN = ("h_adapter", "p_adapter", "svft_p")


@pytest.mark.parametrize("method", METHODS)
def test_method_starts_at_the_base_model(method):
    settings = compose_settings(["method=full", "task=glue/rte"])
    torch.manual_seed(0)
    expected = load_classifier(settings, weights_directory("pocket-deberta")).eval()(input_ids=ids()).logits
    _, adapted = build(method)
    got = adapted.model.eval()(input_ids=ids()).logits
    if method in DRAWN:
        assert 1e-4 < (got - expected).norm() / expected.norm() < 0.5
    else:
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)


def test_boft_without_the_cuda_extension():
    _, adapted = build("boft")
    sizes = {p.shape[0] for n, p in adapted.model.named_parameters() if "boft_R" in n}
    assert sizes == {2}


def test_boft_product_is_orthogonal():
    _, adapted = build("boft")
    layer = next(m for m in adapted.model.modules() if hasattr(m, "boft_R"))
    with torch.no_grad():
        layer.boft_R["default"].normal_()
    matrix, _ = layer.get_delta_weight("default")
    assert (matrix.T @ matrix - torch.eye(len(matrix))).abs().max() < 1e-4
    per_row = (matrix.abs() > 1e-9).sum(1)
    assert per_row.max() > 8, "two factors reach beyond one block"


def test_oft_is_exact_oft_v2_is_not():
    errors = {}
    for method in ("oft", "oft_v2"):
        _, adapted = build(method, "method.variant=b32")
        layer = next(m for m in adapted.model.modules() if hasattr(m, "oft_R"))
        rotation = layer.oft_R["default"]
        with torch.no_grad():
            rotation.weight.normal_(std=0.1)
            blocks = rotation._cayley_batch(
                rotation.weight, rotation.block_size, rotation.use_cayley_neumann, rotation.num_cayley_neumann_terms
            )
        errors[method] = (blocks @ blocks.mT - torch.eye(32)).abs().max().item()
    assert errors["oft"] < 1e-5 < 1e-2 < errors["oft_v2"]


def test_num_params_mismatch_is_an_error(monkeypatch):
    entry = REGISTRY["lora"]
    monkeypatch.setitem(REGISTRY, "lora", Method("lora", entry.hparams, lambda shapes, values: 7, entry.config))
    with pytest.raises(RuntimeError, match="should have 7 trainable parameters over 18 layers, but the built model has 41,472"):
        build("lora")


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("lora", ["method.variant=b8"], r"expected the form r<rank>"),
        ("lora", ["method.variant=r0"], "allowed are numbers from 1"),
        ("boft", ["method.variant=b8"], "b<block size>m<butterfly factors>"),
        ("qgoft", ["method.variant=fast"], "expected the form qgoft"),
        ("oft", ["method.variant=b7"], "block size 7 does not divide"),
        ("hra", ["method.variant=r3"], "odd"),
        ("oft_paper", ["method.variant=b7"], "block size 7 does not divide the input width 96"),
        ("lora_xs", ["method.variant=r97"], "rank 97 does not fit a layer of 96 outputs and 96 inputs; allowed are 1 to 96"),
        ("fact_tt", ["method.variant=r97"], "rank 97 is larger than the width 96"),
        ("h_adapter", ["method.variant=b8"], "expected the form r<bottleneck>"),
        ("psoft", ["method.variant=r500"], "larger than the smallest width 96"),
        (
            "qgoft",
            ["method.targets=everything"],
            "unknown target set method.targets 'everything'; allowed are all_linear, houlsby, pfeiffer, query_value",
        ),
        (
            "qgoft",
            ["model=pocket_deberta", "model.target_sets.all_linear=nothing.*"],
            "no linear layer of this DebertaV2ForSequenceClassification matches",
        ),
    ],
)
def test_method_does_not_fit_model(method, words, message):
    with pytest.raises(QgoftError, match=message):
        build(method, *words)


def test_head_module_missing():
    settings = compose_settings(["task=glue/rte"])
    model = load_classifier(settings, weights_directory("pocket-deberta"))
    with pytest.raises(QgoftError, match="no module named lm_head"):
        apply_method(model, dataclasses.replace(settings.model, head_modules=["lm_head"]), settings.method, total_steps=1)


def test_registry_refuses_duplicate_names():
    with pytest.raises(ValueError, match="registered twice"):
        register(Method("lora"))


def test_method_has_one_config_file():
    assert config_names("method") == sorted(REGISTRY)


def test_targets_are_linear_layers():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    assert find_targets(model, ".*") == {"0": (4, 3), "2": (5, 4)}
    block = BertSelfOutput(BertConfig(hidden_size=12, num_attention_heads=2))
    model.append(block)
    assert find_targets(model, ".*", REGISTRY["p_adapter"].shape_of) == {"0": (4, 3), "2": (5, 4), "3": (12, 12), "3.dense": (12, 12)}


@pytest.mark.parametrize(
    ("variant", "per_layer"),
    [("goft-sequential", lambda d, b: d - 1), ("goft_star-butterfly", lambda d, b: b + d), ("qgoft-butterfly", lambda d, b: 4 * b)],
)
def test_pairings_have_their_own_counts(variant, per_layer):
    _, adapted = build(variant.partition("-")[0], f"method.variant={variant}")
    # Widths 96 and 384: pairs (i, i + s) with bit log2 s of i zero.
    blocks = {d: sum(not i & 2**r for r in range(d.bit_length()) for i in range(d - 2**r)) for d in (96, 384)}
    assert adapted.trainable == 15 * per_layer(96, blocks[96]) + 3 * per_layer(384, blocks[384])
    with pytest.raises(QgoftError, match="butterfly and sequential are mutually exclusive"):
        build("goft", "method.variant=goft-butterfly-sequential")


def test_base_16_bit_parameters_train_in_float32():
    """AdamW's small steps are lost in the rounding of bfloat16: a hundred equal ones may have no effect."""
    settings = compose_settings(["method=full", "task=glue/rte"])
    model = load_classifier(settings, weights_directory("pocket-deberta")).to(torch.bfloat16)
    adapted = apply_method(model, settings.model, settings.method, total_steps=1)
    trained = [parameter for parameter in adapted.model.parameters() if parameter.requires_grad]
    assert len(trained) > 50
    assert {parameter.dtype for parameter in trained} == {torch.float32}


@pytest.mark.parametrize("method", ["adalora", "bitfit", "boft", "fact_tk", "h_adapter", "lora", "psoft", "qgoft"])
def test_encoder_16_bit_trains_in_float32(method):
    """peft widens only adapters: a head in 16 bits would lose most of its steps."""
    settings = compose_settings([f"method={method}", "task=glue/rte", "model.dtype=bfloat16", "train.mixed_precision=bf16"])
    adapted = apply_method(load_classifier(settings, weights_directory("pocket-deberta")), settings.model, settings.method, total_steps=1)
    trained = [parameter for parameter in adapted.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        loss = adapted.model(input_ids=ids(), labels=torch.tensor([0, 1, 0, 1])).loss
    loss.backward()
    assert all(
        parameter.grad is not None
        for name, parameter in adapted.model.named_parameters()
        if "classifier" in name and parameter.requires_grad
    )


def test_adalora_orthogonal_term_has_an_effect():
    """Equation 4 of its paper; the weight is a hyperparameter of the method, and the term equals peft's."""
    _, adapted = build("adalora")
    assert adapted.penalty_weight == 0.1
    distance = adapted.penalty(adapted.model)
    config = adapted.model.peft_config["default"]
    answers = torch.tensor([0, 1, 0, 1])
    adapted.model.eval()
    plain = adapted.model(input_ids=ids(), labels=answers).loss
    with_theirs = adapted.model.base_model(input_ids=ids(), labels=answers).loss
    torch.testing.assert_close(with_theirs - plain, config.orth_reg_weight * distance)
    distance.backward()
    assert all(p.grad is not None for name, p in adapted.model.named_parameters() if "lora_A" in name or "lora_B" in name)
    assert build("adalora", "method.options.orthogonal_weight=0.5")[1].penalty_weight == 0.5
    with pytest.raises(QgoftError, match=r"method.penalty=0.5: adalora@r8 sets the weight of its penalty in method.options"):
        build("adalora", "method.penalty=0.5")


@pytest.mark.parametrize(("scale", "alpha"), [(1.0, 2), (2.0, 4), (0.25, 0.5)])
def test_lora_scale_is_not_rounded(scale, alpha):
    values = {"r": 2}
    config = REGISTRY["lora"].config(values, MethodContext([(8, 8)], 1, {"scale": scale}))
    assert config.lora_alpha == alpha


def test_methods_page_lists_methods_and_modifiers(repository):
    listed = {}
    for row in (repository / "docs" / "methods.md").read_text().splitlines():
        if row.startswith("| `"):
            names, _, variants = row.split("|")[1:4]
            listed |= {name: set(re.findall(r"`-([\w#]+)`", variants)) for name in re.findall(r"`(\w+)`", names)}
    assert listed == {name: set(REGISTRY[name].modifiers) for name in method_names()}
