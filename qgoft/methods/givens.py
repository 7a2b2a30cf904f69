"""The GOFT family, by this project's tuner."""

from qgoft.methods.base import Context, Method, Shapes, Values, register
from qgoft.tuners import GoftConfig, orthogonality_penalty

# Parameters per layer of width d.
COUNTS = {
    "goft": lambda d: d - 1,
    "goft_star": lambda d: 2 * d - 1,
    "qgoft": lambda d: 4 * (d - 1),
    "goft_v2": lambda d: d - 1,
    "qgoft_v2": lambda d: 4 * (d - 1),
}


def _register(name: str) -> None:
    def count(shapes: Shapes, values: Values) -> int:
        return sum(COUNTS[name](d) for _, d in shapes)

    def config(values: Values, context: Context) -> GoftConfig:
        return GoftConfig(variant=name, angle=context.options.get("angle", "tanh"))

    # Rotations have orthogonal columns by construction.
    register(Method(name, {}, count, config, penalty=lambda values: orthogonality_penalty if name.startswith("qgoft") else None))


for _name in COUNTS:
    _register(_name)
