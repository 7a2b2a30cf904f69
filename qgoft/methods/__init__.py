"""Registry of methods: name -> adapted model, with a checked number of trainable parameters."""

import importlib
import pkgutil

from qgoft.methods.merging import merge_and_unload, merged_for_eval
from qgoft.methods.registry import AdaptedModel, Method, apply_method, method_names, parse_variant

# Each module registers its methods.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["AdaptedModel", "Method", "apply_method", "merge_and_unload", "merged_for_eval", "method_names", "parse_variant"]
