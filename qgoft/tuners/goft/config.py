"""Configuration of the GOFT family."""

from dataclasses import dataclass, field
from typing import Any, Literal

from peft.config import PeftConfig
from peft.utils import PeftType

from qgoft.ops.givens import PAIRINGS
from qgoft.tuners._base import normalize_lists, sort_sets

VARIANTS = ("goft", "goft_star", "qgoft", "goft_v2", "qgoft_v2")
ANGLES = ("tanh", "plain")


@dataclass
class GoftConfig(PeftConfig):
    """Adapter by a product of d-1 paired 2x2 blocks on the input of each target layer of width d.

    Raises:
        ValueError: an unknown variant, angle or pairing (goft_v2 and qgoft_v2 have their own), a bias other than "none", or layer indices
            together with a regular expression.
    """

    variant: Literal["goft", "goft_star", "qgoft", "goft_v2", "qgoft_v2"] = field(
        default="qgoft",
        metadata={
            "help": "goft: d-1 rotations. goft_star: and one scale per input feature, 2d-1 parameters. qgoft: 4(d-1) free entries, "
            "to be trained with `orthogonality_penalty`. goft_v2, qgoft_v2: the authors' second release, not orthogonal, for comparison."
        },
    )
    angle: Literal["tanh", "plain"] = field(
        default="tanh",
        metadata={"help": "Angle of goft, goft_star and goft_v2: pi * tanh(p) as released, or p itself as printed."},
    )
    pairing: Literal["tree", "butterfly", "sequential"] = field(
        default="tree",
        metadata={
            "help": "tree: the method. butterfly (d/2 log2 d blocks) and sequential (d-1 blocks, neighbour after neighbour) are dense and slow, to "
            "compare with."
        },
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of the linear layers to adapt, a regular expression, or 'all-linear'."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names or regular expression to leave out."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Indexes of the blocks to adapt."})
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of blocks, if it is not a common one."}
    )
    bias: Literal["none"] = field(default="none", metadata={"help": "Only 'none': the method trains no bias."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Further modules to train and save, such as the head."})
    init_weights: bool = field(default=True, metadata={"help": "Start at the identity. False draws random blocks, for tests."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.GOFT
        for name, value, allowed in (
            ("variant", self.variant, VARIANTS),
            ("angle", self.angle, ANGLES),
            ("pairing", self.pairing, PAIRINGS if not self.is_released_version else ("tree",)),
            ("bias", self.bias, ("none",)),
        ):
            if value not in allowed:
                raise ValueError(f"GoftConfig({name}={value!r}): allowed are {', '.join(map(repr, allowed))}")
        normalize_lists(self)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform needs a list of target_modules, not a regular expression")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain data in a fixed order."""
        return sort_sets(super().to_dict())

    @property
    def has_free_blocks(self) -> bool:
        """True if the blocks are free 2x2 matrices instead of rotations by an angle."""
        return self.variant in ("qgoft", "qgoft_v2")

    @property
    def is_released_version(self) -> bool:
        """True if the blocks are applied by the rule of the second release instead of the paper's."""
        return self.variant.endswith("_v2")
