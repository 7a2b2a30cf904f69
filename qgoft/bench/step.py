"""A whole training step - forward, backward, AdamW - of a model of published shape with random weights, adapter against adapter.

The repeats are interleaved, so that a slow moment of a shared machine falls on all; what is reported is the median of the ratios to
LoRA r=8 taken repeat by repeat, with the middle half of them.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from qgoft.tuners import GoftConfig, orthogonality_penalty

TARGETS = ["query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense", "output.dense"]
REFERENCE = "lora r=8"


@dataclass(frozen=True)
class Shape:
    """DeBERTaV3-base cut to a number of layers; batch rows of `length` tokens."""

    layers: int = 4
    batch: int = 16
    length: int = 128


@dataclass
class Timing:
    """Seconds per step of every repeat, and bytes kept for backward by one step."""

    name: str
    trainable: int
    seconds: list[float]
    saved_bytes: int


ADAPTERS: dict[str, Callable[[], peft.PeftConfig | None]] = {
    "frozen (head alone)": lambda: None,
    REFERENCE: lambda: peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0),
    "oft b=32": lambda: peft.OFTConfig(r=0, oft_block_size=32, use_cayley_neumann=False),
    "oft_v2 b=32": lambda: peft.OFTConfig(r=0, oft_block_size=32, use_cayley_neumann=True),
    "goft": lambda: GoftConfig(variant="goft"),
    "qgoft": lambda: GoftConfig(variant="qgoft"),
}


def build(shape: Shape, adapter: peft.PeftConfig | None) -> nn.Module:
    """The model with the adapter on the six linear layers of every block; the head is trained in every case."""
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=1000,
        hidden_size=768,
        num_hidden_layers=shape.layers,
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
    model = DebertaV2ForSequenceClassification(config)
    if adapter is None:
        # The lowest trained parameter decides how far backward goes: the first norm stands for an adapter that costs nothing.
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("embeddings.LayerNorm" in name or "classifier" in name or "pooler" in name)
        return model.train()
    adapter.target_modules = set(TARGETS)
    adapter.exclude_modules = ["pooler.dense"]
    adapter.modules_to_save = ["classifier", "pooler"]
    return peft.get_peft_model(model, adapter).train()


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, labels: Tensor) -> None:
    loss = model(input_ids=ids, labels=labels).loss + 0.01 * orthogonality_penalty(model)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def count_saved_bytes(model: nn.Module, ids: Tensor, labels: Tensor) -> int:
    """Bytes that autograd keeps for backward beside the parameters, each storage once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=labels).loss
    total = sum(storage.nbytes() for storage in kept.values())
    del loss
    return total


def measure(shape: Shape, repeats: int, report: Callable[[str], None]) -> list[Timing]:
    """Time all adapters, interleaved; the first round is for warming up."""
    ids = torch.randint(0, 1000, (shape.batch, shape.length), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(shape.batch) % 2
    timings, runs = [], []
    for name, adapter in ADAPTERS.items():
        model = build(shape, adapter())
        free = [p for p in model.parameters() if p.requires_grad]
        runs.append((model, torch.optim.AdamW(free, 1e-4)))
        timings.append(Timing(name, sum(p.numel() for p in free), [], count_saved_bytes(model, ids, labels)))
    for repeat in range(repeats + 1):
        for timing, (model, optimizer) in zip(timings, runs, strict=True):
            start = time.perf_counter()
            one_step(model, optimizer, ids, labels)
            if repeat:
                timing.seconds.append(time.perf_counter() - start)
        report(f"round {repeat}/{repeats}" + ("" if repeat else " (warm-up)"))
    return timings


def ratios(timing: Timing, reference: Timing) -> tuple[float, float, float]:
    """Median and middle half of the ratio to the reference, repeat by repeat."""
    values = [a / b for a, b in zip(timing.seconds, reference.seconds, strict=True)]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high
