"""Adapters for peft. Importing this package registers their types."""

from peft.utils import PeftType

from qgoft.tuners._register import register_tuner
from qgoft.tuners.bottleneck import BottleneckConfig, BottleneckModel
from qgoft.tuners.fact import FactConfig, FactModel
from qgoft.tuners.goft import GoftConfig, GoftLayer, GoftModel, orthogonality_penalty
from qgoft.tuners.oft_full import OftFullConfig, OftFullModel
from qgoft.tuners.svd import LoraXsConfig, LoraXsModel, SvftConfig, SvftModel

register_tuner("GOFT", GoftConfig, GoftModel)
register_tuner("BOTTLENECK", BottleneckConfig, BottleneckModel)
register_tuner("FACT", FactConfig, FactModel)
register_tuner("LORA_XS", LoraXsConfig, LoraXsModel)
register_tuner("OFT_FULL", OftFullConfig, OftFullModel)
register_tuner("SVFT", SvftConfig, SvftModel)
if "PSOFT" in PeftType.__members__:  # older versions of peft lack PSOFT
    from qgoft.tuners.psoft import PsoftOutputConfig, PsoftOutputModel

    register_tuner("PSOFT_OUTPUT", PsoftOutputConfig, PsoftOutputModel)

__all__ = [
    "BottleneckConfig",
    "FactConfig",
    "GoftConfig",
    "GoftLayer",
    "GoftModel",
    "LoraXsConfig",
    "OftFullConfig",
    "SvftConfig",
    "orthogonality_penalty",
]
