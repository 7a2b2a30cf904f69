"""Arithmetic: stories of one and two steps (synthetic GSM8K) and expressions (synthetic MATH). Numbers are at most 20."""

from typing import Any

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.events import Words
from qgoft.pocket.language.world import World

Row = dict[str, Any]
LARGEST = 20
SIZES = {"train": 1600, "validation": 200, "gsm8k": 300, "math": 300}


def step(world: World, start: int, *, is_plus: bool) -> int:
    """Return a number that may be added to or subtracted from `start` within 0 to LARGEST; 0 if there is none."""
    room = LARGEST - start if is_plus else start
    return world.random.randint(1, min(room, 9)) if room else 0


def draw_chain(world: World, count: int) -> tuple[int, list[tuple[bool, int, int]]]:
    """Draw a first number, and steps (plus or minus, operand, result)."""
    while True:
        start = value = world.random.randint(1, 12)
        steps = []
        for _ in range(count):
            is_plus = world.chance(0.5)
            change = step(world, value, is_plus=is_plus)
            value += change if is_plus else -change
            steps.append((is_plus, change, value))
        if all(change for _, change, _ in steps):
            return start, steps


def reasoning(start: int, steps: list[tuple[bool, int, int]]) -> Words:
    """Return the steps in order: 5 + 3 = 8 . 8 - 2 = 6 ."""
    words, value = [], start
    for is_plus, change, after in steps:
        words += [str(value), "+" if is_plus else "-", str(change), "=", str(after), "."]
        value = after
    return words


def _things(count: int, noun: str) -> Words:
    return [str(count), noun if count == 1 else lex.plural(noun)]


def story(world: World) -> tuple[Words, int, list[tuple[bool, int, int]]]:
    """A person has some things, gets some, gives some away."""
    start, steps = draw_chain(world, world.pick([1, 1, 2]))
    name, other = world.random.sample(lex.NAMES, 2)
    noun = world.pick([kind for group in ("fruit", "sweet", "toy", "tool") for kind in lex.KINDS[group]])
    words = [name, "has", *_things(start, noun), "."]
    for is_plus, change, _ in steps:
        if is_plus:
            words += world.pick([[other, "gives", name, *_things(change, noun), "."], [name, "buys", *_things(change, noun), "."]])
        else:
            words += world.pick([[name, "gives", other, *_things(change, noun), "."], [name, "sells", *_things(change, noun), "."]])
    return [*words, "how", "many", lex.plural(noun), "does", name, "have", "?"], start, steps


def expression(world: World) -> tuple[Words, int, list[tuple[bool, int, int]]]:
    """What is 3 + 4 - 2 ?"""
    start, steps = draw_chain(world, world.pick([1, 2, 2]))
    words = ["what", "is", str(start)]
    for is_plus, change, _ in steps:
        words += ["+" if is_plus else "-", str(change)]
    return [*words, "?"], start, steps


def generate_problems() -> dict[str, list[Row]]:
    """Generate train and validation with MetaMathQA's columns, and gsm8k and math with those of their test sets. No question is in two of
    them.
    """
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {}
    for split in sorted(SIZES, key=lambda name: name == "train"):
        world = World(f"pocket/math/{split}")
        rows: list[Any] = []
        while len(rows) < SIZES[split]:
            is_story = split == "gsm8k" or (split != "math" and world.chance(0.5))
            words, start, steps = story(world) if is_story else expression(world)
            question = " ".join(words)
            if question in seen:
                continue
            if split != "train":
                seen.add(question)
            thought, result = " ".join(reasoning(start, steps)), steps[-1][2]
            if split == "gsm8k":
                rows.append({"question": question, "answer": f"{thought} #### {result}"})
            elif split == "math":
                rows.append({"problem": question, "solution": f"{thought} $\\boxed{{{result}}}$"})
            else:
                rows.append({"query": question, "response": f"{thought} the answer is: {result}"})
        splits[split] = rows
    return splits
