"""PSOFT's ablations: the effect of each modifier of a variant."""

import dataclasses

import peft
import pytest
import torch
from peft.tuners.psoft.layer import PsoftLayer

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.methods.orthogonality import orthogonality_error
from qgoft.methods.registry import REGISTRY, parse_variant
from qgoft.train.run import run
from qgoft.tuners.psoft import PsoftOutputConfig, apply_svd_signs, read_svd_signs
from tests.methods.test_methods import build, ids

SIZES = {
    "r8": 28 + 16,
    "r8-strict": 28,
    "r8-alpha": 28 + 8,
    "r8-beta": 28 + 8,
    "r8-symmetric": 44,
    "r8-borth": 44,
    "r8-exact-strict": 28,
    "r8-t3": 44,
    "r8-t5": 44,
}


def layers(model):
    return [module for module in model.modules() if isinstance(module, PsoftLayer)]


def factors(model):
    return layers(model)[0]._get_psoft_ab_cache_buffers("default")


def with_other_signs(found, *, of_rows):
    """Return a decomposition that another library might give; vectors of V are rows or columns."""

    def decompose(*args, **kwargs):
        u, s, v = found(*args, **kwargs)
        signs = 1.0 - 2.0 * (torch.arange(len(s)) % 3 == 0)
        return u * signs, s, (signs[:, None] * v if of_rows else v * signs)

    return decompose


@pytest.mark.parametrize("variant", SIZES)
def test_psoft_variants_start_at_the_base(variant):
    _, plain = build("linear")
    _, adapted = build("psoft", f"method.variant={variant}")
    assert adapted.trainable == 18 * SIZES[variant]
    torch.testing.assert_close(adapted.model.eval()(input_ids=ids()).logits, plain.model.eval()(input_ids=ids()).logits, rtol=0, atol=2e-4)


def test_psoft_scales():
    found = {}
    for variant in ("r8", "r8-strict", "r8-alpha", "r8-beta"):
        rotation = layers(build("psoft", f"method.variant={variant}")[1].model)[0].psoft_R["default"]
        found[variant] = (rotation.vector_a is not None, rotation.vector_b is not None)
    assert found == {"r8": (True, True), "r8-strict": (False, False), "r8-alpha": (True, False), "r8-beta": (False, True)}


def test_psoft_orthogonal_factor():
    """The products are the same principal part; the singular values are on the output side, the input side, or both."""
    products = {}
    for variant, (is_a, is_b) in {"r8": (True, False), "r8-borth": (False, True), "r8-symmetric": (False, False)}.items():
        a, b = factors(build("psoft", f"method.variant={variant}")[1].model)
        eye = torch.eye(8)
        assert ((a @ a.T - eye).abs().max() < 1e-4) == is_a
        assert ((b.T @ b - eye).abs().max() < 1e-4) == is_b
        products[variant] = b @ a
    torch.testing.assert_close(products["r8-borth"], products["r8"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(products["r8-symmetric"], products["r8"], rtol=1e-3, atol=1e-5)


def test_psoft_randomised_decomposition():
    _, full = build("psoft", "method.variant=r8")
    _, quick = build("psoft", "method.variant=r8-svd20")
    assert layers(quick.model)[0].psoft_svd == {"default": "lowrank"}
    assert layers(quick.model)[0].psoft_svd_lowrank_niter == {"default": 20}
    weight = layers(full.model)[0].base_layer.weight
    lost = [(weight - b @ a).norm().item() for a, b in (factors(full.model), factors(quick.model))]
    assert lost[0] <= lost[1] < 1.01 * lost[0]


def test_psoft_neumann_error_by_terms():
    """A series of K = t - 2 is C (I - Q^(K+1)), C the exact map. Of R^T R - I it leaves 2 Q^(K+1) for odd K, and Q^(2K+2) for even K, since an odd
    power of the skew Q is skew. docs/LOG.md."""
    errors = {}
    for variant in ("r8-strict", "r8-strict-t3", "r8-strict-t5", "r8-strict-t6", "r8-strict-exact"):
        _, adapted = build("psoft", f"method.variant={variant}")
        torch.manual_seed(1)
        for layer in layers(adapted.model):
            layer.psoft_R["default"].weight.data.normal_(std=0.05)
        errors[variant] = orthogonality_error(adapted.model)
    assert errors["r8-strict-t5"] > 10 * errors["r8-strict-t3"] > 100 * errors["r8-strict-t6"]
    assert errors["r8-strict-t5"] > 10 * errors["r8-strict"] > 10 * errors["r8-strict-exact"]


@pytest.mark.parametrize(("method", "variant"), [("psoft", "r8"), ("psoft", "r8-borth"), ("psoft", "r8-svd5"), ("lora_xs", "r8-pissa")])
def test_psoft_adapter_with_other_signs(method, variant, monkeypatch):
    """They are unique except for their sign, and an adapter contains only R."""

    def built():
        model = build(method, f"method.variant={variant}")[1].model.eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for layer in layers(model):
                layer.psoft_R["default"].weight.add_(0.1 * torch.randn_like(layer.psoft_R["default"].weight))
        return model

    model = built()
    expected, signs = model(input_ids=ids()).logits, read_svd_signs(model)
    monkeypatch.setattr(torch.linalg, "svd", with_other_signs(torch.linalg.svd, of_rows=True))
    monkeypatch.setattr(torch, "svd_lowrank", with_other_signs(torch.svd_lowrank, of_rows=False))
    elsewhere = built()
    assert (elsewhere(input_ids=ids()).logits - expected).abs().max() > 1e-3
    apply_svd_signs(elsewhere, signs)
    torch.testing.assert_close(elsewhere(input_ids=ids()).logits, expected)


def test_psoft_ranks_of_tables_17_and_18():
    entry = REGISTRY["psoft"]
    shapes = 12 * [(768, 768)] * 4 + 12 * [(3072, 768), (768, 3072)]
    for rank, printed in {1: 144, 2: 360, 4: 1008, 32: 40320, 512: 9492480}.items():
        assert entry.num_params(shapes, parse_variant(entry, f"r{rank}")) == printed


@pytest.mark.parametrize(
    ("method", "variant", "message"),
    [
        ("psoft", "r8-loose", r"'loose' cannot follow r<rank>; allowed are -strict \(R without scales\), .*-t<number>"),
        ("psoft", "r8-strict-strict", "each once"),
        ("psoft", "r8-t", "'t' cannot follow"),
        ("psoft", "r8-strict3", "'strict3' cannot follow"),
        ("psoft", "r8-t0", "allowed are numbers from 1"),
        ("psoft", "r8-t1", "t=1: peft's series has at least 3 terms"),
        ("psoft", "r8-t2", "t=2: peft's series has at least 3 terms, and 4 equals 3; allowed are 3, 5 and more"),
        ("psoft", "r8-t4", "t=4: peft's series has at least 3 terms"),
        ("psoft", "r8-strict-alpha", "strict and alpha are mutually exclusive"),
        ("psoft", "r8-borth-symmetric", "symmetric and borth are mutually exclusive"),
        ("psoft", "r8-exact-t3", "exact and t are mutually exclusive"),
        ("lora", "r8-strict", "this method has no modifiers"),
        ("qgoft", "qgoft-strict", "'strict' cannot follow qgoft; allowed are -butterfly"),
        ("goft_v2", "goft_v2-butterfly", "'butterfly' cannot follow goft_v2; this method has no modifiers"),
        ("lora_xs", "r97-pissa", "rank 97 does not fit"),
    ],
)
def test_psoft_unknown_modifiers(method, variant, message):
    with pytest.raises(QgoftError, match=message):
        build(method, f"method.variant={variant}")


def test_lora_xs_gamma_keeps_r_orthogonal(tmp_path):
    """PSOFT's table 6: R between PiSSA's factors; its distance is weighted in the loss and recorded."""
    found = {}
    for gamma in (0.0, 1.0):
        words = ["method=lora_xs", "method.variant=r16-pissa", f"method.penalty={gamma}", "task=glue/rte", "optim.lr=1e-2"]
        record = run(compose_settings([*words, "train.max_steps=30", "train.num_evals=1", "selection=last", f"results.root={tmp_path}"]))
        assert record["params"]["trainable"] == 18 * 256
        found[gamma] = record["orthogonality"]
    assert found[1.0]["penalty"] < 0.5 * found[0.0]["penalty"]
    assert found[1.0]["max_error"] < found[0.0]["max_error"]


def test_penalty_without_parameters_is_refused():
    for method in ("lora", "goft", "lora_xs"):
        with pytest.raises(QgoftError, match=rf"method.penalty=0.1: {method}@.* has nothing to penalise"):
            build(method, "method.penalty=0.1")


def test_lora_xs_output_side_reloads(tmp_path):
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Linear(20, 6))
    config = PsoftOutputConfig(r=4, psoft_alpha=4, target_modules=["0", "1"], init_weights=False)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    model = peft.get_peft_model(base, dataclasses.replace(config)).eval()
    model.save_pretrained(tmp_path)
    again = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Linear(20, 6))
    again.load_state_dict(state)
    loaded = peft.PeftModel.from_pretrained(again, tmp_path).eval()
    x = torch.randn(3, 12)
    assert torch.equal(loaded(x), model(x))
    assert loaded.peft_config["default"].peft_type == "PSOFT_OUTPUT"
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"supported is torch.nn.Linear"):
        peft.get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), PsoftOutputConfig(r=1, target_modules=["0"]))
