"""Baselines against formulas of their authors' code, written here independently of the package, at random weights.

Sources: PSOFT f8f811b (own layers) and 820959e (through peft); LoRA-XS e50b1a8; SVFT 8303115; AdaLoRA d10f5eb (Houlsby and Pfeiffer
adapters); FacT (PETL-ViT) 026e4f1.
"""

import math

import peft
import pytest
import torch
from torch import nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

import qgoft  # noqa: F401  (registers the tuners)
from qgoft.methods.registry import REGISTRY, MethodContext, parse_variant

pytestmark = pytest.mark.fidelity


def wrap(name, variant, model, targets, **options):
    """Return the peft configuration of a method and variant on a model."""
    method = REGISTRY[name]
    modules = dict(model.named_modules())
    shapes = [method.shape_of(modules[target]) for target in targets]
    if method.setup:
        method.setup()
    config = method.config(parse_variant(method, variant), MethodContext(shapes, 100, options))
    config.target_modules = set(targets)
    return peft.get_peft_model(model, config).eval()


def linear(n, d):
    """Return a layer with well-separated singular values, as pretrained weights have, so that float32 determines their vectors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d, n)).double()
    u, _, vh = torch.linalg.svd(model[0].weight.data, full_matrices=False)
    model[0].weight.data = u @ torch.diag(torch.logspace(0, -2, min(n, d), dtype=torch.float64)) @ vh
    return model


def rows(count, d):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def psoft_skew(rotation, spectral_norm=None):
    """Return Q of peft's parameters, scaled to the given |Q|."""
    q = torch.zeros(rotation.size, rotation.size, dtype=torch.float64)
    q[rotation.rows, rotation.cols] = rotation.weight.detach().double()
    q = q - q.T
    if spectral_norm is not None:
        factor = spectral_norm / torch.linalg.matrix_norm(q, 2)
        rotation.weight.data.mul_(factor.to(rotation.weight))
        q = q * factor
    return q


def psoft_output(layer, q, alpha, beta, r, x, terms):
    """W_res x + b + B diag(beta) C diag(alpha) A x with A = V_r^T, B = U_r S_r; C = (I - K) sum_{k=0..terms} (-K)^k, K = -Q."""
    base = layer.base_layer
    weight = base.weight.detach().double()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    # Singular vectors are unique up to sign: use those of the layer, with which Q was trained.
    signs = (vh[:r] * layer._psoft_A_cache["default"]).sum(1).sign()
    a, b = signs[:, None] * vh[:r], u[:, :r] * s[:r] * signs
    k, eye = -q, torch.eye(r, dtype=torch.float64)
    if terms is None:
        cayley = torch.linalg.solve(eye + k, eye - k, left=False)
    else:
        cayley = (eye - k) @ sum(torch.linalg.matrix_power(-k, power) for power in range(terms + 1))
    return x @ (weight - b @ a).T + base.bias.detach().double() + x @ (b @ torch.diag(beta) @ cayley @ torch.diag(alpha) @ a).T


@pytest.mark.parametrize(("variant", "terms"), [("r12", 5), ("r12-t5", 3), ("r12-t6", 4), ("r12-t3", 2), ("r12-exact", None)])
def test_psoft_series(variant, terms):
    """The paper's K = 5 is peft's 7 terms; the later scripts' 5 terms sum k = 0..3."""
    model, x, r = wrap("psoft", variant, linear(40, 30).float(), ["0"]), rows(6, 30), 12  # peft decomposes float32 only
    layer = model.base_model.model[0]
    rotation = layer.psoft_R["default"]
    torch.manual_seed(1)
    rotation.weight.data.normal_()
    q = psoft_skew(rotation, 0.37)
    rotation.vector_a.data.normal_(1, 0.2)
    rotation.vector_b.data.normal_(1, 0.2)
    alpha, beta = rotation.vector_a.detach().double(), rotation.vector_b.detach().double()
    ours = model(x.float()).detach().double()
    assert relative(ours, psoft_output(layer, q, alpha, beta, r, x, terms)) < 1e-6
    if variant == "r12-t5":
        assert relative(ours, psoft_output(layer, q, alpha, beta, r, x, 5)) > 1e-3


def test_oft_v2_sums_four_powers():
    b, d = 8, 32
    model, x = wrap("oft_v2", f"b{b}", linear(20, d), ["0"]), rows(5, d)
    layer = model.base_model.model[0]
    torch.manual_seed(1)
    parameter = layer.oft_R["default"].weight
    parameter.data.normal_(0, 0.15)
    blocks, (upper, lower) = [], torch.triu_indices(b, b, 1)
    for entries in parameter.detach().double():
        q = torch.zeros(b, b, dtype=torch.float64)
        q[upper, lower] = entries
        q = q - q.T
        blocks.append((torch.eye(b) + q) @ sum(torch.linalg.matrix_power(q, power) for power in range(4)))
    rotation = torch.block_diag(*blocks)
    base = layer.base_layer
    outputs = [x @ matrix @ base.weight.detach().T + base.bias.detach() for matrix in (rotation, rotation.T)]
    assert min(relative(model(x).detach(), output) for output in outputs) < 1e-6


@pytest.mark.parametrize("variant", ["r6", "r6-formula"])
def test_lora_xs_decomposes_the_transpose(variant):
    """Code: W^T = P S Q^T, lora_A = (P_r S_r)^T, lora_B = Q_r. Paper: W = U S V^T, D = (U_r S_r) R V_r^T."""
    model, x, r = wrap("lora_xs", variant, linear(40, 30), ["0"]), rows(6, 30), 6
    layer = model.base_model.model[0]
    core = layer.lora_xs_R["default"]
    assert 0 < core.std() < 5e-5
    core.data.normal_(0, 0.5)
    base = layer.base_layer
    p, s, qh = torch.linalg.svd(base.weight.detach().T, full_matrices=False)
    lora_a, lora_b = (p[:, :r] * s[:r]).T, qh[:r].T
    if variant == "r6-formula":
        lora_a, lora_b = p[:, :r].T, qh[:r].T * s[:r]
    # Singular vectors are unique up to sign, which R absorbs: compare with R in the basis of this decomposition.
    a, b = layer.right["default"].T, layer.left["default"]
    flip_a = (lora_a * a).sum(1).sign()
    flip_b = (lora_b * b).sum(0).sign()
    expected = x @ (lora_b @ (flip_b[:, None] * core.detach().double() * flip_a) @ lora_a).T + base(x).detach()
    assert relative(model(x).detach(), expected) < 1e-6
    assert torch.allclose(a.norm(dim=1).double(), s[:r] if variant == "r6" else torch.ones(r, dtype=torch.float64))


def test_lora_xs_variants_take_different_steps():
    """Adam normalises by the size of a gradient, so the side of the singular values changes the first step."""
    deltas = []
    for variant in ("r6", "r6-formula"):
        model = wrap("lora_xs", variant, linear(40, 30), ["0"]).train()
        core = model.base_model.model[0].lora_xs_R["default"]
        core.data.zero_()
        optimizer = torch.optim.Adam([core], 1e-2)
        model(rows(6, 30)).square().sum().backward()
        optimizer.step()
        deltas.append(model.base_model.model[0].get_delta("default").detach())
    assert relative(deltas[0], deltas[1]) > 0.1


def test_svft_p_gate_and_random_start():
    model, x = wrap("svft_p", "svft_p", linear(40, 30), ["0"]), rows(6, 30)
    layer, k = model.base_model.model[0], 30
    m, gate = layer.svft_m["default"], layer.svft_gate["default"]
    assert gate.item() == 0
    assert abs(m.std().item() - math.sqrt(2 / k)) < 0.4 * math.sqrt(2 / k)
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {"svft_m", "svft_gate"}
    m.data.normal_()
    gate.data.fill_(0.7)
    base = layer.base_layer
    u, s, vh = torch.linalg.svd(base.weight.detach(), full_matrices=False)
    signs = (u * layer.left["default"]).sum(0).sign() * (vh * layer.right["default"].T).sum(1).sign()
    weight = u @ torch.diag(s + signs * m.detach().double() / (1 + math.exp(-0.7))) @ vh
    assert relative(model(x).detach(), x @ weight.T + base.bias.detach()) < 1e-6


def tiny_deberta(dropout):
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, relative_attention=True,
        position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        type_vocab_size=0, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0, pooler_hidden_size=24,
    )  # fmt: skip
    return DebertaV2ForSequenceClassification(config)


@pytest.mark.parametrize("name", ["h_adapter", "p_adapter"])
@pytest.mark.parametrize("training", [False, True])
def test_bottleneck_position_is_adaloras(name, training):
    """Houlsby: LN(h + up(swish(down(h))) + x), Pfeiffer: LN(up(relu(down(LN(h + x)))) + h + x), h = dropout(dense(y))."""
    model = tiny_deberta(0.3)
    pattern = ["attention.output", "output"] if name == "h_adapter" else ["output"]
    targets = [f"deberta.encoder.layer.{i}.{part}" for i in range(2) for part in pattern]
    model = wrap(name, "r4", model, targets).train(training)
    adapters = [module for module in model.modules() if type(module).__name__ == "BottleneckLayer"]
    assert len(adapters) == len(targets)
    for adapter in adapters:
        for store in (adapter.bottleneck_down, adapter.bottleneck_up):
            assert abs(store["default"].std().item() - 0.02) < 0.01  # initializer_range, both matrices
        for parameter in (adapter.bottleneck_down, adapter.bottleneck_down_bias, adapter.bottleneck_up, adapter.bottleneck_up_bias):
            parameter["default"].data.normal_(0, 0.5)
        block = adapter.base_layer
        y, x = torch.randn(3, 7, block.dense.in_features), torch.randn(3, 7, 24)
        torch.manual_seed(5)
        ours = adapter(y, x).detach()
        torch.manual_seed(5)
        h = nn.functional.dropout(y @ block.dense.weight.T + block.dense.bias, 0.3, training)
        a = h if name == "h_adapter" else nn.functional.layer_norm(h + x, (24,), block.LayerNorm.weight, block.LayerNorm.bias, 1e-7)
        a = a @ adapter.bottleneck_down["default"].T + adapter.bottleneck_down_bias["default"]
        a = a * torch.sigmoid(a) if name == "h_adapter" else a.clamp(min=0)
        a = a @ adapter.bottleneck_up["default"].T + adapter.bottleneck_up_bias["default"]
        expected = nn.functional.layer_norm(a + h + x, (24,), block.LayerNorm.weight, block.LayerNorm.bias, 1e-7).detach()
        assert relative(ours, expected) < 1e-6
    assert model(torch.randint(0, 50, (2, 5))).logits.shape == (2, 2)


@pytest.mark.parametrize("variant", ["r3", "r3-formula"])
def test_fact_tk_interleaves_the_feed_forward(variant):
    """fc1: reshape(FacTc[:, :, :4], [r, 4 r]); fc2: its transpose on the reshaped parts of the input."""
    r, w = 3, 12
    torch.manual_seed(0)
    base = nn.ModuleDict({"attention": nn.Linear(w, w), "fc1": nn.Linear(w, 4 * w), "fc2": nn.Linear(4 * w, w)})
    base.forward = lambda x: x
    model = wrap("fact_tk", variant, base, ["attention", "fc1", "fc2"], scale=1.5)
    tuner, layers = model.base_model, model.base_model.model
    for store in (tuner.fact_u, tuner.fact_v, tuner.fact_c, *(layer.fact_core for layer in layers.values())):
        store["default"].data.normal_()
    u, v, c = (store["default"].detach() for store in (tuner.fact_u, tuner.fact_v, tuner.fact_c))
    x, wide = torch.randn(5, w), torch.randn(5, 4 * w)

    def cores(layer):
        """[r, r, parts] = FacTc @ FacTp[:, parts of the layer]."""
        vectors = layers[layer].fact_core["default"].detach().reshape(-1, r)
        return torch.stack([(c * vector).sum(-1) for vector in vectors], -1)

    attention = (x @ u) @ cores("attention")[:, :, 0] @ v.T
    if variant == "r3":
        first = ((x @ u) @ cores("fc1").reshape(r, 4 * r)).reshape(5, 4, r) @ v.T
        second = (wide.reshape(5, 4, w) @ u).reshape(5, 4 * r) @ cores("fc2").reshape(r, 4 * r).T @ v.T
    else:
        first = torch.stack([(x @ u) @ cores("fc1")[:, :, part] @ v.T for part in range(4)], 1)
        second = sum(wide[:, part * w : (part + 1) * w] @ u @ cores("fc2")[:, :, part] @ v.T for part in range(4))
    for name, rows_in, expected in (("attention", x, attention), ("fc1", x, first.reshape(5, 4 * w)), ("fc2", wide, second)):
        layer = layers[name]
        assert relative((layer(rows_in) - layer.base_layer(rows_in)).detach(), 1.5 * expected) < 1e-5
        assert relative(rows_in @ layer.get_delta("default").detach().T, 1.5 * expected) < 1e-5


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_lora_scale_is_alpha_over_rank(name):
    for scale, alpha in ((1.0, 8), (2.0, 16)):
        model = wrap(name, "r8", nn.Sequential(nn.Linear(30, 40)), ["0"], scale=scale)
        layer = model.base_model.model[0]
        assert (model.peft_config["default"].lora_alpha, layer.scaling["default"]) == (alpha, scale)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("psoft", "r6"), ("lora_xs", "r6"), ("lora_xs", "r6-pissa"), ("lora", "r6"), ("dora", "r6"), ("pissa", "r6"),
        ("boft", "b4m1"), ("fact_tt", "r3"),
    ],
)  # fmt: skip
def test_adapter_dropout_reaches_the_adapter(name, variant):
    """Random in training, off in evaluation and without the option."""
    x = torch.randn(6, 32)
    for dropout in (0.5, 0.0):
        torch.manual_seed(0)
        model = wrap(name, variant, nn.Sequential(nn.Linear(32, 64)), ["0"], dropout=dropout)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
        outputs = []
        for seed in range(5):
            torch.manual_seed(seed)
            outputs.append((model.train()(x).detach(), model.eval()(x).detach()))
        assert all(torch.equal(outputs[0][1], evaluated) for _, evaluated in outputs)
        assert all(torch.equal(outputs[0][0], trained) for trained, _ in outputs) == (dropout == 0.0)


def test_oft_dropout_is_not_applied_by_peft():
    """peft 0.21.2 stores module_dropout and never applies it (docs/DEVIATIONS.md). This test fails with a peft that does."""
    x, outputs = torch.randn(6, 32), []
    model = wrap("oft_v2", "b8", nn.Sequential(nn.Linear(32, 64)), ["0"], dropout=0.5).train()
    assert model.peft_config["default"].module_dropout == 0.5
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    for seed in range(5):
        torch.manual_seed(seed)
        outputs.append(model(x).detach())
    assert all(torch.equal(outputs[0], output) for output in outputs)
