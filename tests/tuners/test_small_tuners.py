"""The small tuners under peft's conventions: every test runs for a list of configurations."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import qgoft  # noqa: F401  (registers the tuners)
from qgoft.tuners import BottleneckConfig, FactConfig, GoftConfig, LoraXsConfig, OftFullConfig, SvftConfig
from qgoft.tuners.svd import singular_factors
from tests.tuners.versions import OLD_PEFT_FREEZES

CASES = {
    "bottleneck houlsby": (BottleneckConfig, {"r": 3, "form": "houlsby"}),
    "bottleneck pfeiffer": (BottleneckConfig, {"r": 3, "form": "pfeiffer"}),
    "fact tt": (FactConfig, {"form": "tt", "r": 3, "scale": 2.0}),
    "fact tk": (FactConfig, {"form": "tk", "r": 3}),
    "fact tk formula": (FactConfig, {"form": "tk", "r": 3, "layout": "formula"}),
    "lora_xs": (LoraXsConfig, {"r": 5, "scale": 0.5}),
    "lora_xs formula": (LoraXsConfig, {"r": 5, "singular_values": "output"}),
    "lora_xs randomised": (LoraXsConfig, {"r": 5, "svd_iterations": 4}),
    "oft full": (OftFullConfig, {"block_size": 4}),
    "svft": (SvftConfig, {}),
}
LINEAR = [name for name in CASES if not name.startswith("bottleneck")]
SHARED = {"fact tt", "fact tk"}
DRAWN = ("bottleneck houlsby", "bottleneck pfeiffer", "svft")  # start near the base, as their authors' code does


class Toy(nn.Module):
    """Widths that are multiples of 12, which FacT needs; a layer that is not adapted, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 36), nn.Linear(36, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.third(torch.tanh(self.second(torch.tanh(self.first(x))))))


def config(case, *, random=True, targets=("first", "second"), **settings):
    kind, own = CASES[case]
    return kind(target_modules=list(targets), init_weights=not random, **{**own, **settings})


def wrap(case, model=None, **settings):
    torch.manual_seed(0)
    return peft.get_peft_model(Toy() if model is None else model, config(case, **settings)).eval()


def base():
    torch.manual_seed(0)
    return Toy().eval()


def rows(n=5):
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(3))


def adapted(model):
    return model.base_model.model.first


@pytest.mark.parametrize("case", CASES)
def test_small_tuner_starts_at_the_base(case):
    expected = base()(rows())
    start = wrap(case, random=False)(rows())
    if case in DRAWN:
        assert 1e-6 < (start - expected).abs().max() < 0.5
    else:
        torch.testing.assert_close(start, expected, rtol=0, atol=1e-4)
    assert (wrap(case)(rows()) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_small_tuner_trains_its_parameters(case):
    model = wrap(case, modules_to_save=["head"]).train()
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(model.base_model.prefix in name or "modules_to_save" in name for name in free)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(rows()).square().sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == free


@pytest.mark.parametrize("case", LINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_tuner_merges_and_unmerges(case, dtype):
    model = wrap(case, Toy().to(dtype))
    x = rows().to(dtype)
    expected, before = model(x), adapted(model).base_layer.weight.clone()
    model.merge_adapter(safe_merge=True)
    assert not torch.equal(adapted(model).base_layer.weight, before)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(adapted(model).base_layer.weight, before, rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload()
    assert type(merged) is Toy
    torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-5)


def test_non_linear_adapters_are_not_merged():
    model = wrap("bottleneck houlsby")
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_adapter()
    with pytest.raises(ValueError, match="cannot be merged"):
        adapted(model).merge()
    assert type(model.unload()) is Toy


@pytest.mark.parametrize("case", LINEAR)
def test_small_tuner_safe_merge(case):
    model = wrap(case)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "first" in name:
            parameter.data.fill_(float("nan"))
    before = adapted(model).base_layer.weight.clone()
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(adapted(model).base_layer.weight, before)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("low", [False, True])
def test_small_tuner_reloads(case, low, tmp_path):
    model = wrap(case, modules_to_save=["head"])
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)  # random numbers drawn while loading must not matter
    again = peft.PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low).eval()
    assert torch.equal(again(rows()), model(rows()))
    assert not any(p.requires_grad for p in again.parameters())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == CASES[case][0].kind
    # Frozen tensors are not saved, and shared ones are saved once.
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(t.numel() for t in saved.values()) == trained


@pytest.mark.parametrize("case", CASES)
def test_adapter_missing_and_foreign_keys(case, tmp_path):
    model = wrap(case)
    state = peft.get_peft_model_state_dict(model)
    (first, *_) = [name for name in state if ".first." in name]
    result = peft.set_peft_model_state_dict(
        wrap(case), {**{k: v for k, v in state.items() if k != first}, "base_model.model.foreign": rows()}
    )
    assert any(first.rpartition(".")[0].split("base_model.")[-1] in key for key in result.missing_keys)
    assert any("foreign" in key for key in result.unexpected_keys)


@pytest.mark.parametrize("case", CASES)
def test_small_tuner_several_adapters(case):
    model = wrap(case)
    one = model(rows())
    torch.manual_seed(5)
    model.add_adapter("other", config(case))
    assert torch.equal(model(rows()), one)
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.endswith(".other"))
    model.set_adapter("other")
    two = model(rows())
    assert (two - one).abs().max() > 1e-3
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"other"}
    with model.disable_adapter():
        torch.testing.assert_close(model(rows()), base()(rows()))
    both = copy.deepcopy(model)
    both.base_model.set_adapter(["default", "other"])
    stacked = both(rows())
    assert (stacked - two).abs().max() > 1e-3
    if case in LINEAR:
        both.merge_adapter()
        torch.testing.assert_close(both(rows()), stacked, rtol=1e-4, atol=1e-5)
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(model(rows()), one)
    assert not any("other" in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("other")


@OLD_PEFT_FREEZES
@pytest.mark.parametrize("case", CASES)
def test_second_adapter_keeps_requires_grad(case, tmp_path):
    """Also for a 16-bit model, whose adapters peft casts to float32."""
    for dtype in (torch.float32, torch.bfloat16):
        model = wrap(case, Toy().to(dtype))
        model.save_pretrained(tmp_path)
        before = {name for name, p in model.named_parameters() if p.requires_grad}
        assert before
        model.add_adapter("other", config(case))
        model.load_adapter(tmp_path, "loaded")
        assert {name for name, p in model.named_parameters() if p.requires_grad} == before
        model.base_model.set_requires_grad("other")
        freed = {name.replace("other", "default") for name, p in model.named_parameters() if p.requires_grad and "other" in name}
        assert freed == before
        frozen = peft.PeftModel.from_pretrained(Toy().to(dtype), tmp_path)
        assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("case", CASES)
def test_small_tuner_copies(case):
    model = wrap(case)
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert (twin(rows()) - model(rows())).abs().max() > 1e-3
    assert torch.equal(twin(rows()), wrap(case)(rows()))


@pytest.mark.parametrize("case", CASES)
def test_small_tuner_conv1d_and_gpt2(case):
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=12, n_layer=2, n_head=2)).eval()
    ids = torch.randint(0, 50, (2, 7))
    before = gpt(ids).logits
    model = wrap(case, gpt, targets=["c_attn", "c_fc", "mlp.c_proj"])
    got = model(ids).logits
    assert (got - before).abs().max() > 1e-3
    model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    if case in LINEAR:
        torch.testing.assert_close(model.merge_and_unload()(ids).logits, got, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_small_tuner_half_precision_base(case):
    model = wrap(case, base().to(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}  # peft's own rule
    got = model(rows().to(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    model.disable_adapter_layers()
    assert (got - model(rows().to(torch.bfloat16))).abs().max() > 1e-3
    wide = wrap(case, base().to(torch.bfloat16).float())
    wide.load_state_dict(model.state_dict())
    torch.testing.assert_close(got.float(), wide(rows()), rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT", "ignore:Already found a `peft_config`")
@pytest.mark.parametrize("case", CASES)
def test_small_tuner_unsupported_layers(case):
    with pytest.raises((ValueError, TypeError), match=r"target|matches none"):
        wrap(case, targets=["nowhere"])
    with pytest.raises(TypeError, match=r"second.*already has a GoftLinear"):
        wrap(case, peft.inject_adapter_in_model(GoftConfig(target_modules=["second"]), Toy()), targets=["second"])
    model = wrap(case)
    with pytest.raises(ValueError, match="several adapters in one batch"):
        adapted(model)(rows(), adapter_names=["default"] * 5)
    with pytest.raises(ValueError, match="several adapters in one batch"):
        model(rows(), adapter_names=["default"] * 5)
    if case in LINEAR:
        model.merge_adapter()
        with pytest.raises(ValueError, match="unmerge_adapter"):
            model.add_adapter("other", config(case))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (LoraXsConfig, {"r": 13}, r"first: rank 13 does not fit a layer of 36 outputs and 12 inputs; allowed are 1 to 12"),
        (OftFullConfig, {"block_size": 5}, r"first: block size 5 does not divide the input width 12"),
        (BottleneckConfig, {"form": "sine"}, r"form='sine'.*allowed are 'houlsby', 'pfeiffer'"),
        (LoraXsConfig, {"singular_values": "both"}, r"singular_values='both'.*allowed are 'input', 'output'"),
        (FactConfig, {"layout": "row"}, r"layout='row'.*allowed are 'code', 'formula'"),
        (FactConfig, {"dropout": 1.0}, r"dropout=1.0.*0 and more, below 1"),
        (BottleneckConfig, {"r": 0}, r"r=0.*1 and more"),
        (FactConfig, {"form": "cp"}, r"form='cp'.*allowed are 'tt', 'tk'"),
        (FactConfig, {"r": 0}, r"r=0.*1 and more"),
    ],
)
def test_small_tuner_invalid_settings(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(Toy(), kind(target_modules=["first", "second"], **settings))


def test_small_tuner_layer_selection():
    with pytest.raises(ValueError, match="not a regular expression"):
        SvftConfig(target_modules="first", layers_to_transform=[0])
    with pytest.raises(ValueError, match="layers_pattern needs"):
        SvftConfig(target_modules=["first"], layers_pattern="h")


def test_fact_needs_one_width():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 30), nn.Linear(30, 12))
    with pytest.raises(ValueError, match=r"widths 12, 30.*30 is not a multiple of 12"):
        peft.get_peft_model(model, FactConfig(target_modules=["0", "1"]))


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_fact_equals_definition(form):
    """Slice by slice: output j gets scale * V core_ij^T U^T from input i; the factors belong to the model, one for all layers."""
    model = wrap("fact tt" if form == "tt" else "fact tk formula", scale=1.5)
    factors = model.base_model
    for layer in (model.base_model.model.first, model.base_model.model.second):
        cores = layer.fact_core["default"]
        if form == "tk":
            cores = (cores[..., None, None, :] * factors.fact_c["default"]).sum(-1)
        u, v = factors.fact_u["default"], factors.fact_v["default"]
        expected = torch.cat(
            [torch.cat([1.5 * v @ cores[i, j].T @ u.T for i in range(cores.shape[0])], 1) for j in range(cores.shape[1])], 0
        )
        torch.testing.assert_close(layer.get_delta("default"), expected, rtol=1e-4, atol=1e-5)
    assert sum("fact_u" in name for name, _ in model.named_parameters()) == 1


def test_fact_initialisation_of_the_cores():
    """TT: each core as the weight of a linear layer, drawn within 1/sqrt(inputs). TK: all vectors of the model are one matrix under
    Xavier's rule."""
    width, r = 8, 4
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    for form in ("tt", "tk"):
        torch.manual_seed(0)
        model = nn.Sequential(*(layer for _ in range(24) for layer in (nn.Linear(d, n) for n, d in shapes)))
        names = [str(number) for number in range(len(model))]
        model = peft.get_peft_model(model, FactConfig(form=form, r=r, target_modules=names))
        for number, (n, d) in enumerate(shapes):
            cores = [model.base_model.model[number + len(shapes) * block].fact_core["default"] for block in range(24)]
            bound = (d // width * r) ** -0.5 if form == "tt" else (6 / (r + 24 * 12)) ** 0.5
            largest = max(core.abs().max().item() for core in cores)
            assert 0.93 * bound < largest <= bound, (form, n, d)


def test_oft_full_is_orthogonal():
    model = wrap("oft full")
    layer = adapted(model)
    matrix = layer.get_matrix("default")
    assert (matrix.T @ matrix - torch.eye(12)).abs().max() < 1e-5
    torch.testing.assert_close(layer.rotate(rows(), "default"), rows() @ matrix.T)
    torch.testing.assert_close(layer.rotate(rows(), "default", transpose=True), rows() @ matrix)
    blocks = layer.oft_full_blocks["default"]
    blocks.data += torch.eye(4)  # symmetric: changes nothing
    torch.testing.assert_close(layer.get_matrix("default"), matrix)


def test_svft_changes_singular_values():
    model = wrap("svft", random=False)
    layer = adapted(model)
    weight = layer.base_layer.weight.detach()
    _, s, _ = torch.linalg.svd(weight)
    layer.svft_m["default"].data.copy_(-s)  # the gate is one half
    torch.testing.assert_close(layer.get_delta("default"), -0.5 * weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9)])
def test_singular_factors_are_fixed(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    rank = min(shape)
    u, s, v = singular_factors(weight, rank)
    torch.testing.assert_close(u * s @ v.T, weight, rtol=1e-4, atol=1e-5)
    # The sign does not depend on the library: the largest entry of every left vector is positive.
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()
    state = torch.get_rng_state()
    for found, exact in zip(singular_factors(weight, 3, iterations=30), (u[:, :3], s[:3], v[:, :3]), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [t.shape for t in singular_factors(weight.to("meta"), 2)] == [(shape[0], 2), (2,), (shape[1], 2)]


def test_lora_xs_uses_the_largest_singular_vectors():
    layer = adapted(wrap("lora_xs"))
    u, s, v = singular_factors(layer.base_layer.weight.detach(), 5)
    expected = 0.5 * u @ layer.lora_xs_R["default"] @ (v * s).T
    torch.testing.assert_close(layer.get_delta("default"), expected, rtol=1e-4, atol=1e-6)


def test_small_tuner_quantised_weight():
    model = Toy()
    model.first.weight = nn.Parameter(torch.zeros(36, 12, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match="plain floating-point weight"):
        peft.get_peft_model(model, SvftConfig(target_modules=["first"]))
