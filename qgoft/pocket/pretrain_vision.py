"""Pretraining of the embedded ViT: classification of the attributes of drawn scenes. About three minutes on one core."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from qgoft.pocket.pretrain_common import Descent
from qgoft.pocket.vision.draw import SIZE
from qgoft.pocket.vision.scenes import ATTRIBUTES, scene

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
WIDTH = 96


@dataclass(frozen=True)
class Recipe:
    """Recipe of the shipped weights."""

    steps: int = 3000
    batch: int = 64
    rate: float = 2e-3
    scenes: int = 40000
    weight_decay: float = 0.05
    seed: int = 0


def build_config() -> ViTConfig:
    """Return ViT's configuration with sixteen patches at a width that is not a power of two and has a tree of the same shape as 768."""
    return ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=4 * WIDTH,
        image_size=SIZE,
        patch_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
    )


def draw_scenes(count: int, name: str) -> tuple[Tensor, Tensor]:
    """Draw images [count, 3, SIZE, SIZE] uint8 and attributes [count, len(ATTRIBUTES)], -1 if an attribute does not apply."""
    random = np.random.default_rng([*f"pocket/scenes/{name}".encode()])
    images, attributes = zip(*(scene(random) for _ in range(count)), strict=True)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(attributes)


def normalise(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN[:, None, None]) / DEVIATION[:, None, None]


class Namer(nn.Module):
    """The backbone with a linear head per attribute on its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = ViTModel(build_config(), add_pooling_layer=False)
        self.heads = nn.Linear(WIDTH, sum(ATTRIBUTES.values()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.vit(normalise(images)).last_hidden_state[:, 0]
        return self.heads(features).split(list(ATTRIBUTES.values()), 1)


def pretrain(recipe: Recipe, *, report: Callable[[str], None] = print) -> Namer:
    """Train from random weights; the same recipe gives the same model on the same machine."""
    torch.manual_seed(recipe.seed)
    model = Namer().train()
    images, attributes = draw_scenes(recipe.scenes, "train")
    descent = Descent(model.parameters(), recipe.rate, steps=recipe.steps, rise=100, weight_decay=recipe.weight_decay)
    for step in range(1, recipe.steps + 1):
        chosen = torch.randint(recipe.scenes, (recipe.batch,))
        wanted, loss = attributes[chosen], torch.zeros(())
        for column, logits in enumerate(model(images[chosen])):
            applies = wanted[:, column] >= 0
            if applies.any():
                # Weight rare attributes above their frequency, but below equal weights.
                weight = applies.float().mean().sqrt()
                loss = loss + weight * functional.cross_entropy(logits[applies], wanted[applies, column])
        descent.step(loss)
        if step % 200 == 0 or step == recipe.steps:
            report(f"step {step}/{recipe.steps}  loss {loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def measure(model: Namer, *, count: int = 4000) -> dict[str, float]:
    """Return the percentage of attributes predicted on unseen scenes."""
    images, attributes = draw_scenes(count, "measure")
    logits = [torch.cat(parts) for parts in zip(*(model(batch) for batch in images.split(500)), strict=True)]
    scores = {}
    for column, (name, guess) in enumerate(zip(ATTRIBUTES, logits, strict=True)):
        applies = attributes[:, column] >= 0
        scores[name] = 100 * float((guess[applies].argmax(1) == attributes[applies, column]).float().mean())
    return scores
