"""Synthetic SQuAD: a passage of facts, some easily confused, and a question that exactly one of them answers."""

from typing import Any

from qgoft.pocket.language.events import Words
from qgoft.pocket.language.text import draw_facts, questions
from qgoft.pocket.language.world import World

Row = dict[str, Any]
SIZES = {"train": 1000, "validation": 500, "test": 2000}


def generate_reading() -> dict[str, list[Row]]:
    """Generate all splits, with the hub's columns. No question is repeated on the same passage."""
    seen: set[tuple[str, str]] = set()
    splits: dict[str, list[Row]] = {}
    # Evaluation first, so that it does not depend on the draws of training.
    for split in sorted(SIZES, key=lambda name: name == "train"):
        world = World(f"pocket/squad/v1/{split}")
        rows: list[Any] = []
        while len(rows) < SIZES[split]:
            row = _draw(world)
            if row is None or (row["context"], row["question"]) in seen:
                continue
            seen.add((row["context"], row["question"]))
            rows.append({"id": f"{split}-{len(rows)}", "title": "pocket", **row})
        splits[split] = rows
    return splits


def _draw(world: World) -> Row | None:
    facts = draw_facts(world, world.pick([3, 4]))
    asked = [questions(fact) for fact in facts]
    number = world.random.randrange(len(facts))
    if not asked[number]:
        return None
    question, answer = world.pick(asked[number])
    if any(other == question for i, pairs in enumerate(asked) if i != number for other, _ in pairs):
        return None  # another fact answers it too
    sentences = [world.sentence(fact, 0.25) for fact in facts]
    place = _find(sentences[number], answer)
    if place is None:
        return None
    before = [word for sentence in sentences[:number] for word in sentence] + sentences[number][:place]
    context = " ".join(word for sentence in sentences for word in sentence)
    start = len(" ".join(before)) + (1 if before else 0)
    return {
        "context": context,
        "question": " ".join([*question, "?"]),
        "answers": {"text": [" ".join(answer)], "answer_start": [start]},
    }


def _find(sentence: Words, answer: Words) -> int | None:
    """Return the position of the answer's words in the sentence; None unless they occur exactly once."""
    places = [i for i in range(len(sentence) - len(answer) + 1) if sentence[i : i + len(answer)] == answer]
    return places[0] if len(places) == 1 else None
