"""Adapters in the shape peft expects. Importing this package registers the adapter type GOFT with peft."""

from qgoft.tuners._register import register_goft
from qgoft.tuners.goft import GoftConfig, GoftLayer, GoftModel, orthogonality_error, orthogonality_penalty

register_goft(GoftConfig, GoftModel)

__all__ = ["GoftConfig", "GoftLayer", "GoftModel", "orthogonality_error", "orthogonality_penalty"]
