"""Registry of methods: name -> adapted model, with a checked number of trainable parameters."""

from qgoft.methods import baselines as whole
from qgoft.methods import extra_methods as added
from qgoft.methods import goft_methods as givens
from qgoft.methods import peft_methods as library
from qgoft.methods.merging import merge_and_unload, merged_for_eval
from qgoft.methods.registry import AdaptedModel, Method, apply_method, method_names, parse_variant

__all__ = [
    "AdaptedModel",
    "Method",
    "added",
    "apply_method",
    "givens",
    "library",
    "merge_and_unload",
    "merged_for_eval",
    "method_names",
    "parse_variant",
    "whole",
]
