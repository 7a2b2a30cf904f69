"""Shared parts of the pretraining scripts: the optimiser with its schedule, and a word tokenizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast


class Descent:
    """AdamW with linear warmup for `rise` steps and linear decay to zero; gradients are clipped to norm 1."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, *, steps: int, rise: float, weight_decay: float = 0.01):
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, rate, betas=(0.9, 0.98), weight_decay=weight_decay)
        self.rates = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / rise) * (1 - step / steps))

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.rates.step()


def word_tokenizer(words: list[str], length: int, template: dict[str, Any], **special: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word, split at spaces.

    Args:
        length: maximum number of tokens.
        template: template of tokenizers' TemplateProcessing with the special tokens around a text.
        special: further special tokens, such as cls_token.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(**template)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="<s>",
        eos_token="</s>",
        **special,
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
    )
