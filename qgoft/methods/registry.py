"""Methods, and their application to a model with a checked number of trainable parameters.

Shapes: an adapted layer has n outputs and d inputs; a list of shapes is [(n, d), ...] over all adapted layers.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from peft import PeftConfig
from torch import Tensor, nn

from qgoft.config.settings import MethodSettings, ModelSettings
from qgoft.config.suites import known_methods
from qgoft.errors import QgoftError, check_choice
from qgoft.tuners import orthogonality_penalty
from qgoft.tuners.layerwise import linear_shape

Shapes = list[tuple[int, int]]
Hparams = dict[str, int]  # of a variant: b8m2 -> {"b": 8, "m": 2}, r64-strict-t3 -> {"r": 64, "strict": 1, "t": 3}
Penalty = Callable[[nn.Module], Tensor]
ShapeOf = Callable[[nn.Module], tuple[int, int] | None]


@dataclass(frozen=True)
class ExtraState:
    """State of a method beyond its parameters, for checkpoints: tensors and JSON data.

    Attributes:
        read: returns it from a peft model.
        write: restores it.
    """

    read: Callable[[nn.Module], tuple[dict[str, Tensor], Any]]
    write: Callable[[nn.Module, dict[str, Tensor], Any], None]


@dataclass(frozen=True)
class MethodContext:
    """Inputs of a method beyond its own settings."""

    shapes: Shapes
    total_steps: int
    options: dict[str, Any]

    @property
    def scale(self) -> float:
        """Factor of the update, 1 by default."""
        return self.options.get("scale", 1.0)

    @property
    def dropout(self) -> float:
        """Dropout rate of the adapter; 0 if the option is absent or null."""
        return self.options.get("dropout") or 0.0


@dataclass(frozen=True)
class Method:
    """One algorithm.

    Attributes:
        hparams: letters of a variant and their meaning, such as {"r": "rank"}; empty if the method has no hyperparameter.
        modifiers: modifiers that may follow, each after a dash, with their meaning; `t#` takes a number, as in r64-t3.
        num_params: formula of the number of trainable parameters without the head; None if it depends on the whole backbone, or is only
            known from the built model.
        config: builds the peft configuration, without targets; None for methods that train existing parameters.
        penalty: returns the penalty of a variant, or None if it has none.
        own_penalty_weight: weight of the penalty from an option of the method, instead of method.penalty.
        post_wrap: called with the peft model after it is built.
        is_trainable: True if a backbone parameter of this name is trained, for methods without a peft configuration.
        after_step: called with (peft model, number of the finished optimiser step) before the gradients are cleared.
        setup: called once before the model is wrapped.
        shape_of: (outputs, inputs) of a module that it can adapt, otherwise None.
        selectable_from: from the total number of steps, the first step after which the model has its final form and may be selected.
        extra_state: state of `after_step` for checkpoints.
        are_hparams_optional: a variant may lack some of the hyperparameters, or be the name of the method.
    """

    name: str
    hparams: dict[str, str] = field(default_factory=dict)
    modifiers: dict[str, str] = field(default_factory=dict, kw_only=True)
    penalty: Callable[[Hparams], Penalty | None] = field(default=lambda hparams: None, kw_only=True)
    own_penalty_weight: Callable[[MethodSettings], float] | None = field(default=None, kw_only=True)
    post_wrap: Callable[[nn.Module], None] | None = field(default=None, kw_only=True)
    num_params: Callable[[Shapes, Hparams], int] | None = None
    config: Callable[[Hparams, MethodContext], PeftConfig] | None = None
    is_trainable: Callable[[str], bool] | None = None
    after_step: Callable[[nn.Module, int], None] | None = None
    setup: Callable[[], None] | None = None
    shape_of: ShapeOf = linear_shape
    selectable_from: Callable[[int], int] | None = None
    extra_state: ExtraState | None = None
    are_hparams_optional: bool = False

    def penalty_weight(self, settings: MethodSettings) -> float:
        """Return the weight of the penalty in the loss."""
        return self.own_penalty_weight(settings) if self.own_penalty_weight else settings.penalty


@dataclass
class AdaptedModel:
    """A model ready for training, with its parameter counts."""

    model: nn.Module
    is_peft: bool
    trainable: int  # without the head
    head: int
    total: int
    head_names: set[str]  # parameter names of the head
    after_step: Callable[[nn.Module, int], None] | None
    selectable_from: int = 0
    penalty: Penalty | None = None
    penalty_weight: float = 0.0
    extra_state: ExtraState | None = None


REGISTRY: dict[str, Method] = {}
# Largest number in a variant: no layer is wider.
MAX_HPARAM = 65_536


def register(method: Method) -> Method:
    """Register a method under its name.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in REGISTRY:
        raise ValueError(f"method {method.name} is registered twice")
    REGISTRY[method.name] = method
    return method


def method_names() -> list[str]:
    return sorted(REGISTRY)


def method_named(name: str) -> Method:
    """Return a registered method, or that of a tuner type of peft.

    Raises:
        QgoftError: an unknown method, or a tuner that does not adapt layers.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    check_choice("method", name, known_methods(), "change METHOD")
    from qgoft.methods.any_peft import peft_method

    return peft_method(name)


def parse_variant(method: Method, variant: str) -> Hparams:
    """Parse a variant: letters with numbers, such as r8 or b8m2 (the method's name if it has no hyperparameter), then modifiers after
    dashes.

    Raises:
        QgoftError: it does not have this form.
    """
    wanted = "".join(f"{letter}<{meaning}>" for letter, meaning in method.hparams.items()) or method.name
    head, *modifiers = variant.split("-")
    parts = re.findall(r"([a-z]+)(\d+)", head) if method.hparams else []
    known = "".join(letter + number for letter, number in parts) if method.hparams else method.name
    letters = [letter for letter, _ in parts]
    is_complete = letters == list(method.hparams) or (
        method.are_hparams_optional and len(set(letters)) == len(letters) and set(letters) <= set(method.hparams)
    )
    if method.are_hparams_optional and head == method.name:
        parts = []
    elif known != head or not is_complete or not head:
        raise QgoftError(f"variant {variant!r} of method {method.name}: expected the form {wanted}; change METHOD or method.variant")
    hparams = {letter: int(number) for letter, number in parts}
    for word in modifiers:
        match = re.fullmatch(r"([a-z_]+)(\d*)", word)
        name = match[1] if match else word
        if match is None or name in hparams or (f"{name}#" if match[2] else name) not in method.modifiers:
            allowed = ", ".join(f"-{word.replace('#', '<number>')} ({meaning})" for word, meaning in method.modifiers.items())
            hint = f"allowed are {allowed}, each once" if allowed else "this method has no modifiers"
            raise QgoftError(f"variant {variant!r} of method {method.name}: {word!r} cannot follow {wanted}; {hint}")
        hparams[name] = int(match[2] or 1)
    if hparams and not 1 <= min(hparams.values()) <= max(hparams.values()) <= MAX_HPARAM:
        raise QgoftError(
            f"variant {variant!r} of method {method.name}: allowed are numbers from 1 to {MAX_HPARAM:,}; change METHOD or method.variant"
        )
    return hparams


def exclusive_modifier(hparams: Hparams, modifiers: Iterable[str]) -> str | None:
    """Return which one of some modifiers a variant has, or None.

    Raises:
        ValueError: it has several of them.
    """
    chosen = [word for word in modifiers if word in hparams]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are mutually exclusive; keep one")
    return chosen[0] if chosen else None


def orthogonality_distances(products: Iterable[Tensor]) -> Tensor:
    """Return |Q^T Q - I|_F of every product Q^T Q [r, r] -> [number of products], on the device of the first."""
    found = [torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)) for product in products]
    return torch.stack([distance.to(found[0].device) for distance in found])


def find_targets(model: nn.Module, pattern: str, shape_of: ShapeOf = linear_shape) -> dict[str, tuple[int, int]]:
    """Return the modules whose full name matches and that have a shape (n outputs, d inputs), with that shape."""
    named = ((name, shape_of(module)) for name, module in model.named_modules() if re.fullmatch(pattern, name))
    return {name: shape for name, shape in named if shape is not None}


def apply_method(model: nn.Module, spec: ModelSettings, settings: MethodSettings, *, total_steps: int) -> AdaptedModel:
    """Apply a method to a model: freeze the backbone except for the method, make the head trainable, and check the parameter count.

    Raises:
        QgoftError: an unknown method, variant or target set; no layer of the model matches; a layer does not fit.
        RuntimeError: the number of trainable parameters differs from the formula.
    """
    method = method_named(settings.name)
    hparams = parse_variant(method, settings.variant)
    if settings.penalty and (method.own_penalty_weight or method.penalty(hparams) is None):
        reason = "sets the weight of its penalty in method.options" if method.own_penalty_weight else "has nothing to penalise"
        raise QgoftError(f"method.penalty={settings.penalty}: {settings.name}@{settings.variant} {reason}; set it to 0")
    check_choice("target set method.targets", settings.targets, list(spec.target_sets), f"configs/model lists them for {spec.name}")
    head = [name for name, _ in model.named_parameters() if set(name.split(".")) & set(spec.head_modules)]
    if spec.head_modules and not head:
        raise QgoftError(f"model {spec.name} has no module named {' or '.join(spec.head_modules)}; correct `head_modules` in its config")
    pattern = spec.target_sets[settings.targets]
    targets = find_targets(model, pattern, method.shape_of)
    if not targets:
        present = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise QgoftError(
            f"no linear layer of this {type(model).__name__} matches {settings.targets} = {pattern!r} of model={spec.name}; "
            f"its linear layers are named like {', '.join(present[:3])}; set MODEL to the config of these weights, or set method.targets"
        )
    if method.setup:
        method.setup()
    if method.config is None:
        return _free_parameters(model, method, hparams, list(targets.values()), set(head))
    return _wrap(model, spec, settings, method, hparams, targets, total_steps)


def _free_parameters(model: nn.Module, method: Method, hparams: Hparams, shapes: Shapes, head: set[str]) -> AdaptedModel:
    assert method.is_trainable is not None
    trainable = 0
    for name, parameter in model.named_parameters():
        is_free = name not in head and method.is_trainable(name)
        if is_free or name in head:
            # Rounding to 16 bits would lose an update of a thousandth, so trainable parameters are float32, as adapters are.
            parameter.data = parameter.data.float()
        parameter.requires_grad_(is_free or name in head)
        trainable += parameter.numel() * is_free
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and any(p.requires_grad for p in module.parameters(recurse=False)):
            module.float()  # LayerNorm needs weight and bias in one dtype
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return AdaptedModel(model, False, trainable, sum(sizes[n] for n in head), sum(sizes.values()), head, method.after_step)


def _wrap(
    model: nn.Module, spec: ModelSettings, settings: MethodSettings, method: Method, hparams: Hparams, targets: dict, total_steps: int
) -> AdaptedModel:
    assert method.config is not None
    shapes = list(targets.values())
    total = sum(p.numel() for p in model.parameters())
    try:
        config = method.config(hparams, MethodContext(shapes, total_steps, settings.options))
        config.target_modules = set(targets)
        config.modules_to_save = list(spec.head_modules) or None  # a decoder has no new head
        wrapped = peft.get_peft_model(model, config)
        if method.post_wrap:
            method.post_wrap(wrapped)
        orthogonality_penalty(wrapped)  # marks the adapters as penalised: method.penalty decides, and 0 is deliberate
    except (ValueError, TypeError) as error:
        raise QgoftError(f"method {settings.name}@{settings.variant} does not fit model {spec.name}: {error}") from error
    free = {name: parameter.numel() for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    head = {name for name in free if ".modules_to_save." in name}
    for name, parameter in wrapped.named_parameters():
        if name in head:
            parameter.data = parameter.data.float()  # as adapters are
    trainable = sum(size for name, size in free.items() if name not in head)
    expected = trainable if method.num_params is None else method.num_params(shapes, hparams)
    if trainable != expected:
        raise RuntimeError(
            f"{settings.name}@{settings.variant} should have {expected:,} trainable parameters over {len(shapes)} layers, but the built model has "
            f"{trainable:,}; the count would not match the table"
        )
    if not trainable:
        raise QgoftError(f"method {settings.name}@{settings.variant} trains no weight of model {spec.name} but its head; set its options")
    selectable_from = method.selectable_from(total_steps) if method.selectable_from else 0
    in_head = sum(free[n] for n in head)
    return AdaptedModel(
        model=wrapped,
        is_peft=True,
        trainable=trainable,
        head=in_head,
        total=total + trainable,
        head_names=head,
        after_step=method.after_step,
        selectable_from=selectable_from,
        penalty=method.penalty(hparams),
        penalty_weight=method.penalty_weight(settings),
        extra_state=method.extra_state,
    )
