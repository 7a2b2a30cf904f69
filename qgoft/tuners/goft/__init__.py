"""GOFT, GOFT* and qGOFT (ICML 2024) and the authors' second release, as one peft tuner with variants."""

from qgoft.tuners.goft.config import GoftConfig
from qgoft.tuners.goft.layer import GoftLayer
from qgoft.tuners.goft.model import GoftModel, orthogonality_penalty

__all__ = ["GoftConfig", "GoftLayer", "GoftModel", "orthogonality_penalty"]
