"""Methods from peft, with the settings of their papers."""

from collections.abc import Callable
from typing import Any

import peft
from peft import PeftConfig
from peft.tuners.adalora.layer import AdaLoraLayer
from torch import Tensor, nn

from qgoft.methods.registry import (
    ExtraState,
    Hparams,
    Method,
    MethodContext,
    Penalty,
    Shapes,
    exclusive_modifier,
    orthogonality_distances,
    register,
)
from qgoft.tuners.psoft import PsoftOutputConfig


def count_lora(shapes: Shapes, hparams: Hparams) -> int:
    """Count A [r, d] and B [n, r] per layer."""
    return sum(hparams["r"] * (n + d) for n, d in shapes)


def _alpha(scale: float, rank: int) -> Any:
    """Return lora_alpha, which peft divides by the rank; an int if possible, as peft declares it."""
    alpha = scale * rank
    return int(alpha) if float(alpha).is_integer() else alpha


def _lora(**fixed: Any) -> Callable[..., PeftConfig]:
    def make(hparams: Hparams, context: MethodContext) -> peft.PeftConfig:
        return peft.LoraConfig(r=hparams["r"], lora_alpha=_alpha(context.scale, hparams["r"]), lora_dropout=context.dropout, **fixed)

    return make


register(Method("lora", {"r": "rank"}, count_lora, _lora()))
register(Method("dora", {"r": "rank"}, lambda s, v: count_lora(s, v) + sum(n for n, _ in s), _lora(use_dora=True)))
register(Method("pissa", {"r": "rank"}, count_lora, _lora(init_lora_weights="pissa")))


ORTHOGONAL_WEIGHT = 0.1


def _adalora(hparams: Hparams, context: MethodContext) -> peft.PeftConfig:
    """Start at rank 1.5 r, as in the paper, and prune to the budget r between 10% and 70% of the steps.

    AdaLoRA's scripts start pruning between 9% and 18% and end between 42% and 56%, depending on the task (docs/DEVIATIONS.md).
    """
    steps = max(context.total_steps, 10)
    return peft.AdaLoraConfig(
        init_r=_adalora_start(hparams),
        target_r=hparams["r"],
        lora_alpha=_alpha(context.scale, _adalora_start(hparams)),
        lora_dropout=context.dropout,
        tinit=steps // 10,
        tfinal=3 * steps // 10,
        deltaT=max(1, steps // 100),
        orth_reg_weight=context.options.get("orthogonal_weight", ORTHOGONAL_WEIGHT),
        total_step=steps,
    )


def _adalora_start(hparams: Hparams) -> int:
    return hparams["r"] + (hparams["r"] + 1) // 2


def _allocate(model: nn.Module, step: int) -> None:
    model.base_model.update_and_allocate(step)


def _distance_of_triplets(hparams: Hparams) -> Penalty:
    """Return the mean of |P^T P - I|_F over P and Q of all layers (Zhang et al., 2023, equation 4, as peft's forward adds it). peft's
    wrapper bypasses that forward for models without a task type.
    """

    def distance(model: nn.Module) -> Tensor:
        layers = [module for module in model.modules() if isinstance(module, AdaLoraLayer)]
        rows = [part for layer in layers for part in (*layer.lora_A.values(), *(b.T for b in layer.lora_B.values()))]
        whole = [part.full_tensor() if hasattr(part, "full_tensor") else part for part in rows]
        return orthogonality_distances(part @ part.T for part in whole).mean()

    return distance


def _freeze_counts(model: nn.Module) -> None:
    """Freeze the rank counters, which peft makes trainable when it casts the parameters of a 16-bit model."""
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


def count_adalora(shapes: Shapes, hparams: Hparams) -> int:
    """Count P, Q and the singular values at the starting rank; pruning zeroes values but does not remove them."""
    start = _adalora_start(hparams)
    return sum(start * (n + d + 1) for n, d in shapes)


def _adalora_selectable_from(total: int) -> int:
    """Return the step of the last pruning. Before it the model exceeds its budget, and the saved adapter would differ from the evaluated
    one.
    """
    return total - 3 * max(total, 10) // 10 + 1


IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # names of the running averages in peft's allocator


def _remembered(model: nn.Module) -> tuple[dict[str, Tensor], Any]:
    """Return the importance of all weights so far, and the singular values that the budget has kept."""
    allocator, config = model.base_model.rankallocator, model.peft_config["default"]
    tensors = {f"{kind}.{name}": value for kind in IMPORTANCE for name, value in getattr(allocator, kind).items()}
    return tensors, config.rank_pattern or {}


def _remember(model: nn.Module, tensors: dict[str, Tensor], rank_pattern: Any) -> None:
    allocator, config = model.base_model.rankallocator, model.peft_config["default"]
    device = next(model.parameters()).device
    for kind in IMPORTANCE:
        hparams = {name.removeprefix(f"{kind}."): value.to(device) for name, value in tensors.items() if name.startswith(f"{kind}.")}
        setattr(allocator, kind, hparams)
    config.rank_pattern = rank_pattern


register(
    Method(
        "adalora",
        {"r": "final rank"},
        count_adalora,
        _adalora,
        penalty=_distance_of_triplets,
        own_penalty_weight=lambda settings: float(settings.options.get("orthogonal_weight", ORTHOGONAL_WEIGHT)),
        post_wrap=_freeze_counts,
        after_step=_allocate,
        selectable_from=_adalora_selectable_from,
        extra_state=ExtraState(_remembered, _remember),
    )
)


def count_oft(shapes: Shapes, hparams: Hparams) -> int:
    """Count the skew-symmetric entries of d / b blocks. (The GOFT paper counts full b x b blocks: `oft_paper`.)"""
    b = hparams["b"]
    return sum(d // b * (b * (b - 1) // 2) for _, d in shapes)


def _oft(is_exact: bool) -> Callable[..., PeftConfig]:
    def make(hparams: Hparams, context: MethodContext) -> peft.PeftConfig:
        _check_block(hparams["b"], context.shapes)
        # peft's default of five terms (k = 0..3) is not orthogonal for large angles; PSOFT's scripts ran OFTv2 with it.
        return peft.OFTConfig(
            r=0,
            oft_block_size=hparams["b"],
            use_cayley_neumann=not is_exact,
            num_cayley_neumann_terms=5,
            module_dropout=context.dropout,
        )

    return make


def _check_block(b: int, shapes: Shapes) -> None:
    for _, d in shapes:
        if d % b:
            raise ValueError(
                f"block size {b} does not divide the input width {d}; choose a divisor of all of {sorted({d for _, d in shapes})}"
            )


register(Method("oft", {"b": "block size"}, count_oft, _oft(is_exact=True)))
register(Method("oft_v2", {"b": "block size"}, count_oft, _oft(is_exact=False)))


def _boft(hparams: Hparams, context: MethodContext) -> peft.PeftConfig:
    _check_block(hparams["b"] * 2 ** (hparams["m"] - 1), context.shapes)
    return peft.BOFTConfig(boft_block_size=hparams["b"], boft_n_butterfly_factor=hparams["m"], boft_dropout=context.dropout)


def _setup_boft() -> None:
    from qgoft.tuners.boft import use_torch_block_diagonal

    use_torch_block_diagonal()


# m factors of d / b full blocks, and one scale per output.
register(
    Method(
        "boft",
        {"b": "block size", "m": "butterfly factors"},
        lambda s, v: sum(v["m"] * d * v["b"] + n for n, d in s),
        _boft,
        setup=_setup_boft,
    )
)


def _hra(hparams: Hparams, context: MethodContext) -> peft.PeftConfig:
    if hparams["r"] % 2:
        raise ValueError(f"rank {hparams['r']} is odd; HRA is initialised to the identity for even ranks only")
    return peft.HRAConfig(r=hparams["r"])


register(Method("hra", {"r": "reflections"}, lambda s, v: sum(v["r"] * d for _, d in s), _hra))


# Tables 6, 7, 16 and 17 and figures 3 and 8 of PSOFT.
PSOFT_MODIFIERS = {
    "strict": "R without scales",
    "alpha": "R with the scale of its input only",
    "beta": "R with the scale of its output only",
    "symmetric": "both frozen factors carry the root of the singular values",
    "borth": "the output's factor is the orthogonal one",
    "exact": "the exact Cayley map",
    "t#": "peft's num_cayley_neumann_terms instead of 7: a Neumann series of K = t - 2 (t3: K = 2)",
    "svd#": "iterations of a randomised decomposition instead of the full one",
}
EXCLUSIVE = [("strict", "alpha", "beta"), ("symmetric", "borth"), ("exact", "t")]


# peft's t terms sum k = 0..t-2 of (-Q)^k for t >= 5; the paper (section 4) and its first code sum k = 0..5.
PAPER_TERMS = 7


def count_psoft(shapes: Shapes, hparams: Hparams) -> int:
    """Count R by its r (r - 1) / 2 skew-symmetric entries, and alpha and beta of length r if trained (PSOFT, section 4)."""
    r = hparams["r"]
    scales = 0 if "strict" in hparams else 1 if "alpha" in hparams or "beta" in hparams else 2
    return len(shapes) * (r * (r - 1) // 2 + scales * r)


def _psoft(hparams: Hparams, context: MethodContext) -> peft.PeftConfig:
    smallest = min(min(shape) for shape in context.shapes)
    if hparams["r"] > smallest:
        raise ValueError(f"rank {hparams['r']} is larger than the smallest width {smallest}")
    if hparams.get("t") in (1, 2, 4):
        raise ValueError(f"t={hparams['t']}: peft's series has at least 3 terms, and 4 equals 3; allowed are 3, 5 and more")
    scales, factor, _ = (exclusive_modifier(hparams, modifiers) for modifiers in EXCLUSIVE)
    kind = PsoftOutputConfig if factor == "borth" else peft.PsoftConfig
    return kind(
        r=hparams["r"],
        psoft_alpha=hparams["r"],
        psoft_mag_a=scales in (None, "alpha"),
        psoft_mag_b=scales in (None, "beta"),
        ab_svd_init="pissa_init" if factor == "symmetric" else "psoft_init",
        psoft_svd="lowrank" if "svd" in hparams else "full",
        psoft_svd_lowrank_niter=hparams.get("svd", 10),
        # peft warns about terms that an exact map does not use.
        **({} if "exact" in hparams else {"use_cayley_neumann": True, "num_cayley_neumann_terms": hparams.get("t", PAPER_TERMS)}),
        psoft_dropout=context.dropout,
    )


register(Method("psoft", {"r": "rank"}, count_psoft, _psoft, modifiers=PSOFT_MODIFIERS))
