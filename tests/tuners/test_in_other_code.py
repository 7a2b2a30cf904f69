"""The adapter in foreign models and loops: in-place operations, weights that are read, shared weights, torch.func, Trainer."""

import copy
import json
import subprocess
import sys
import warnings

import peft
import pytest
import torch
from accelerate import cpu_offload
from packaging.version import Version
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import (
    DebertaConfig,
    DebertaForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainingArguments,
)

import qgoft
from qgoft import GoftConfig, OrthogonalityPenaltyCallback, orthogonality_penalty
from qgoft.ops.givens import identity_blocks, mix_pairs
from qgoft.tuners import GoftLayer
from qgoft.tuners.trainer_callback import add_penalty_gradient

IN_PLACE = {
    "relu": lambda h: torch.relu_(h),
    "functional relu": lambda h: nn.functional.relu(h, inplace=True),
    "dropout": lambda h: nn.functional.dropout(h, 0.5, training=True, inplace=True),
    "add": lambda h: h.add_(1),
    "add tensor": lambda h: h.add_(torch.ones_like(h)),
    "iadd": lambda h: h.__iadd__(2),
    "mul": lambda h: h.mul_(2),
    "imul": lambda h: h.__imul__(0.5),
    "div": lambda h: h.div_(3),
    "sub": lambda h: h.sub_(1),
    "masked_fill": lambda h: h.masked_fill_(torch.zeros(h.shape, dtype=torch.bool), 0.0),
    "index_put": lambda h: h.index_put_((torch.tensor([0]),), torch.zeros(h.shape[1:])),
    "setitem": lambda h: h.__setitem__(0, 0.0) or h,
    "clamp": lambda h: h.clamp_(-1, 1),
    "tanh": lambda h: h.tanh_(),
    "sigmoid": lambda h: h.sigmoid_(),
    "copy": lambda h: h.copy_(h.detach() * 2),
    "transpose": lambda h: h.transpose_(0, -1),
    "zero": lambda h: h.zero_(),
}


def adapted(model, targets, variant="qgoft", **settings):
    torch.manual_seed(0)
    return peft.get_peft_model(model, GoftConfig(variant=variant, target_modules=targets, init_weights=False, **settings))


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16)])
@pytest.mark.parametrize("name", IN_PLACE)
def test_outputs_may_be_changed_in_place(name, shape):
    """The gradients equal those of the same layer with the merged weight."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 16))
    model = adapted(copy.deepcopy(plain), ["0"]).train()
    reference = adapted(copy.deepcopy(plain), ["0"]).merge_and_unload()
    found = []
    for layer in (model, reference):
        torch.manual_seed(1)
        x = torch.randn(shape, requires_grad=True)
        changed = IN_PLACE[name](layer(x))
        changed.square().sum().backward()
        found.append((changed.detach(), x.grad))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (16,)])
def test_output_is_an_ordinary_tensor(shape):
    x = torch.randn(shape, requires_grad=True)
    y = mix_pairs(x, identity_blocks(15))
    assert not y._is_view()
    y.relu_().sum().backward()
    torch.testing.assert_close(x.grad, (x > 0).float())


def test_deberta_v1_trains():
    config = DebertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pos_att_type=["c2p"]
    )
    model = adapted(DebertaForSequenceClassification(config), ["in_proj", "dense"]).train()
    model(input_ids=torch.randint(50, (2, 6)), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "in_proj" in n and p.requires_grad)


class Reads(nn.Module):
    """A parent that reads the weight of its child."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.outer(x @ self.inner.weight.T)


@pytest.mark.parametrize(
    ("model", "targets", "message"),
    [
        (lambda: nn.Sequential(nn.MultiheadAttention(8, 2)), ["out_proj"], "MultiheadAttention reads the weight of out_proj"),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16), ["linear1"], "TransformerEncoderLayer reads the weight of linear1"),
        (
            lambda: MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4)),
            ["dt_proj"],
            "MambaMixer reads the weight of dt_proj",
        ),
    ],
)
def test_layers_whose_weight_is_read_are_refused(model, targets, message):
    with pytest.raises(ValueError, match=message):
        adapted(model(), targets)


def test_siglip_head():
    """With all-linear: the message names the layer to exclude, and without it the rest is adapted."""
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    with pytest.raises(ValueError, match=r"exclude_modules=\['(\w+\.)*head\.attention\.out_proj'\]") as caught:
        adapted(SiglipVisionModel(config), "all-linear")
    name = str(caught.value).split("exclude_modules=['")[1].split("'")[0]
    model = adapted(SiglipVisionModel(config), "all-linear", exclude_modules=[name])
    layers = [name for name, module in model.named_modules() if isinstance(module, GoftLayer)]
    assert any(name.endswith("self_attn.out_proj") for name in layers)
    assert not any("head.attention" in name for name in layers)


def test_read_weights_are_detected():
    model = adapted(nn.Sequential(Reads()), ["inner", "outer"]).train()
    with pytest.warns(UserWarning, match=r"1 adapted layers were not called in the first forward pass, such as 0\.inner"):
        model(torch.randn(2, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 8))


def tiny_llama(**more):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, **more
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.filterwarnings("ignore:(?s).*tie_word_embeddings")
def test_merging_a_tied_head(tmp_path):
    model = adapted(tiny_llama(tie_word_embeddings=True), ["lm_head", "q_proj"]).eval()
    ids = torch.randint(40, (2, 5))
    embedding = model.base_model.model.get_input_embeddings().weight
    before, kept = model(input_ids=ids).logits, embedding.clone()
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    assert model.base_model.model.lm_head.base_layer.weight is embedding, "a shared weight is shared again"
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    plain = model.merge_and_unload()
    if Version(peft.__version__) < Version("0.19"):
        return  # which leaves the configuration tied, and warns
    assert not plain.config.tie_word_embeddings
    torch.testing.assert_close(embedding, kept, rtol=0, atol=0)
    plain.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(input_ids=ids).logits, before, rtol=0, atol=1e-5)


def test_merging_a_shared_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    x = torch.randn(3, 8)
    wrapped = adapted(model, ["0"]).eval()
    before = wrapped(x)
    wrapped.merge_adapter()
    torch.testing.assert_close(wrapped(x), before, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:(?s).*tie_word_embeddings")  # older peft warns also of untied ones
@pytest.mark.filterwarnings("ignore:Could not find a config file")
@pytest.mark.parametrize("kind", ["tuple", "omegaconf", "list", "set"])
def test_config_sequences_are_lists(tmp_path, kind):
    names = ["v_proj", "q_proj"]
    make = pytest.importorskip("omegaconf").OmegaConf.create if kind == "omegaconf" else {"tuple": tuple, "list": list, "set": set}[kind]
    config = GoftConfig(target_modules=make(names), modules_to_save=make(["lm_head"]), layers_to_transform=make([0]))
    model = peft.get_peft_model(tiny_llama(tie_word_embeddings=False), config)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["target_modules"], saved["modules_to_save"], saved["layers_to_transform"]) == (sorted(names), ["lm_head"], [0])


def test_offloaded_base_is_refused():
    model = tiny_llama()
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(ValueError, match=r"q_proj: its weight is offloaded .*load the model without offloading"):
        adapted(model, ["q_proj"])


def test_merging_some_active_adapters():
    model = adapted(nn.Sequential(nn.Linear(8, 8)), ["0"])
    model.add_adapter("more", GoftConfig(target_modules=["0"], init_weights=False))
    model.base_model.set_adapter(["default", "more"])
    x = torch.randn(2, 8)
    before = model(x)
    with pytest.raises(ValueError, match="merging more would drop the active adapter 'default'"):
        model.merge_adapter(adapter_names=["more"])
    model.merge_adapter()
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["goft", "goft_star", "qgoft"])
@pytest.mark.parametrize("width", [7, 200])
def test_second_derivatives(variant, width):
    """Second derivative of the loss's gradient norm, against the layer as a dense matrix."""
    torch.manual_seed(0)
    layer = adapted(nn.Sequential(nn.Linear(width, 5)), ["0"], variant).double()
    x = torch.randn(3, width, dtype=torch.float64, requires_grad=True)
    goft = layer.base_model.model[0]
    parameters = [p for p in layer.parameters() if p.requires_grad]

    def norm(y):
        grads = torch.autograd.grad(y.tanh().square().sum(), [x, *parameters], create_graph=True)
        return sum(grad.square().sum() for grad in grads)

    fast = torch.autograd.grad(norm(layer(x)), [x, *parameters])
    slow = torch.autograd.grad(norm(x @ goft.get_matrix("default") @ goft.base_layer.weight.T + goft.base_layer.bias), [x, *parameters])
    for one, two in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


def test_torch_func_transforms():
    model = adapted(nn.Sequential(nn.Linear(16, 4)), ["0"])
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    x = torch.randn(6, 16)

    def loss(parameters, row):
        return torch.func.functional_call(model, parameters, (row[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for name, grads in each.items():
        for row, grad in zip(x, grads, strict=True):
            (expected,) = torch.autograd.grad(model(row[None]).square().sum(), dict(model.named_parameters())[name])
            torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


# --- the penalty in a Trainer ------------------------------------------------------------------------------------------------------------


class Regression(nn.Module):
    """A model that takes loss keywords, as those of transformers do."""

    accepts_loss_kwargs = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(12, 12), nn.Linear(12, 1)

    def forward(self, x, labels=None, num_items_in_batch=None):
        y = self.head(self.first(x).tanh())[:, 0]
        summed = (y - labels).square().sum()
        return {"loss": summed / (num_items_in_batch if num_items_in_batch is not None else len(x)), "logits": y}


def data():
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(16, 12, generator=generator), "labels": torch.randn(16, generator=generator)}


class InOrder(Trainer):
    """Read the rows in their order, in every version of transformers."""

    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def by_trainer(directory, weight, *, batch=8, accumulation=1, clip=1.0, callback=True):
    model = adapted(Regression(), ["first"])
    arguments = TrainingArguments(
        str(directory), max_steps=2, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_grad_norm=clip, optim="sgd",
        learning_rate=0.1, lr_scheduler_type="constant", report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no",
        remove_unused_columns=False, disable_tqdm=True, seed=3,
    )  # fmt: skip
    rows = [{"x": x, "labels": y} for x, y in zip(*data().values(), strict=True)]
    InOrder(model, arguments, train_dataset=rows, callbacks=[OrthogonalityPenaltyCallback(weight)] if callback else []).train()
    assert arguments.max_grad_norm == clip
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def by_hand(weight, clip):
    model = adapted(Regression(), ["first"]).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)
    rows = data()
    for start in (0, 8):
        batch = {name: value[start : start + 8] for name, value in rows.items()}
        (model(**batch)["loss"] + weight * orthogonality_penalty(model)).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4)])
def test_callback_equals_the_manual_loop(tmp_path, batch, accumulation, clip):
    expected = by_hand(2.0, clip)
    found = by_trainer(tmp_path, 2.0, batch=batch, accumulation=accumulation, clip=clip)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    without = by_trainer(tmp_path, 0.0, clip=clip)
    assert any((without[name] - value).abs().max() > 1e-3 for name, value in expected.items())


def test_callback_unscales_first():
    """fp16: the gradients are scaled until the step."""
    found = []
    for scale in (1.0, 2.0**10):
        model = adapted(Regression(), ["first"]).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        optimizer.optimizer = optimizer
        optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        rows = data()
        optimizer.scaler.scale(model(**rows)["loss"]).backward()
        arguments = TrainingArguments("unused", max_grad_norm=0.2, use_cpu=True, report_to=[])
        callback = OrthogonalityPenaltyCallback(2.0)
        callback.on_train_begin(arguments, None, None, model=model)
        if scale > 1:
            optimizer.scaler.unscale_(optimizer)  # as the Trainer does to log the norm without clipping
        callback.on_pre_optimizer_step(arguments, None, None, model=model, optimizer=optimizer)
        optimizer.scaler.step(optimizer)
        found.append([p.detach() for p in model.parameters() if p.requires_grad])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_callback_without_blocks():
    arguments = TrainingArguments("unused", use_cpu=True, report_to=[])
    with pytest.warns(UserWarning, match="no trainable qgoft blocks"):
        OrthogonalityPenaltyCallback(0.1).on_train_begin(arguments, None, None, model=Regression())


def test_layer_of_one_input_is_refused():
    with pytest.raises(ValueError, match=r"0: width d is 1; rotations need at least 2 inputs"):
        adapted(nn.Sequential(nn.Linear(1, 4)), ["0"])


def test_callback_clips_once():
    model, callback = adapted(Regression(), ["first"]), OrthogonalityPenaltyCallback(1.0)
    one, two = (TrainingArguments("unused", max_grad_norm=norm, use_cpu=True, report_to=[]) for norm in (0.5, 0.7))
    callback.on_train_begin(one, None, None, model=model)
    callback.on_train_begin(one, None, None, model=model)  # after an exception
    assert (one.max_grad_norm, callback._max_grad_norm) == (0.0, 0.5)
    callback.on_train_begin(two, None, None, model=model)
    callback.on_train_end(two, None, None)
    assert two.max_grad_norm == 0.7


def test_callback_two_active_adapters():
    model = adapted(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), ["0"], "goft")
    model.add_adapter("more", GoftConfig(target_modules=["1"], init_weights=False))
    model.base_model.set_adapter(["default", "more"])
    model.train()(torch.randn(2, 8)).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "goft" in name)
    assert sum(p.requires_grad for p in model.parameters()) == 2


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_callback_invalid_weight(weight):
    with pytest.raises(ValueError, match="expected a finite number of at least 0"):
        OrthogonalityPenaltyCallback(weight)


def test_missing_penalty_warns_once(tmp_path):
    with pytest.warns(UserWarning, match="without the orthogonality penalty") as caught:
        by_trainer(tmp_path, 0, callback=False)
    assert len([one for one in caught if "without the orthogonality penalty" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without the orthogonality penalty")
        by_trainer(tmp_path, 0)
        by_trainer(tmp_path, 0.5)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_missing_penalty_warns_in_a_loop(options):
    model = adapted(nn.Sequential(nn.Linear(6, 6)), ["0"]).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1, **options)
    model(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="without the orthogonality penalty"):
        model(torch.randn(3, 6))


def test_callback_adds_the_gradient():
    model = adapted(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), ["0", "1"])
    blocks = [p for n, p in model.named_parameters() if "goft_blocks" in n]
    blocks[0].grad = torch.ones_like(blocks[0])
    penalty = add_penalty_gradient(model, 3.0)
    expected = torch.autograd.grad(3 * orthogonality_penalty(model), blocks)
    torch.testing.assert_close(blocks[0].grad, expected[0] + 1)
    torch.testing.assert_close(blocks[1].grad, expected[1])
    assert penalty.item() == pytest.approx(orthogonality_penalty(model).item())


def test_callback_is_imported_lazily():
    """Importing the package does not import torch."""
    program = "import sys, qgoft; assert 'torch' not in sys.modules; assert qgoft.OrthogonalityPenaltyCallback"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert "OrthogonalityPenaltyCallback" in qgoft.__all__
