"""qgoft: orthogonal fine-tuning by Givens rotations, and the experiments of two papers about it.

Importing this package makes peft know the adapter type GOFT: at once where peft is already imported, else as soon as it is.
Nothing heavy is imported here, so that tables can be rebuilt on a machine without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qgoft._import_hook import call_after_import

if TYPE_CHECKING:
    from qgoft.tuners import GoftConfig, GoftModel, orthogonality_penalty
    from qgoft.tuners.trainer_callback import OrthogonalityPenaltyCallback

__version__ = "0.1.0"
__all__ = ["GoftConfig", "GoftModel", "OrthogonalityPenaltyCallback", "__version__", "orthogonality_penalty"]


def __getattr__(name: str) -> Any:
    if name in ("GoftConfig", "GoftModel", "orthogonality_penalty"):
        return getattr(import_module("qgoft.tuners"), name)
    if name == "OrthogonalityPenaltyCallback":
        return import_module("qgoft.tuners.trainer_callback").OrthogonalityPenaltyCallback
    raise AttributeError(f"module 'qgoft' has no attribute {name!r}")


call_after_import("peft", lambda: import_module("qgoft.tuners"))
