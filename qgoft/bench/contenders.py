"""Contenders: every method on the same frozen weights, through the same registry as in training."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import peft
import torch
from torch import Tensor, nn

from qgoft.bench.baseline_products import MixedLinear, mix_neighbours_by_level, mix_sparse
from qgoft.bench.shapes import Shape
from qgoft.config.suites import known_methods
from qgoft.errors import QgoftError, check_choice
from qgoft.methods.registry import MethodContext, find_targets, method_named, parse_variant
from qgoft.ops.givens import Factors, identity_blocks, mix_pairs
from qgoft.ops.givens.rotate import apply_to_rows, apply_transpose_to_rows, backward_of_rows

REFERENCE = "lora r=8"
BYTES_OF_ROWS = 128 * 2**20  # of the rows that the product is timed on, so that they come from memory as they do in a model


@dataclass(frozen=True)
class Contender:
    """One way to adapt a module.

    Attributes:
        method: entry and variant in the registry of methods; None for products that exist only here.
        mix: replaces the layers by `MixedLinear` with this product.
        has_free_blocks: whether `mix` trains free blocks instead of angles.
        divide: fraction of the batch used on a CPU; such a contender is timed only with the reference, because it needs much memory.
        in_models: timed on whole models by default.
        is_quick: timed also on the shapes that are `Shape.quick`.
        is_printed: by default timed only for shapes whose published table lists it (`Shape.printed`).
    """

    name: str
    method: tuple[str, str] | None = None
    mix: Callable[[Tensor, Tensor], Tensor] | None = None
    has_free_blocks: bool = True
    divide: int = 1
    in_models: bool = False
    is_quick: bool = False
    is_printed: bool = False


CONTENDERS = [
    Contender("frozen", in_models=True, is_quick=True),
    Contender(REFERENCE, ("lora", "r8"), in_models=True, is_quick=True),
    Contender("goft", ("goft", "goft"), in_models=True, is_quick=True),
    Contender("qgoft", ("qgoft", "qgoft"), in_models=True, is_quick=True),
    Contender("goft_star", ("goft_star", "goft_star"), in_models=True),
    Contender("oft b=32", ("oft", "b32"), in_models=True, is_quick=True),
    Contender("psoft r=46", ("psoft", "r46"), in_models=True),
    Contender("dora r=8", ("dora", "r8"), in_models=True),
    Contender("hra r=8", ("hra", "r8"), in_models=True),
    Contender("goft_v2", ("goft_v2", "goft_v2"), in_models=True),
    Contender("boft b=8 m=2", ("boft", "b8m2"), in_models=True),
    Contender("full", ("full", "full")),
    Contender("oft_v2 b=32", ("oft_v2", "b32")),
    Contender("qgoft, sparse products", mix=mix_sparse),
    Contender("qgoft_v2 as released", mix=mix_neighbours_by_level, divide=4),
    Contender("goft_v2 as released", mix=mix_neighbours_by_level, has_free_blocks=False, divide=4, is_printed=True),
    Contender("adalora r=8", ("adalora", "r8"), is_printed=True),
    Contender("boft b=4 m=4", ("boft", "b4m4"), is_printed=True),
    Contender("boft b=2 m=2", ("boft", "b2m2"), is_printed=True),
    *(Contender(f"psoft r={r}", ("psoft", f"r{r}"), is_printed=True) for r in (32, 64, 128, 256, 512)),
    # For whole decoders, whose full decompositions would take longer than everything that is timed.
    *(Contender(f"psoft r={r}", ("psoft", f"r{r}-svd10"), is_printed=True) for r in (168, 194, 352, 424)),
]


def find_contender(name: str) -> Contender:
    """Return a contender of the list, or that of a method of `METHOD`: vera, lora@r2.

    Raises:
        QgoftError: an unknown name, a variant of another form, or a method without a peft configuration.
    """
    known = {contender.name: contender for contender in CONTENDERS}
    if name in known:
        return known[name]
    method, _, variant = name.partition("@")
    check_choice("contender", method, [*known, *known_methods()], "set --contenders")
    entry = method_named(method)
    parse_variant(entry, variant or method)
    if entry.config is None:
        raise QgoftError(
            f"contender {name}: it trains weights of the model instead of an adapter; those of the list are {', '.join(known)}"
        )
    return Contender(name, (method, variant or method))


def put_on(contender: Contender, base: nn.Module, shape: Shape) -> nn.Module:
    """Return the module with the contender on its layers, in training mode; the frozen weights are shared with `base`."""
    share = {} if contender.name == "full" else {id(p): p for p in base.parameters()}
    module = copy.deepcopy(base, share).train()
    head = {id(p) for name, p in module.named_parameters() if set(name.split(".")) & set(shape.head)}
    if contender.name == "full":
        return module.requires_grad_(True)
    module.requires_grad_(False)
    targets = find_targets(module, shape.targets)
    if contender.method:
        return _wrap(contender.method, module, shape, targets)
    if contender.mix:
        for name in targets:
            parent, _, child = name.rpartition(".")
            owner = module.get_submodule(parent)
            setattr(owner, child, MixedLinear(getattr(owner, child), contender.mix, has_free_blocks=contender.has_free_blocks))
    # Every contender trains the head; it is copied, since the weights are shared.
    for name in shape.head:
        setattr(module, name, copy.deepcopy(getattr(module, name)).requires_grad_(True))
    assert not head & {id(p) for p in module.parameters() if p.requires_grad}
    return module


def _wrap(method: tuple[str, str], module: nn.Module, shape: Shape, targets: dict[str, tuple[int, int]]) -> nn.Module:
    entry = method_named(method[0])
    assert entry.config is not None
    if entry.setup:
        entry.setup()
    config = entry.config(parse_variant(entry, method[1]), MethodContext(list(targets.values()), 1000, {}))
    config.target_modules = set(targets)
    config.modules_to_save = list(shape.head) or None
    return peft.get_peft_model(module, config).train()


def pass_gradients_below(module: nn.Module, shape: Shape) -> None:
    """Let backward reach the input of the first adapted layer for every contender, as in the middle of a larger model."""
    first = next(name for name, _ in module.named_modules() if re.search(rf"(^|\.)({shape.targets})$", name))
    module.get_submodule(first).register_forward_pre_hook(_want_gradient)


def _want_gradient(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    x, *rest = args
    return None if x.requires_grad else (x.detach().requires_grad_(), *rest)


@dataclass(frozen=True)
class Product:
    """The product without a layer.

    Attributes:
        call: called with rows and their gradient, both [N, d], blocks [d-1, 2, 2] that require a gradient, and factors of them.
        max_width: not timed beyond; None for a product that is quick at any width.
    """

    name: str
    call: Callable[[Tensor, Tensor, Tensor, Factors], object]
    max_width: int | None = None


def _forward_and_backward(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor, Factors], object]:
    def call(rows: Tensor, grads: Tensor, blocks: Tensor, _: Factors) -> object:
        rows = rows.detach().requires_grad_()
        return torch.autograd.grad(product(rows, blocks), (rows, blocks), grads)

    return call


def _gradients(rows: Tensor, grads: Tensor, _: Tensor, factors: Factors) -> object:
    return backward_of_rows(rows, grads, factors, transpose=True, overwrite=True, need_input=True)


# The gradient of a sparse matrix is dense, d x d: beyond this width it takes seconds.
SPARSE_WIDTH = 3072
PRODUCTS = [
    Product("copy", lambda rows, *_: rows.clone()),
    Product("apply", lambda rows, _, __, factors: apply_to_rows(rows, factors)),
    Product("transpose", lambda rows, _, __, factors: apply_transpose_to_rows(rows, factors)),
    Product("gradients", _gradients),
    Product("forward and backward", _forward_and_backward(mix_pairs)),
    Product("sparse, COO", _forward_and_backward(partial(mix_sparse, layout=torch.sparse_coo)), SPARSE_WIDTH),
    Product("sparse, CSR", _forward_and_backward(partial(mix_sparse, layout=torch.sparse_csr)), SPARSE_WIDTH),
]


def product_inputs(rows: int, d: int, device: str) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return rows and gradients [rows, d], as many of each as exceed a cache together, and blocks [d-1, 2, 2] near the identity."""
    count = max(2, BYTES_OF_ROWS // (4 * rows * d))
    blocks = identity_blocks(d - 1, device=device) + 0.1 * torch.randn(d - 1, 2, 2, device=device)
    x, g = ([torch.randn(rows, d, device=device) for _ in range(count)] for _ in range(2))
    return x, g, blocks.requires_grad_()
