"""Method name -> adapted model, with the number of parameters it promises. A method is one entry here and one config file."""

from qgoft.methods import added, givens, library, whole
from qgoft.methods.base import Adapted, Method, apply_method, method_names, parse_variant
from qgoft.methods.merged import merged, unload

__all__ = ["Adapted", "Method", "added", "apply_method", "givens", "library", "merged", "method_names", "parse_variant", "unload", "whole"]
