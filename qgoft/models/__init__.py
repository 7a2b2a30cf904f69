"""Backbones and heads."""

from qgoft.models.load import load_backbone, load_classifier, load_decoder, load_tokenizer

__all__ = ["load_backbone", "load_classifier", "load_decoder", "load_tokenizer"]
