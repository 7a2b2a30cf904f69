"""Pretrain an embedded backbone again, and check its scores.

Usage:
    python -m qgoft build-pocket language --check    train into a scratch directory and compare with the shipped scores
    python -m qgoft build-pocket vision --write      replace the shipped weights
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qgoft.cli import Parser
from qgoft.pocket import pretrain, pretrain_decoder, pretrain_vision
from qgoft.pocket.weights import DIRECTORY

CARD = "card.json"


@dataclass(frozen=True)
class Backbone:
    """A shipped backbone: its recipe, what is rounded to half precision and saved, and the names of its scores.

    `tolerance` is in points: about four standard errors of the measurement.
    """

    name: str
    scores: str
    tolerance: float
    recipe: Any
    make: Callable[[Any, Callable[[str], None]], Any]
    measure: Callable[[Any], dict[str, float]]
    parts: Callable[[Any], list[Any]]


BACKBONES = {
    "language": Backbone(
        "pocket-deberta",
        "percent of masked words found",
        2.0,
        pretrain.Recipe(),
        lambda recipe, report: pretrain.pretrain(recipe, report=report),
        lambda made: pretrain.measure(*made),
        lambda made: [made[0].deberta, made[1]],
    ),
    "vision": Backbone(
        "pocket-vit",
        "percent of attributes named",
        4.0,
        pretrain_vision.Recipe(),
        lambda recipe, report: pretrain_vision.pretrain(recipe, report=report),
        pretrain_vision.measure,
        lambda made: [made.vit],
    ),
    "decoder": Backbone(
        "pocket-llama",
        "percent of next words found",
        8.0,  # accuracy of the letters, 600 questions; those of words and copies vary by less than one point
        pretrain_decoder.Recipe(),
        lambda recipe, report: pretrain_decoder.pretrain(recipe, report=report),
        lambda made: pretrain_decoder.measure(*made),
        list,
    ),
}


def save(backbone: Backbone, made: Any, directory: Path, scores: dict[str, float]) -> None:
    """Save the backbone in half precision, its tokenizer if any, and a card with recipe and scores."""
    model, *others = backbone.parts(made)
    model.half().save_pretrained(directory)
    for other in others:
        other.save_pretrained(directory)
    card = {"recipe": vars(backbone.recipe), backbone.scores: {name: round(value, 2) for name, value in scores.items()}}
    (directory / CARD).write_text(json.dumps(card, indent=1) + "\n")
    size = (directory / "model.safetensors").stat().st_size
    if size >= 1_000_000:
        raise SystemExit(f"model.safetensors has {size:,} bytes; the limit is 1 MB")


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", choices=list(BACKBONES))
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true")
    action.add_argument("--write", action="store_true")
    arguments = parser.parse_args(argv)
    backbone = BACKBONES[arguments.backbone]
    torch.set_num_threads(1)
    made = backbone.make(backbone.recipe, lambda line: print(line, flush=True))
    # Shipped weights are rounded to half precision, so the scores are those of the rounded weights.
    backbone.parts(made)[0].half().float()
    scores = backbone.measure(made)
    print("  ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    directory = DIRECTORY / backbone.name
    if arguments.write:
        save(backbone, made, directory, scores)
        print(f"wrote {backbone.name}")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        save(backbone, made, Path(scratch), scores)
    shipped = json.loads((directory / CARD).read_text())[backbone.scores]
    worst = max(abs(scores[name] - value) for name, value in shipped.items())
    print(f"shipped: {shipped}; largest difference {worst:.2f} points, tolerance {backbone.tolerance}")
    return 0 if worst <= backbone.tolerance else 1
