"""Backbones and heads."""

from qgoft.models.load import load_classifier, load_tokenizer

__all__ = ["load_classifier", "load_tokenizer"]
