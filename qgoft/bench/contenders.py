"""Who is timed: every method on the same frozen weights, through the same entry as in training."""

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
from qgoft.methods.registry import REGISTRY, Context, find_targets, parse_variant
from qgoft.ops.givens import identity_blocks, mix_pairs

REFERENCE = "lora r=8"


@dataclass(frozen=True)
class Rival:
    """One way to adapt a module.

    Attributes:
        method: entry and variant in the registry of methods; None for those that only stand here.
        mix: replaces the layers by `MixedLinear` over this product.
        is_free: of `mix`, whether it trains whole blocks or angles.
        divide: the part of the batch it is timed with on a CPU; it is alone beside the reference, since it needs much memory.
        in_models: whether it is timed on whole models by default; the slowest are timed on layers and blocks alone.
        is_printed: timed by default where the table of a shape prints it (`Shape.printed`), and nowhere else.
    """

    name: str
    method: tuple[str, str] | None = None
    mix: Callable[[Tensor, Tensor], Tensor] | None = None
    has_free_blocks: bool = True
    divide: int = 1
    in_models: bool = False
    is_printed: bool = False


RIVALS = [
    Rival("frozen", in_models=True),
    Rival("full", ("full", "full")),
    Rival(REFERENCE, ("lora", "r8"), in_models=True),
    Rival("dora r=8", ("dora", "r8")),
    Rival("oft b=32", ("oft", "b32"), in_models=True),
    Rival("oft_v2 b=32", ("oft_v2", "b32")),
    Rival("boft b=8 m=2", ("boft", "b8m2")),
    Rival("hra r=8", ("hra", "r8")),
    Rival("psoft r=46", ("psoft", "r46")),
    Rival("goft", ("goft", "goft"), in_models=True),
    Rival("qgoft", ("qgoft", "qgoft"), in_models=True),
    Rival("qgoft, sparse products", mix=mix_sparse),
    Rival("qgoft_v2 as released", mix=mix_neighbours_by_level, divide=4),
    Rival("goft_v2 as released", mix=mix_neighbours_by_level, has_free_blocks=False, divide=4, is_printed=True),
    Rival("adalora r=8", ("adalora", "r8"), is_printed=True),
    Rival("boft b=4 m=4", ("boft", "b4m4"), is_printed=True),
    Rival("boft b=2 m=2", ("boft", "b2m2"), is_printed=True),
    *(Rival(f"psoft r={r}", ("psoft", f"r{r}"), is_printed=True) for r in (32, 64, 128, 256, 512)),
    # Of whole decoders, whose full decompositions would take longer than all that is timed.
    *(Rival(f"psoft r={r}", ("psoft", f"r{r}-svd10"), is_printed=True) for r in (168, 194, 352, 424)),
]


def put_on(rival: Rival, base: nn.Module, shape: Shape) -> nn.Module:
    """The module with the rival on its layers, in training mode; the frozen weights are shared with `base`."""
    share = {} if rival.name == "full" else {id(p): p for p in base.parameters()}
    module = copy.deepcopy(base, share).train()
    head = {id(p) for name, p in module.named_parameters() if set(name.split(".")) & set(shape.head)}
    if rival.name == "full":
        return module.requires_grad_(True)
    module.requires_grad_(False)
    targets = find_targets(module, shape.targets)
    if rival.method:
        return _wrap(rival.method, module, shape, targets)
    if rival.mix:
        for name in targets:
            parent, _, child = name.rpartition(".")
            owner = module.get_submodule(parent)
            setattr(owner, child, MixedLinear(getattr(owner, child), rival.mix, has_free_blocks=rival.has_free_blocks))
    # Heads are trained by every rival; copies, since the weights are shared.
    for name in shape.head:
        setattr(module, name, copy.deepcopy(getattr(module, name)).requires_grad_(True))
    assert not head & {id(p) for p in module.parameters() if p.requires_grad}
    return module


def _wrap(method: tuple[str, str], module: nn.Module, shape: Shape, targets: dict[str, tuple[int, int]]) -> nn.Module:
    entry = REGISTRY[method[0]]
    assert entry.config is not None
    if entry.setup:
        entry.setup()
    config = entry.config(parse_variant(entry, method[1]), Context(list(targets.values()), 1000, {}))
    config.target_modules = set(targets)
    config.modules_to_save = list(shape.head) or None
    return peft.get_peft_model(module, config).train()


def pass_gradients_below(module: nn.Module, shape: Shape) -> None:
    """Let backward go down to the input of the first adapted layer for every rival alike, as in the middle of a larger model."""
    first = next(name for name, _ in module.named_modules() if re.search(rf"(^|\.)({shape.targets})$", name))
    module.get_submodule(first).register_forward_pre_hook(_want_gradient)


def _want_gradient(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    x, *rest = args
    return None if x.requires_grad else (x.detach().requires_grad_(), *rest)


@dataclass(frozen=True)
class Product:
    """The product alone, without a layer: what `make bench` times against the sparse chain and over the widths."""

    name: str
    apply: Callable[[Tensor, Tensor], Tensor]


PRODUCTS = [
    Product("tree", mix_pairs),
    Product("sparse, COO", partial(mix_sparse, layout=torch.sparse_coo)),
    Product("sparse, CSR", partial(mix_sparse, layout=torch.sparse_csr)),
]


def product_inputs(rows: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Rows [rows, d] and blocks [d-1, 2, 2] near the identity, both wanting gradients."""
    blocks = identity_blocks(d - 1, device=device) + 0.1 * torch.randn(d - 1, 2, 2, device=device)
    return torch.randn(rows, d, device=device, requires_grad=True), blocks.requires_grad_()
