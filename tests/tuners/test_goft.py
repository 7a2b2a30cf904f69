"""The tuner under peft's conventions: every test runs for a list of variants."""

import copy
import subprocess
import sys
import textwrap
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, DebertaV2Config, DebertaV2ForSequenceClassification, GPT2Config, GPT2LMHeadModel

import qgoft
from qgoft import GoftConfig, orthogonality_penalty
from qgoft.ops import givens
from qgoft.tuners import GoftLayer
from tests.tuners.versions import OLD_PEFT_FREEZES

REPOSITORY = Path(__file__).resolve().parents[2]
VARIANTS = ("goft", "goft_star", "qgoft", "goft_v2", "qgoft_v2")
CASES = [(variant, angle) for variant in VARIANTS for angle in ("tanh", "plain") if angle == "tanh" or not variant.startswith("q")]
# Merged against unmerged forward, one tolerance per dtype of the base, relative to the largest output: in float32 only the products are
# rounded; in half precision the merged weight is rounded once, too.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


class Toy(nn.Module):
    """Widths that are not powers of two, an odd one, a layer that is not adapted, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(20, 34), nn.Linear(34, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.third(torch.tanh(self.second(torch.tanh(self.first(x))))))


def config(variant="qgoft", *, targets=("first", "second"), random=True, **settings):
    return GoftConfig(variant=variant, target_modules=list(targets), init_weights=not random, **settings)


def wrap(variant="qgoft", model=None, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    model = (Toy() if model is None else model).to(dtype)
    return peft.get_peft_model(model, config(variant, **settings)).eval()


def rows(n=5, dtype=torch.float32, seed=3):
    return torch.randn(n, 20, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(a, b):
    scale = b.abs().max().item()
    assert (a - b).abs().max().item() <= TOLERANCE[a.dtype] * max(scale, 1e-3)


def assert_differs(a, b):
    assert (a - b).abs().max().item() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_goft_starts_at_the_base_model(variant):
    torch.manual_seed(0)
    base = Toy()
    expected = base(rows())
    adapted = peft.get_peft_model(base, config(variant, random=False))
    torch.testing.assert_close(adapted(rows()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("variant", "angle"), CASES)
def test_goft_forward_equals_merged_weight(variant, angle):
    model = wrap(variant, targets=("first",), angle=angle)
    layer = model.base_model.model.first
    blocks = layer.get_blocks("default")
    dense = givens.released_reference_matrix if variant.endswith("v2") else givens.reference_matrix
    matrix = dense(blocks.detach(), 20)
    matrix = matrix.T if variant.endswith("v2") else matrix  # features see R^T, and the second release's own matrix
    if variant == "goft_star":
        matrix = matrix @ torch.diag(layer.goft_scale["default"].detach().double())
    x = rows()
    expected = x.double() @ (layer.base_layer.weight.double() @ matrix.T).T + layer.base_layer.bias
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_goft_number_of_parameters(variant):
    per_layer = {
        "goft": lambda d: d - 1,
        "goft_star": lambda d: 2 * d - 1,
        "qgoft": lambda d: 4 * (d - 1),
        "goft_v2": lambda d: d - 1,
        "qgoft_v2": lambda d: 4 * (d - 1),
    }[variant]
    trainable, _ = wrap(variant).get_nb_trainable_parameters()
    assert trainable == per_layer(20) + per_layer(34)


def test_goft_angle_parameterisations():
    for angle, expected in (("tanh", torch.pi * torch.tanh(torch.tensor(1.5))), ("plain", torch.tensor(1.5))):
        layer = wrap("goft", angle=angle).base_model.model.first
        layer.goft_theta["default"].data.fill_(1.5)
        torch.testing.assert_close(layer.get_blocks("default")[0, 0, 0], expected.cos())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("variant", "angle"), CASES)
def test_goft_merged_equals_unmerged(variant, angle, dtype):
    model, x = wrap(variant, dtype=dtype, angle=angle), rows(dtype=dtype)
    weight = model.base_model.model.first.base_layer.weight.detach().clone()
    before = model(x)
    model.merge_adapter()
    assert_near(model(x), before)
    assert_differs(model.base_model.model.first.base_layer.weight.float(), weight.float())
    model.unmerge_adapter()
    assert_near(model.base_model.model.first.base_layer.weight, weight)
    assert_near(model(x), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_merge_and_unload_gives_a_plain_model(variant):
    model = wrap(variant)
    before = model(rows())
    plain = model.merge_and_unload(safe_merge=True)
    assert isinstance(plain, Toy)
    assert not any(isinstance(module, GoftLayer) for module in plain.modules())
    assert_near(plain(rows()), before)


def test_safe_merge_of_a_broken_adapter():
    model = wrap("qgoft")
    layer = model.base_model.model.first
    weight = layer.base_layer.weight.detach().clone()
    layer.goft_blocks["default"].data[2, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, weight)
    # The second of two adapters is the broken one.
    layer.update_layer("sound", config("goft"))
    with pytest.raises(ValueError, match="not finite"):
        layer.merge(safe_merge=True, adapter_names=["sound", "default"])
    assert torch.equal(layer.base_layer.weight, weight)
    assert layer.merged_adapters == []


def test_adapter_reloads_bit_equal(tmp_path):
    for variant in VARIANTS:
        directory = tmp_path / variant
        torch.manual_seed(0)
        base = Toy()
        model = peft.get_peft_model(base, config(variant, modules_to_save=["head"])).eval()
        model.base_model.model.head.modules_to_save["default"].weight.data.add_(0.5)
        model.save_pretrained(directory)
        torch.save((rows(), model(rows()).detach()), directory / "expected.pt")
    program = f"""
        import torch, peft, qgoft
        from tests.tuners.test_goft import Toy
        for variant in {VARIANTS!r}:
            folder = f"{tmp_path}/{{variant}}"
            torch.manual_seed(0)
            model = peft.PeftModel.from_pretrained(Toy(), folder).eval()
            x, expected = torch.load(f"{{folder}}/expected.pt")
            assert torch.equal(model(x), expected)
            assert model.peft_config["default"].variant == variant
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=REPOSITORY, timeout=120)


@pytest.mark.parametrize(
    "first",
    [
        "import peft, qgoft",
        "import qgoft, peft",
        "from qgoft import GoftConfig; import peft",
        "import qgoft, importlib.util as u; u.find_spec('peft'); u.find_spec('peft'); import peft",
        "import qgoft, transformers; transformers.utils.is_peft_available(); from transformers import Trainer; import peft",
    ],
)
def test_import_order_of_qgoft_and_peft(first):
    program = f"{first}; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as M; assert M['GOFT'].__name__ == 'GoftConfig'"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_importing_qgoft_does_not_import_torch():
    subprocess.run([sys.executable, "-c", "import qgoft, sys; assert 'torch' not in sys.modules"], check=True, timeout=60)


def test_registering_twice_has_no_effect():
    from qgoft.tuners._register import register_tuner

    register_tuner("GOFT", GoftConfig, qgoft.GoftModel)
    with pytest.raises(RuntimeError, match="already knows"):
        register_tuner("GOFT", peft.LoraConfig, qgoft.GoftModel)


@pytest.mark.parametrize("variant", VARIANTS)
def test_low_cpu_mem_usage(variant, tmp_path):
    model = wrap(variant)
    expected = model(rows())
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = peft.PeftModel.from_pretrained(Toy(), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(loaded(rows()), expected)


def test_two_active_adapters_compose():
    model = wrap("qgoft")
    model.add_adapter("other", config("goft"))
    model.base_model.set_adapter(["default", "other"])
    x = rows()
    layer = model.base_model.model.first
    both = layer.get_matrix("default").T @ layer.get_matrix("other").T
    expected = x @ (layer.base_layer.weight @ both).T + layer.base_layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    before = model(x)
    model.merge_adapter()
    assert_near(model(x), before)
    model.unmerge_adapter()
    assert_near(model(x), before)


def test_adapters_switch_disable_delete():
    model, x = wrap("qgoft"), rows()
    one = model(x)
    model.add_adapter("other", config("goft"))
    assert torch.equal(model(x), one), "a new adapter is not active"
    model.set_adapter("other")
    two = model(x)
    assert_differs(one, two)
    with model.disable_adapter():
        none = model(x)
    torch.manual_seed(0)
    assert torch.equal(none, Toy()(x))
    assert torch.equal(model(x), two)
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(model(x), one)
    assert "other" not in model.base_model.model.first.goft_theta


def test_disabling_while_merged():
    model, x = wrap("goft"), rows()
    model.merge_adapter()
    with model.disable_adapter():
        none = model(x)
    torch.manual_seed(0)
    assert_near(none, Toy()(x))


def test_switched_adapter_trains():
    model = wrap("qgoft")
    model.add_adapter("other", config("goft"))
    model.set_adapter("other")
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free
    assert all("other" in name for name in free)


@OLD_PEFT_FREEZES
def test_inactive_adapters_of_16_bit_models(tmp_path):
    model = wrap("qgoft", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    model.add_adapter("other", config("goft"))
    model.load_adapter(tmp_path, "loaded")
    assert {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad} == {"default"}
    frozen = peft.PeftModel.from_pretrained(Toy().to(torch.bfloat16), tmp_path)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixed_batch(variant):
    model, x = wrap(variant), rows(6)
    model.add_adapter("other", config("goft"))
    names = ["default", "other", "__base__", "default", "__base__", "other"]
    mixed = model(x, adapter_names=names)
    for name in ("default", "other"):
        model.set_adapter(name)
        index = [i for i, n in enumerate(names) if n == name]
        torch.testing.assert_close(mixed[index], model(x)[index], rtol=0, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(mixed[[2, 4]], model(x)[[2, 4]], rtol=0, atol=1e-5)


def test_mixed_batch_uses_heads_by_adapter():
    model, ids = wrap(model=tiny_deberta(), targets=("value_proj",), modules_to_save=["classifier"]), torch.randint(0, 50, (4, 7))
    model.add_adapter("other", config("goft", targets=("value_proj",), modules_to_save=["classifier"]))
    for name, parameter in model.named_parameters():
        if "classifier" in name and "other" in name:
            parameter.data += torch.randn_like(parameter)
    names = ["default", "other", "other", "default"]
    mixed = model(ids, adapter_names=names).logits
    for name in ("default", "other"):
        model.set_adapter(name)
        index = [i for i, n in enumerate(names) if n == name]
        torch.testing.assert_close(mixed[index], model(ids).logits[index], rtol=0, atol=1e-5)


def test_mixed_batch_errors():
    model = wrap()
    with pytest.raises(ValueError, match="loaded are default"):
        model(rows(2), adapter_names=["default", "typo"])
    with pytest.raises(ValueError, match="2 entries"):
        model(rows(5), adapter_names=["default", "default"])
    with pytest.raises(ValueError, match="inference"):
        model.train()(rows(1), adapter_names=["default"])
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="unmerge"):
        model(rows(1), adapter_names=["default"])


def tiny_deberta():
    torch.manual_seed(0)
    settings = DebertaV2Config(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, relative_attention=True,
        position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        type_vocab_size=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pooler_hidden_size=24,
    )  # fmt: skip
    return DebertaV2ForSequenceClassification(settings)


def test_mixed_batch_on_deberta_attention():
    ids = torch.randint(0, 50, (3, 7))
    model = wrap(model=tiny_deberta(), targets=("query_proj", "key_proj"))
    model.add_adapter("other", config("goft", targets=("query_proj", "key_proj")))
    with pytest.raises(ValueError, match="relative positions"):
        model(ids, adapter_names=["default", "other", "default"])
    other = wrap(model=tiny_deberta(), targets=("value_proj", "intermediate.dense"))
    other.add_adapter("other", config("goft", targets=("value_proj", "intermediate.dense")))
    assert other(ids, adapter_names=["default", "other", "default"]).logits.shape == (3, 2)


def test_deberta_merges():
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    model = wrap(model=tiny_deberta(), targets=("query_proj", "key_proj", "value_proj", "dense"), modules_to_save=["classifier", "pooler"])
    before = model(ids).logits
    model.merge_adapter()
    assert_near(model(ids).logits, before)


def test_inject_adapter_in_model():
    torch.manual_seed(0)
    base = Toy()
    expected = base(rows())
    injected = peft.inject_adapter_in_model(config(), base)
    assert isinstance(injected.first, GoftLayer)
    assert not isinstance(injected.third, GoftLayer)
    assert_differs(injected(rows()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_trains(dtype):
    model = wrap("qgoft", dtype=dtype).train()
    layer = model.base_model.model.first
    assert layer.goft_blocks["default"].dtype == torch.float32
    y = model(rows(dtype=dtype))
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert layer.goft_blocks["default"].grad.isfinite().all()
    assert layer.goft_blocks["default"].grad.abs().max() > 0


def test_gradient_checkpointing_gradients():
    grads = []
    for use in (False, True):
        torch.manual_seed(0)
        base = BertModel(BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, vocab_size=50))
        model = wrap("qgoft", model=base, targets=("query", "dense")).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if use:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(1)
        model(torch.randint(0, 50, (3, 7))).last_hidden_state.square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad and "goft" in n})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_conv1d_of_gpt2(variant):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50, n_positions=16)).eval()
    ids = torch.randint(0, 50, (2, 7))
    plain = copy.deepcopy(base)(ids).logits
    model = wrap(variant, model=base, targets=("c_attn", "c_fc", "mlp.c_proj"))
    before = model(ids).logits
    assert_differs(before, plain)
    model.merge_adapter()
    assert_near(model(ids).logits, before)
    model.unmerge_adapter()
    assert_near(model(ids).logits, before)


class Int8Linear(nn.Linear):
    """A stand-in for the quantised layers of bitsandbytes: a subclass of Linear whose int8 weight is read only by its forward."""

    @classmethod
    def of(cls, layer):
        made = cls(layer.in_features, layer.out_features)
        made.scale = layer.weight.detach().abs().max() / 127
        made.weight = nn.Parameter((layer.weight.detach() / made.scale).round().to(torch.int8), requires_grad=False)
        made.bias = layer.bias
        return made

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("variant", VARIANTS)
def test_quantised_base_rotates_activations(variant):
    torch.manual_seed(0)
    base = Toy()
    base.first = Int8Linear.of(base.first)
    stored = base.first.weight.clone()
    model = wrap(variant, model=base, targets=("first",)).train()
    layer = model.base_model.model.first
    matrix = layer.get_matrix("default").detach()
    expected = nn.functional.linear(rows(), (stored.float() * layer.base_layer.scale) @ matrix.T, layer.base_layer.bias)
    torch.testing.assert_close(layer(rows()), expected, rtol=1e-5, atol=1e-5)
    model(rows()).square().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "goft_" in name)
    assert torch.equal(layer.base_layer.weight, stored)
    with pytest.raises(TypeError, match="without quantisation"):
        model.merge_adapter()
    assert torch.equal(layer.base_layer.weight, stored)
    assert not layer.merged


@pytest.mark.parametrize("kind", ["Linear4bit", "Linear8bitLt"])
def test_bitsandbytes_base(kind):
    bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes; test_quantised_base covers the same code with a stand-in")
    torch.manual_seed(0)
    base = Toy()
    settings = {"compute_dtype": torch.float32} if kind == "Linear4bit" else {"has_fp16_weights": False}
    quantised = getattr(bnb.nn, kind)(20, 34, **settings)
    quantised.load_state_dict(base.first.state_dict())
    base.first = quantised.to("cpu")
    dense = (base.first(torch.eye(20)) - base.first.bias).detach()
    stored = base.first.weight.data.clone()
    model = wrap(model=base, targets=("first",))
    layer = model.base_model.model.first
    expected = rows() @ layer.get_matrix("default").detach() @ dense + layer.base_layer.bias
    torch.testing.assert_close(layer(rows()), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.base_layer.weight.data, stored)


def test_generate_with_mixed_adapters():
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=1, eos_token_id=2)).eval()
    model = wrap("qgoft", model=base, targets=("c_attn",))
    model.add_adapter("other", config("goft", targets=("c_attn",)))
    ids = torch.randint(3, 50, (2, 4))
    settings = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 0}
    mixed = model.generate(input_ids=ids, adapter_names=["default", "other"], **settings)
    for i, name in enumerate(("default", "other")):
        model.set_adapter(name)
        alone = model.generate(input_ids=ids, **settings)
        assert torch.equal(mixed[i], alone[i])


def test_unsupported_layer():
    class WithConvolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    with pytest.raises(TypeError, match=r"conv: GOFT cannot adapt a layer of type Conv2d"):
        peft.get_peft_model(WithConvolution(), config(targets=("conv",)))


def test_release_refuses_odd_widths_by_layer():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(7, 7)

    with pytest.raises(ValueError, match="layer: width d is 7"):
        peft.get_peft_model(Odd(), config("qgoft_v2", targets=("layer",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"variant": "goftt"}, "allowed are 'goft'"), ({"angle": "deg"}, "'tanh', 'plain'"), ({"bias": "all"}, "'none'")],
)
def test_goft_config_invalid(settings, message):
    with pytest.raises(ValueError, match=message):
        GoftConfig(**settings)


def test_penalty_sums_over_blocks():
    model = wrap("qgoft")
    expected = 0.0
    for layer in (model.base_model.model.first, model.base_model.model.second):
        for block in layer.goft_blocks["default"].detach().double():
            expected += float(block[:, 0] @ block[:, 1]) ** 2
    penalty = orthogonality_penalty(model)
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    assert model.base_model.model.first.goft_blocks["default"].grad.abs().max() > 0


def test_penalty_of_double_blocks():
    assert qgoft.orthogonality_penalty(wrap("qgoft").double()).dtype == torch.float64


def test_penalty_of_rotations_is_zero():
    for model in (wrap("goft"), Toy()):
        penalty = orthogonality_penalty(model)
        assert penalty.item() == 0
        assert not penalty.requires_grad


def test_training_changes_only_the_adapter():
    model = wrap("qgoft").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(rows()).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("goft_" not in name), name


def orthogonality_error(model):
    """Return the largest max |R^T R - I| of the adapted layers."""
    matrices = [layer.get_matrix("default") for layer in model.modules() if isinstance(layer, GoftLayer)]
    return max((m.T @ m - torch.eye(len(m))).abs().max().item() for m in matrices)


@pytest.mark.parametrize("width", [96, 768])
def test_goft_stays_orthogonal(width):
    torch.manual_seed(0)
    config = GoftConfig(variant="goft", target_modules=["0"])
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(width, 24)), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        (model(torch.randn(8, width)) - 1).square().sum().backward()
        optimizer.step()
    moved = max(p.abs().max().item() for p in model.parameters() if p.requires_grad)
    assert moved > 0.5, "the angles are far from where they started"
    assert orthogonality_error(model) < 1e-5


@pytest.mark.parametrize("pairing", ["butterfly", "sequential"])
@pytest.mark.parametrize("variant", ["goft", "goft_star", "qgoft"])
def test_goft_pairings(variant, pairing, tmp_path):
    """Slow and dense, but adapters like the others: start, merge, save."""
    torch.manual_seed(0)
    base = Toy().eval()
    start = wrap(variant, copy.deepcopy(base), random=False, pairing=pairing)
    assert_near(start(rows()), base(rows()))
    model = wrap(variant, copy.deepcopy(base), pairing=pairing)
    assert_differs(model(rows()), base(rows()))
    assert_differs(model(rows()), wrap(variant, copy.deepcopy(base))(rows()))
    if variant == "goft":
        assert orthogonality_error(model) < 1e-5
    expected = model(rows())
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(again(rows()), expected)
    before = model.base_model.model.first.base_layer.weight.clone()
    model.merge_adapter()
    assert_near(model(rows()), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(model.base_model.model.first.base_layer.weight, before, rtol=1e-4, atol=1e-5)


def test_release_refuses_other_pairings():
    with pytest.raises(ValueError, match=r"pairing='butterfly'.*allowed are 'tree'"):
        GoftConfig(variant="goft_v2", pairing="butterfly")
    with pytest.raises(ValueError, match=r"pairing='ring'.*allowed are 'tree', 'butterfly', 'sequential'"):
        GoftConfig(pairing="ring")
