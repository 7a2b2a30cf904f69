"""Methods of the two papers that peft lacks, implemented by the tuners of this package."""

from collections.abc import Callable
from typing import Literal

import peft
from peft import PeftConfig
from peft.tuners.psoft.layer import PsoftLayer
from torch import Tensor, nn

from qgoft.methods.registry import Hparams, Method, MethodContext, Penalty, Shapes, exclusive_modifier, orthogonality_distances, register
from qgoft.tuners import BottleneckConfig, FactConfig, LoraXsConfig, OftFullConfig, SvftConfig
from qgoft.tuners.bottleneck import bottleneck_shape
from qgoft.tuners.fact import model_width
from qgoft.tuners.layerwise import check_rank


def count_bottleneck(shapes: Shapes, hparams: Hparams) -> int:
    """Count down [r, n], up [n, r] and their biases, after every target of n outputs."""
    r = hparams["r"]
    return sum(2 * r * n + r + n for n, _ in shapes)


def _bottleneck(form: Literal["houlsby", "pfeiffer"]) -> Callable[..., PeftConfig]:
    def make(hparams: Hparams, context: MethodContext) -> peft.PeftConfig:
        return BottleneckConfig(r=hparams["r"], form=form)

    return make


# Houlsby et al. (2019): after attention and feed-forward. Pfeiffer et al. (2021): after feed-forward. Both as in AdaLoRA's code. The target
# sets of the same names in configs/model select the modules.
register(Method("h_adapter", {"r": "bottleneck"}, count_bottleneck, _bottleneck("houlsby"), shape_of=bottleneck_shape))
register(Method("p_adapter", {"r": "bottleneck"}, count_bottleneck, _bottleneck("pfeiffer"), shape_of=bottleneck_shape))


def _matrices(shapes: Shapes) -> tuple[int, int]:
    """Return the width w of the model and the number of [w, w] matrices that its layers consist of."""
    width = model_width(shapes)
    return width, sum((n // width) * (d // width) for n, d in shapes)


def count_fact_tt(shapes: Shapes, hparams: Hparams) -> int:
    """Count U and V [w, r], and one core [r, r] per matrix."""
    (width, matrices), r = _matrices(shapes), hparams["r"]
    return 2 * width * r + matrices * r**2


def count_fact_tk(shapes: Shapes, hparams: Hparams) -> int:
    """Count U and V [w, r], C [r, r, r], and one vector [r] per matrix."""
    (width, matrices), r = _matrices(shapes), hparams["r"]
    return 2 * width * r + r**3 + matrices * r


def _fact(form: str) -> Callable[..., PeftConfig]:
    def make(hparams: Hparams, context: MethodContext) -> peft.PeftConfig:
        width = model_width(context.shapes)
        if hparams["r"] > width:
            raise ValueError(f"rank {hparams['r']} is larger than the width {width}")
        return FactConfig(
            form=form,
            r=hparams["r"],
            scale=context.scale,
            dropout=context.dropout,
            layout="formula" if "formula" in hparams else "code",
        )

    return make


register(Method("fact_tt", {"r": "rank"}, count_fact_tt, _fact("tt")))
register(
    Method(
        "fact_tk",
        {"r": "rank"},
        count_fact_tk,
        _fact("tk"),
        modifiers={"formula": "each core acts on its own slice, as in the paper, instead of interleaved as in its code"},
    )
)


def _lora_xs(hparams: Hparams, context: MethodContext) -> peft.PeftConfig:
    if exclusive_modifier(hparams, ("pissa", "formula")) == "pissa":
        check_rank(hparams["r"], *min(context.shapes, key=min))
        return peft.PsoftConfig(
            r=hparams["r"],
            psoft_alpha=hparams["r"],
            psoft_orth=False,
            psoft_mag_a=False,
            psoft_mag_b=False,
            ab_svd_init="pissa_init",
            psoft_dropout=context.dropout,
        )
    return LoraXsConfig(
        r=hparams["r"],
        scale=context.scale,
        dropout=context.dropout,
        svd_iterations=context.options.get("svd_iterations"),
        singular_values="output" if "formula" in hparams else "input",
    )


def _distance(hparams: Hparams) -> Penalty | None:
    """Return the sum over layers of |R^T R - I|_F, which gamma weights in PSOFT's table 6 (R starts at the identity)."""

    def distance(model: nn.Module) -> Tensor:
        cores = [rotation.weight for module in model.modules() if isinstance(module, PsoftLayer) for rotation in module.psoft_R.values()]
        return orthogonality_distances(r.T @ r for r in cores).sum()

    return distance if "pissa" in hparams else None


register(
    Method(
        "lora_xs",
        {"r": "rank"},
        lambda s, v: len(s) * v["r"] ** 2,
        _lora_xs,
        modifiers={
            "pissa": "R in place of the identity between PiSSA's factors, instead of next to the weight",
            "formula": "singular values at the output, as in the paper, instead of at the input as in its code",
        },
        penalty=_distance,
    )
)
# The plain form of SVFT: one value per singular vector, and one gate per layer.
register(Method("svft_p", {}, lambda s, v: sum(min(shape) + 1 for shape in s), lambda hparams, context: SvftConfig()))
# Full blocks, as the GOFT paper counts OFT: b d parameters per layer.
register(
    Method(
        "oft_paper", {"b": "block size"}, lambda s, v: sum(d * v["b"] for _, d in s), lambda v, context: OftFullConfig(block_size=v["b"])
    )
)
