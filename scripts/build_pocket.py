#!/usr/bin/env python3
"""Pretrain the embedded encoder anew, and check that its scores come back.

python scripts/build_pocket.py --check          trains into a scratch folder and compares with the shipped scores
python scripts/build_pocket.py --write          replaces the shipped weights
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import DebertaV2ForMaskedLM, PreTrainedTokenizerFast

from qgoft.pocket.pretrain import Recipe, measure, pretrain
from qgoft.pocket.weights import FOLDER

NAME = "pocket-deberta"
CARD = "card.json"
TOLERANCE = 2.0  # points: about four standard errors of the measurement


def save(model: DebertaV2ForMaskedLM, tokenizer: PreTrainedTokenizerFast, folder: Path, scores: dict[str, float], recipe: Recipe) -> None:
    """The backbone in half precision, its tokenizer, and a card with recipe and scores."""
    model.deberta.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = {"recipe": vars(recipe), "percent of masked words found": {name: round(value, 2) for name, value in scores.items()}}
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
    size = (folder / "model.safetensors").stat().st_size
    if size >= 1_000_000:
        raise SystemExit(f"model.safetensors has {size:,} bytes; it must stay under 1 MB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true")
    action.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe()
    model, tokenizer = pretrain(recipe, report=lambda line: print(line, flush=True))
    # Shipped weights are rounded to half precision, so the scores are those of the rounded weights.
    model.deberta.half().float()
    scores = measure(model, tokenizer)
    print("  ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    if arguments.write:
        save(model, tokenizer, FOLDER / NAME, scores, recipe)
        print(f"wrote {NAME}")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        save(model, tokenizer, Path(scratch), scores, recipe)
    shipped = json.loads((FOLDER / NAME / CARD).read_text())["percent of masked words found"]
    worst = max(abs(scores[name] - value) for name, value in shipped.items())
    print(f"shipped: {shipped}; largest difference {worst:.2f} points, allowed {TOLERANCE}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
