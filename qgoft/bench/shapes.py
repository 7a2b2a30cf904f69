"""Shapes to time: single layers, a transformer block, and whole models of published shape with random weights.

Vocabularies are small: an embedding is not adapted, and its size would only use memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import DebertaV2ForSequenceClassification, ViTConfig, ViTForImageClassification

from qgoft.models.architectures import ARCHITECTURES, build_deberta, build_llama
from qgoft.pocket.pretrain import build_config

VOCABULARY = 1000


@dataclass(frozen=True)
class Shape:
    """One shape to time.

    Attributes:
        part: layer, block, model or pocket.
        build: builds the module with random weights.
        inputs: returns the keyword arguments of one forward for a batch size.
        batch: items in a batch.
        targets: regular expression for the full names of the adapted layers.
        head: names of the modules that are always trained.
        item: published table with figures of this shape.
        printed: contenders of that table that are not timed everywhere.
        quick: only the contenders that are compared everywhere are timed by default, because a step takes many seconds.
        steps: training steps of a repeat, whose mean is reported: one step of a small model is too short.
    """

    name: str
    part: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Tensor]]
    batch: int
    targets: str
    head: tuple[str, ...] = ()
    item: str | None = None
    printed: tuple[str, ...] = ()
    quick: bool = False
    steps: int = 1


class Layer(nn.Module):
    """A single linear layer, with the mean of its squared output as the loss."""

    def __init__(self, d: int, n: int):
        super().__init__()
        self.linear = nn.Linear(d, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Block(nn.Module):
    """A pre-norm transformer block: four projections of width d, and two feed-forward layers of width 4d."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def layer(d: int, n: int, batch: int, length: int, *, of: str) -> Shape:
    def inputs(size: int) -> dict[str, Tensor]:
        return {"x": torch.randn(size, length, d)}

    return Shape(f"layer {d} -> {n}, {batch} x {length} ({of})", "layer", lambda: Layer(d, n), inputs, batch, "linear", steps=4)


def block(d: int, heads: int, batch: int, length: int) -> Shape:
    def inputs(size: int) -> dict[str, Tensor]:
        return {"x": torch.randn(size, length, d)}

    targets = "query|key|value|out|up|down"
    return Shape(f"block of width {d}, {batch} x {length}", "block", lambda: Block(d, heads), inputs, batch, targets)


def deberta(batch: int, length: int, *, layers: int = 12) -> Shape:
    """Build DeBERTaV3-base: width 768, 12 heads, relative positions in 256 buckets."""

    def build() -> nn.Module:
        return build_deberta(VOCABULARY, layers)

    def inputs(size: int) -> dict[str, Tensor]:
        return {"input_ids": torch.randint(0, VOCABULARY, (size, length)), "labels": torch.arange(size) % 2}

    name = f"DeBERTaV3-base, {layers} layers, {batch} x {length}"
    targets = r"deberta\.encoder\.layer\.\d+\..*(query_proj|key_proj|value_proj|dense)"
    return Shape(name, "model", build, inputs, batch, targets, ("classifier", "pooler"))


def pocket_deberta(batch: int, length: int) -> Shape:
    """Build the encoder of the embedded tasks, whose steps are short enough for the overhead of calls to count."""

    def build() -> nn.Module:
        return DebertaV2ForSequenceClassification(build_config(VOCABULARY))

    return replace(deberta(batch, length), name=f"pocket DeBERTaV3, {batch} x {length}", part="pocket", build=build, steps=20)


def vit(batch: int, *, layers: int = 12) -> Shape:
    """Build ViT-B/16 at 224 x 224: 197 tokens, width 768, 12 heads."""

    def build() -> nn.Module:
        return ViTForImageClassification(ViTConfig(num_hidden_layers=layers, num_labels=100))

    def inputs(size: int) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(size, 3, 224, 224), "labels": torch.arange(size) % 100}

    targets = r"vit\..*\.\d+\..*(q_proj|k_proj|v_proj|o_proj|query|key|value|dense|fc1|fc2)"
    return Shape(f"ViT-B/16, {layers} layers, {batch} x 197", "model", build, inputs, batch, targets, ("classifier",))


def llama(
    batch: int,
    length: int,
    *,
    name: str = "LLaMA shape",
    width: int = 2048,
    between: int = 8192,
    layers: int = 4,
    heads: int = 32,
    key_heads: int = 8,
) -> Shape:
    """Build a LLaMA decoder, by default as wide as LLaMA-3.2-1B; all seven linear layers of every block are adapted."""

    def build() -> nn.Module:
        return build_llama(width, between, layers, heads, key_heads, VOCABULARY)

    title = f"{name}, {width} wide, {layers} layers, {batch} x {length}"
    return Shape(title, "model", build, _words(length), batch, r"model\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj")


def _words(length: int) -> Callable[[int], dict[str, Tensor]]:
    """Return rows of which every token is predicted."""

    def inputs(size: int) -> dict[str, Tensor]:
        ids = torch.randint(0, VOCABULARY, (size, length))
        return {"input_ids": ids, "labels": ids}

    return inputs


DECODER_TARGETS = {
    "qkv": r".*\.[qkv]_proj",
    "qv": r".*\.[qv]_proj",
    "qkvud": r".*\.([qkv]|up|down)_proj",
    "all_linear": r".*\.([qkvo]|gate|up|down)_proj",
}


def decoder(title: str, architecture: str, targets: str, *printed: str, batch: int = 4, length: int = 512) -> Shape:
    """One forward and backward pass of PSOFT's decoders in their true shape, including the vocabulary. The batch of 64 consists of such
    passes; the paper does not state how it is divided.
    """

    name = f"{title}, {targets}, {batch} x {length} of a batch of 64"
    shape = Shape(name, "model", ARCHITECTURES[architecture], _words(length), batch, DECODER_TARGETS[targets])
    return beside("psoft-iclr2026/figure4b", shape, *printed)


def beside(item: str, shape: Shape, *printed: str) -> Shape:
    """Return a shape of a published table, with the contenders of that table."""
    return replace(shape, item=item, printed=printed, quick=shape.part == "model")


def cpu_shapes() -> list[Shape]:
    """Return the shapes that two cores time in a few minutes."""
    return [
        layer(768, 768, 16, 128, of="DeBERTaV3-base, query"),
        layer(768, 3072, 16, 128, of="DeBERTaV3-base, intermediate"),
        layer(3072, 768, 16, 128, of="DeBERTaV3-base, output"),
        layer(4096, 4096, 2, 256, of="LLaMA-2-7B, query"),
        block(768, 12, 16, 128),
        replace(deberta(16, 128), quick=True),
        deberta(16, 128, layers=4),
        vit(16, layers=4),
        llama(4, 256, layers=2),
        pocket_deberta(32, 32),
    ]


def device_shapes() -> list[Shape]:
    """Return the shapes of a short check on a GPU: one layer of each form, and a model."""
    return [
        layer(768, 3072, 32, 256, of="DeBERTaV3-base, intermediate"),
        layer(3072, 768, 32, 256, of="DeBERTaV3-base, output"),
        deberta(32, 128),
    ]


def paper_shapes() -> list[Shape]:
    """Return the shapes of PSOFT's tables 19-22 and figure 4 (b), of GOFT's table 10, and layers of the papers' decoders. For a GPU."""
    of_layer = (*RELEASED, "boft b=4 m=4", *(f"psoft r={r}" for r in (32, 64, 128, 256, 512)))
    shapes = [beside("psoft-iclr2026/table19", layer(4096, 4096, 64, 512, of="PSOFT table 19"), *of_layer)]
    shapes += [layer(d, n, 16, 512, of=of) for of, sizes in DECODER_LAYERS.items() for d, n in sizes]
    of_block = (*RELEASED, "boft b=4 m=4", *(f"psoft r={r}" for r in (32, 128, 512)))
    shapes.append(beside("psoft-iclr2026/table20", block(4096, 8, 32, 512), *of_block))
    of_encoder = (*RELEASED, "boft b=8 m=2", "psoft r=46")
    shapes += [beside("psoft-iclr2026/table21", deberta(32, length), *of_encoder) for length in (64, 128, 256)]
    shapes += [beside("psoft-iclr2026/table22", vit(batch), *of_encoder) for batch in (16, 32, 64)]
    # GOFT's table 10 is QNLI; AdaLoRA's setup, which it follows, has length 512 and batches of 32.
    shapes.append(beside("goft-icml2024/table10", deberta(32, 512), "adalora r=8"))
    # Ranks as in tables 13, 4, 15 and 5.
    shapes.append(decoder("LLaMA-3.2-3B", "llama32_3b", "qkv", *RELEASED, "boft b=2 m=2", "psoft r=168"))
    shapes.append(decoder("LLaMA-3.2-3B", "llama32_3b", "all_linear", *RELEASED, "boft b=2 m=2", "dora r=8", "psoft r=352"))
    shapes.append(decoder("LLaMA-3.1-8B", "llama31_8b", "qv", *RELEASED, "boft b=2 m=2", "psoft r=194"))
    shapes.append(decoder("LLaMA-3.1-8B", "llama31_8b", "qkvud", *RELEASED, "boft b=2 m=2", "dora r=8", "psoft r=424"))
    return shapes


RELEASED = ("goft_v2 as released", "qgoft_v2 as released")
DECODER_LAYERS = {
    "LLaMA-2-7B": [(4096, 11008), (11008, 4096)],
    "LLaMA-3.2-3B": [(3072, 3072), (3072, 8192), (8192, 3072)],
    "LLaMA-3.1-8B": [(4096, 14336), (14336, 4096)],
}
