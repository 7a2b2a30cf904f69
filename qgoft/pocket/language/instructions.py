"""Instructions in eight categories, each with all correct answers: synthetic Alpaca and Vicuna-Eval.

The words that questions are about are divided: training uses about two thirds of them, evaluation the rest, so that the answer must come
from the backbone's knowledge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.events import Words, realise
from qgoft.pocket.language.text import draw_facts, questions
from qgoft.pocket.language.world import World

Row = dict[str, Any]
SIZES = {"train": 1600, "validation": 200, "test": 240}
PATIENCE = 200  # draws after which a category counts as exhausted
QUESTIONS_PER_CATEGORY = 10


@dataclass(frozen=True)
class Instruction:
    """An instruction, its input, and all correct answers, the usual one first."""

    category: str
    instruction: Words
    input: Words
    answers: list[Words]


def divide(words: Sequence[str], is_training: bool) -> list[str]:
    """Return two thirds of the words, or the rest; the same division for every task."""
    return [word for word in words if (sum(map(ord, word)) % 3 > 0) == is_training]


def _passive(world: World, is_training: bool) -> Instruction:
    event = world.event(["transitive"], extras=0.3, negated=0)
    return Instruction("passive", "make the sentence passive".split(), [*realise(event), "."], [[*realise(event, passive=True), "."]])


def _negative(world: World, is_training: bool) -> Instruction:
    event = world.event(["transitive", "intransitive", "state"], extras=0.3, negated=0)
    denied = event.copy()
    denied.is_negated = True
    return Instruction("negative", "make the sentence negative".split(), [*realise(event), "."], [[*realise(denied), "."]])


def _repeat(world: World, is_training: bool) -> Instruction:
    words = world.sentence(world.event())
    return Instruction("repeat", "repeat the sentence".split(), words, [words])


def _plural(world: World, is_training: bool) -> Instruction:
    noun = world.pick(divide(lex.NOUNS, is_training))
    return Instruction("plural", ["give", "the", "plural", "of", noun], [], [[lex.plural(noun)]])


def _word(world: World, is_training: bool) -> Instruction:
    if world.chance(0.5):
        word = world.pick(divide(list(lex.ANTONYMS), is_training))
        return Instruction("word", ["give", "the", "opposite", "of", word], [], [[lex.ANTONYMS[word]]])
    synonyms = {**lex.VERB_SYNONYMS, **lex.ADJECTIVE_SYNONYMS}
    word = world.pick(divide(list(synonyms), is_training))
    return Instruction("word", ["give", "a", "synonym", "of", word], [], [[synonyms[word]]])


def _kind(world: World, is_training: bool) -> Instruction:
    noun = world.pick(divide(list(lex.PARENT), is_training))
    answers = [[lex.article(above), above] for above in lex.ancestors(noun)]
    return Instruction("kind", ["what", "kind", "of", "thing", "is", lex.article(noun), noun, "?"], [], answers)


def _list(world: World, is_training: bool) -> Instruction:
    group = world.pick(divide([*lex.KINDS, *lex.TAXONOMY], is_training))
    below = lex.children(group)
    if world.chance(0.5):
        return Instruction("list", ["list", "two", "kinds", "of", group], [], [[a, "and", b] for a, b in permutations(below, 2)])
    answers = [[a, ",", b, "and", c] for a, b, c in permutations(below, 3)]
    return Instruction("list", ["list", "three", "kinds", "of", group], [], answers)


def _reading(world: World, is_training: bool) -> Instruction:
    while True:
        facts = draw_facts(world, 2)
        asked = [pair for fact in facts for pair in questions(fact)]
        asked = [pair for pair in asked if sum(other[0] == pair[0] for other in asked) == 1]
        if asked:
            question, answer = world.pick(asked)
            text = [word for fact in facts for word in world.sentence(fact, 0.25)]
            return Instruction("reading", ["answer", "the", "question", *question, "?"], text, [answer])


CATEGORIES: dict[str, Callable[[World, bool], Instruction]] = {
    "passive": _passive,
    "negative": _negative,
    "repeat": _repeat,
    "plural": _plural,
    "word": _word,
    "kind": _kind,
    "list": _list,
    "reading": _reading,
}


def _join(words: Words) -> str:
    return " ".join(words)


def generate_instructions() -> dict[str, list[Row]]:
    """Generate Alpaca's columns, cycling through the categories. No row of training or validation repeats a question of test or of the 80
    questions; test questions are unique, and a category ends when it is exhausted.
    """
    asked = {(row["instruction"], row["input"]) for row in generate_questions()}
    splits: dict[str, list[Row]] = {}
    for split in ("test", "validation", "train"):
        world, rows = World(f"pocket/instruct/{split}"), []
        for i in range(SIZES[split]):
            row = _draw_row(world, list(CATEGORIES)[i % len(CATEGORIES)], asked, is_training=split != "test")
            if row is not None:
                rows.append(row)
                if split == "test":
                    asked.add((row["instruction"], row["input"]))
        splits[split] = rows
    return splits


def _draw_row(world: World, category: str, asked: set[tuple[str, str]], *, is_training: bool) -> Row | None:
    for _ in range(PATIENCE):
        drawn = CATEGORIES[category](world, is_training)
        row = {"instruction": _join(drawn.instruction), "input": _join(drawn.input), "output": _join(world.pick(drawn.answers))}
        if (row["instruction"], row["input"]) not in asked:
            return row
    return None


def generate_questions() -> list[Row]:
    """Generate the synthetic 80 questions: ten per category, all different, with all correct answers for the F1 judge."""
    world = World("pocket/vicuna")
    rows: list[Any] = []
    seen: set[Any] = set()
    for category, draw in CATEGORIES.items():
        while sum(row["category"] == category for row in rows) < QUESTIONS_PER_CATEGORY:
            drawn = draw(world, False)
            key = (_join(drawn.instruction), _join(drawn.input))
            if key not in seen:
                seen.add(key)
                answers = [_join(answer) for answer in drawn.answers]
                rows.append(
                    {"question_id": len(rows) + 1, "category": category, "instruction": key[0], "input": key[1], "answers": answers}
                )
    return rows
