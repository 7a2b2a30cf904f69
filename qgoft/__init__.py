"""qgoft: orthogonal fine-tuning by Givens rotations, and a suite that reproduces the experiments of two papers.

Importing this package registers the adapter type GOFT with peft: immediately if peft is imported already, otherwise when it is imported.
The import itself is light, so that tables can be built on a machine without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qgoft._import_hook import call_after_import

if TYPE_CHECKING:
    from qgoft.records.frame import load_results
    from qgoft.tuners import GoftConfig, GoftModel, orthogonality_penalty
    from qgoft.tuners.trainer_callback import OrthogonalityPenaltyCallback, add_penalty_gradient

__version__ = "0.1.0"
__all__ = [
    "GoftConfig",
    "GoftModel",
    "OrthogonalityPenaltyCallback",
    "__version__",
    "add_penalty_gradient",
    "load_results",
    "orthogonality_penalty",
]


def __getattr__(name: str) -> Any:
    if name in ("GoftConfig", "GoftModel", "orthogonality_penalty"):
        return getattr(import_module("qgoft.tuners"), name)
    if name == "load_results":
        return import_module("qgoft.records.frame").load_results
    if name in ("OrthogonalityPenaltyCallback", "add_penalty_gradient"):
        return getattr(import_module("qgoft.tuners.trainer_callback"), name)
    raise AttributeError(f"module 'qgoft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


call_after_import("peft", lambda: import_module("qgoft.tuners"))
