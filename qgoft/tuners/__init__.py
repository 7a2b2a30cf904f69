"""Adapters for peft. Importing this package registers their types."""

from qgoft.tuners._register import register_tuner
from qgoft.tuners.bottleneck import BottleneckConfig, BottleneckModel
from qgoft.tuners.fact import FactConfig, FactModel
from qgoft.tuners.goft import GoftConfig, GoftLayer, GoftModel, orthogonality_penalty
from qgoft.tuners.oft_full import OftFullConfig, OftFullModel
from qgoft.tuners.psoft import PsoftOutputConfig, PsoftOutputModel
from qgoft.tuners.svd import LoraXsConfig, LoraXsModel, SvftConfig, SvftModel

register_tuner("GOFT", GoftConfig, GoftModel)
register_tuner("BOTTLENECK", BottleneckConfig, BottleneckModel)
register_tuner("FACT", FactConfig, FactModel)
register_tuner("LORA_XS", LoraXsConfig, LoraXsModel)
register_tuner("OFT_FULL", OftFullConfig, OftFullModel)
register_tuner("PSOFT_OUTPUT", PsoftOutputConfig, PsoftOutputModel)
register_tuner("SVFT", SvftConfig, SvftModel)

__all__ = [
    "BottleneckConfig",
    "FactConfig",
    "GoftConfig",
    "GoftLayer",
    "GoftModel",
    "LoraXsConfig",
    "OftFullConfig",
    "PsoftOutputConfig",
    "SvftConfig",
    "orthogonality_penalty",
]
