"""Models as shapes: built on the meta device, without weights, in a second."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from qgoft.errors import check_choice


def build_deberta(vocabulary: int = 128100, layers: int = 12) -> nn.Module:
    """Build DeBERTaV3-base: width 768, 12 heads, relative positions in 256 buckets."""
    config = DebertaV2Config(
        vocab_size=vocabulary,
        hidden_size=768,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=3072,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        pooler_hidden_size=768,
    )
    return DebertaV2ForSequenceClassification(config)


def build_llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, *, is_tied: bool = False) -> nn.Module:
    """Build a LLaMA decoder."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=is_tied,
    )
    return LlamaForCausalLM(config)


def build_minilm() -> nn.Module:
    """Build MiniLM-L6, the encoder of protocol small: BERT with 6 layers of width 384."""
    return BertForSequenceClassification(BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536))


# By their names in configs/model.
ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "deberta_v3_base": build_deberta,
    "vit_base": lambda: ViTForImageClassification(ViTConfig()),
    "minilm_l6": build_minilm,
    "llama2_7b": lambda: build_llama(4096, 11008, 32, 32, 32, 32000),
    "llama32_3b": lambda: build_llama(3072, 8192, 28, 24, 8, 128256, is_tied=True),
    "llama31_8b": lambda: build_llama(4096, 14336, 32, 32, 8, 128256),
}


def build_shapes(name: str) -> nn.Module:
    """Build a model on the meta device.

    Raises:
        QgoftError: an unknown name.
    """
    check_choice("model", name, list(ARCHITECTURES), "these are the models of the protocols")
    with torch.device("meta"):
        return ARCHITECTURES[name]()
