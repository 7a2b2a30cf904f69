"""Backbones and heads."""

from qgoft.models.load import check_fit, load_backbone, load_classifier, load_decoder, load_tokenizer

__all__ = ["check_fit", "load_backbone", "load_classifier", "load_decoder", "load_tokenizer"]
