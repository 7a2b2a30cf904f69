"""The GOFT family, implemented by the tuner of this package."""

from qgoft.methods.registry import Hparams, Method, MethodContext, Penalty, Shapes, exclusive_modifier, register
from qgoft.ops.givens import count_pairs
from qgoft.tuners import GoftConfig, orthogonality_penalty

# Parameters of a layer of width d with this many blocks (d - 1, except for a butterfly).
COUNTS = {
    "goft": lambda d, blocks: blocks,
    "goft_star": lambda d, blocks: blocks + d,
    "qgoft": lambda d, blocks: 4 * blocks,
    "goft_v2": lambda d, blocks: blocks,
    "qgoft_v2": lambda d, blocks: 4 * blocks,
}
# Slow orderings, to compare the tree with. The neighbours of the second release are goft_v2 and qgoft_v2.
ORDERINGS = {
    "butterfly": "every input reaches every output, d/2 log2 d blocks",
    "sequential": "neighbour after neighbour, d-1 blocks in d-1 steps",
}
# transformers.Trainer adds no penalty, which is very likely how PSOFT's qGOFT rows were run.
LAMBDA0 = {"lambda0": "no penalty: lambda is 0"}


def _register(name: str) -> None:
    has_free_blocks = name.startswith("qgoft")
    pairings = {} if name.endswith("_v2") else ORDERINGS
    modifiers = {**pairings, **(LAMBDA0 if has_free_blocks else {})}

    def pairing(hparams: Hparams) -> str:
        return exclusive_modifier(hparams, pairings) or "tree"

    def count(shapes: Shapes, hparams: Hparams) -> int:
        return sum(COUNTS[name](d, count_pairs(d, pairing(hparams))) for _, d in shapes)

    def config(hparams: Hparams, context: MethodContext) -> GoftConfig:
        return GoftConfig(variant=name, angle=context.options.get("angle", "tanh"), pairing=pairing(hparams))

    def penalty(hparams: Hparams) -> Penalty | None:
        # Rotations have orthogonal columns by construction.
        return orthogonality_penalty if has_free_blocks and "lambda0" not in hparams else None

    register(Method(name, {}, count, config, modifiers=modifiers, penalty=penalty))


for _name in COUNTS:
    _register(_name)
