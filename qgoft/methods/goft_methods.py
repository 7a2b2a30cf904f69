"""The GOFT family, by this project's tuner."""

from qgoft.methods.registry import Context, Method, Penalty, Shapes, Values, one_of, register
from qgoft.ops.givens import count_pairs
from qgoft.tuners import GoftConfig, orthogonality_penalty

# Parameters per layer of width d with so many blocks, which are d - 1 but for a butterfly.
COUNTS = {
    "goft": lambda d, blocks: blocks,
    "goft_star": lambda d, blocks: blocks + d,
    "qgoft": lambda d, blocks: 4 * blocks,
    "goft_v2": lambda d, blocks: blocks,
    "qgoft_v2": lambda d, blocks: 4 * blocks,
}
# Slow: what the tree is compared with. The neighbours of the second release are goft_v2 and qgoft_v2.
WORDS = {
    "butterfly": "every input reaches every output, d/2 log2 d blocks",
    "sequential": "neighbour after neighbour, d-1 blocks in d-1 steps",
}
# A stock transformers.Trainer adds no penalty, which is how PSOFT's qGOFT rows were very likely run.
LAMBDA0 = {"lambda0": "no penalty: lambda is 0"}


def _register(name: str) -> None:
    is_free = name.startswith("qgoft")
    pairings = {} if name.endswith("_v2") else WORDS
    words = {**pairings, **(LAMBDA0 if is_free else {})}

    def pairing(values: Values) -> str:
        return one_of(values, pairings) or "tree"

    def count(shapes: Shapes, values: Values) -> int:
        return sum(COUNTS[name](d, count_pairs(d, pairing(values))) for _, d in shapes)

    def config(values: Values, context: Context) -> GoftConfig:
        return GoftConfig(variant=name, angle=context.options.get("angle", "tanh"), pairing=pairing(values))

    def penalty(values: Values) -> Penalty | None:
        # Rotations have orthogonal columns by construction.
        return orthogonality_penalty if is_free and "lambda0" not in values else None

    register(Method(name, {}, count, config, words=words, penalty=penalty))


for _name in COUNTS:
    _register(_name)
