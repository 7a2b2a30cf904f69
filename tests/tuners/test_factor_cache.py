"""Factors built once for all layers: never stale, with the gradients of layers built one by one, for any graph."""

import copy
import io

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import qgoft  # noqa: F401  (registers the tuner)
from qgoft.ops import givens
from qgoft.tuners import GoftConfig, GoftLayer
from qgoft.tuners.goft import factor_cache as shared


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


class Stack(nn.Module):
    """Layers of two widths, so that two builds exist at once."""

    def __init__(self, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(depth))
        self.reentrant: bool | None = None

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


def make(variant="qgoft", **settings):
    torch.manual_seed(0)
    config = GoftConfig(variant=variant, target_modules=["up", "down"], init_weights=False, **settings)
    return peft.get_peft_model(Stack(), config)


def rows(seed=1):
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))


def grads_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert ours
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def expected_grads(model, losses):
    """The same through ordinary autograd, layer by layer."""
    model = copy.deepcopy(model)
    model.zero_grad()
    with givens.force_backend("graph"):
        for loss in losses:
            loss(model).backward()
    return grads_of(model)


def square(seed=1):
    return lambda model: model(rows(seed)).square().sum()


@pytest.fixture
def count_builds(monkeypatch):
    builds = []
    build = shared._build
    monkeypatch.setattr(shared, "_build", lambda key, members: builds.append((len(members), key.width)) or build(key, members))
    return builds


@pytest.mark.parametrize(("variant", "angle"), [("qgoft", "tanh"), ("goft", "tanh"), ("goft", "plain"), ("goft_star", "tanh")])
def test_cache_gradients_equal_autograd(variant, angle):
    model = make(variant, angle=angle)
    square()(model).backward()
    assert_same(grads_of(model), expected_grads(model, [square()]))


def test_cache_builds_once_per_width_and_step(count_builds):
    """Also under accumulation: three micro-batches, one build per width."""
    model = make()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for step in range(2):
        for micro in range(3):
            square(micro)(model).backward()
        assert sorted(count_builds) == [(3, 12), (3, 20)], step
        assert_same(grads_of(model), expected_grads(model, [square(micro) for micro in range(3)]))
        count_builds.clear()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("reentrant", [False, True])
def test_cache_with_gradient_checkpointing(reentrant, count_builds):
    model = make()
    model.base_model.model.reentrant = reentrant
    x = rows().requires_grad_()
    told = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda grad: told.append(grad is not None))
    model(x).square().sum().backward()
    assert sorted(count_builds) == [(3, 12), (3, 20)]
    # A backward that reaches one layer must not give gradients to the others' parameters, or DDP would reduce them.
    assert told == [True] * 6
    model.base_model.model.reentrant = None
    assert_same(grads_of(model), expected_grads(model, [square()]))


def test_cache_two_forwards_then_backwards():
    model = make()
    first, second = square(1)(model), square(2)(model)
    second.backward()
    first.backward()
    assert_same(grads_of(model), expected_grads(model, [square(1), square(2)]))


def test_cache_double_backward_of_a_graph():
    model = make()
    loss = square()(model)
    loss.backward(retain_graph=True)
    loss.backward()
    assert_same(grads_of(model), expected_grads(model, [square(), square()]))


def test_cache_loss_of_some_layers():
    model = make()
    first = model.base_model.model.layers[0]
    first(rows()).square().sum().backward()
    assert_same(grads_of(model), expected_grads(model, [lambda m: m.base_model.model.layers[0](rows()).square().sum()]))
    assert len(grads_of(model)) == 2


def test_cache_backward_after_a_parameter_update():
    model = make()
    loss = square()(model)
    expected = expected_grads(model, [square()])
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(1.0)
    loss.backward()
    assert_same(grads_of(model), expected)


WRITES = {
    "in place": lambda p: p.add_(0.5),
    "through data": lambda p: p.data.add_(0.5),
    "new data": lambda p: setattr(p, "data", p.data + 0.5),
    "one entry": lambda p: p.data.view(-1)[-1:].add_(0.5),
    "copied": lambda p: p.copy_(torch.randn_like(p)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@torch.no_grad()
def test_cache_is_never_stale(write):
    model = make()
    before = model(rows())
    for p in model.parameters():
        if p.requires_grad:
            write(p)
    after = model(rows())
    with givens.force_backend("graph"):
        torch.testing.assert_close(after, model(rows()))
    assert (after - before).abs().max() > 1e-3


def test_cache_replaced_parameter():
    model = make()
    square()(model).backward()
    layer = next(m for m in model.modules() if isinstance(m, GoftLayer))
    layer.goft_blocks["default"] = nn.Parameter(layer.goft_blocks["default"].detach().clone())
    model.zero_grad()
    square()(model).backward()
    assert layer.goft_blocks["default"].grad is not None


def test_cache_after_inference_mode():
    model = make()
    with torch.inference_mode():
        model(rows())
    square()(model).backward()
    assert_same(grads_of(model), expected_grads(model, [square()]))


def test_cache_with_frozen_layers():
    model = make()
    frozen = next(m for m in model.modules() if isinstance(m, GoftLayer))
    frozen.requires_grad_(False)
    square()(model).backward()
    assert_same(grads_of(model), expected_grads(model, [square()]))
    assert frozen.goft_blocks["default"].grad is None


def test_cache_of_two_adapters():
    model = make()
    model.add_adapter("other", GoftConfig(variant="goft", target_modules=["up"], init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    square()(model).backward()
    assert_same(grads_of(model), expected_grads(model, [square()]))


def test_cache_copies_and_pickles():
    model = make()
    square()(model).backward()
    copied = copy.deepcopy(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    for other in (copied, loaded):
        torch.testing.assert_close(other(rows()), model(rows()))
        layers = [m for m in other.modules() if isinstance(m, GoftLayer)]
        assert {id(layer.factor_cache) for layer in layers} == {id(layers[0].factor_cache)}
        assert layers[0].factor_cache is not next(m for m in model.modules() if isinstance(m, GoftLayer)).factor_cache
        with torch.no_grad():
            layers[0].goft_blocks["default"].add_(1.0)
        assert (other(rows()) - model(rows())).abs().max() > 1e-3


def test_cache_copy_of_a_layer():
    model = make()
    copied = copy.deepcopy(model.base_model.model.layers[0].up)
    assert copied.factor_cache.layers == [copied]
    torch.testing.assert_close(copied(rows()), model.base_model.model.layers[0].up(rows()))
    del model
    assert copied.factor_cache.layers == [copied]


def test_cache_autograd_grad_and_hooks():
    model = make()
    parameters = [p for p in model.parameters() if p.requires_grad]
    seen = []
    parameters[0].register_hook(lambda grad: seen.append(grad.clone()))
    grads = torch.autograd.grad(square()(model), parameters)
    assert torch.equal(seen[0], grads[0])
    assert all(p.grad is None for p in parameters)


def test_cache_frees_old_builds():
    """No reference cycle through the graph: a build is freed when the next one exists, without the garbage collector."""
    import gc
    import weakref

    model = make()
    gc.disable()
    try:
        square()(model).backward()
        store = next(m for m in model.modules() if isinstance(m, GoftLayer)).factor_cache
        trees = [weakref.ref(current.build.factors.stages[0]) for current in store._current.values()]
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)
        model.zero_grad()
        square()(model).backward()
        assert all(tree() is None for tree in trees)
    finally:
        gc.enable()


def test_layer_that_is_not_plain_is_called():
    """A hook, a patched forward or a subclass of the base layer is called; the result is the same."""
    model = make()
    expected = model(rows())
    layer = next(m for m in model.modules() if isinstance(m, GoftLayer))
    calls = []
    handle = layer.base_layer.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(model(rows()), expected)
    handle.remove()
    assert calls == [1]
    original = layer.base_layer.forward
    layer.base_layer.forward = lambda x: original(x) + 1
    assert (model(rows()) - expected).abs().max() > 1e-3


def test_trainable_base_weight_gets_a_gradient():
    model = make()
    layer = next(m for m in model.modules() if isinstance(m, GoftLayer))
    layer.base_layer.requires_grad_(True)
    square()(model).backward()
    assert_same(grads_of(model), expected_grads(model, [square()]))
    assert layer.base_layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotated_layer_under_autocast(dtype):
    model = make()
    with torch.autocast("cpu", dtype=dtype):
        h = model(rows())
    assert h.dtype == dtype
    h.float().square().sum().backward()
    exact = expected_grads(model, [square()])
    for name, grad in grads_of(model).items():
        assert grad.dtype == torch.float32
        assert (grad - exact[name]).norm() / exact[name].norm() < 0.05, name
