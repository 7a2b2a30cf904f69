"""The eight tasks of synthetic GLUE, with the hub's columns and labels."""

from collections.abc import Callable, Iterator
from typing import Any

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.events import Event, NounPhrase, Words
from qgoft.pocket.language.inference import EDITS, ENTAILMENT, TAXONOMIC, draw_pair
from qgoft.pocket.language.text import Opinions, break_grammar, draw_facts, questions, review
from qgoft.pocket.language.world import World

Row = dict[str, Any]
SIZES = {"train": 1000, "validation": 500, "test": 2000}
MNLI_SIZES = {"train": 1000, "validation_matched": 250, "validation_mismatched": 250, "test_matched": 1000, "test_mismatched": 1000}


def _join(words: Words) -> str:
    return " ".join(words)


def cola(world: World, split: str) -> Row:
    event = world.event(quantified=world.chance(0.3))
    words = world.text(event)
    if world.chance(0.5):
        return {"sentence": _join([*words, "."]), "label": 1}
    while True:
        broken = break_grammar(world, event, words)
        if broken and broken[0] != ",":
            return {"sentence": _join([*broken, "."]), "label": 0}


def sst2(world: World, split: str) -> Row:
    """Evaluation uses opinion words that nineteen of twenty training rows lack, so few labels must generalise."""
    label = world.random.randrange(2)
    half = 0 if split == "train" and world.chance(0.95) else 1
    return {"sentence": _join([*review(world, bool(label), Opinions(half)), "."]), "label": label}


def mrpc(world: World, split: str) -> Row:
    event = world.event(negated=0.1, extras=0.5)
    label = world.random.randrange(2)
    other = world.synonymous(event, world.pick([1, 2, 3]))
    if not label:
        other = world.near_miss(other)
    return {"sentence1": _join(world.sentence(event, 0.4)), "sentence2": _join(world.sentence(other, 0.5)), "label": label}


def qqp(world: World, split: str) -> Row:
    """Pairs of questions do not occur in the pretraining corpus."""
    label = world.random.randrange(2)
    while True:
        event = world.event(["transitive", "dative"], extras=0.6, negated=0)
        event.is_past = True
        other = event if label else world.near_miss(event)
        if other.is_negated or not other.is_past:
            continue
        asked, asked_too = questions(event), questions(other)
        which = world.random.randrange(len(asked))
        # Changing what is asked for would not change the question, so it is not a negative example.
        if len(asked) != len(asked_too) or (not label and asked[which][0] == asked_too[which][0]):
            continue
        first, second = asked[which][0], questions(world.synonymous(other, world.pick([1, 2, 3])))[which][0]
        if first != second:
            return {"question1": _join([*first, "?"]), "question2": _join([*second, "?"]), "label": label}


def qnli(world: World, split: str) -> Row:
    """Does the sentence answer the question? If not, it is a near miss or another fact."""
    label = world.random.randrange(2)
    while True:
        fact, other = draw_facts(world, 2)
        asked = questions(fact)
        if not asked:
            continue
        question = world.pick(asked)[0]
        if label:
            fact = world.near_miss(fact) if world.chance(0.7) else other
            fact.is_past, fact.is_negated = True, False
            if any(words == question for words, _ in questions(fact)):
                continue
        return {"question": _join([*question, "?"]), "sentence": _join(world.sentence(fact, 0.3)), "label": label}


def rte(world: World, split: str) -> Row:
    """Half of the items need only the taxonomy."""
    follows = world.chance(0.5)
    edits = TAXONOMIC if world.chance(0.5) else EDITS
    relation = ENTAILMENT if follows else 1 if edits is TAXONOMIC else world.pick([1, 2])
    premise, hypothesis = draw_pair(world, relation, edits)
    return {"sentence1": _join([*premise, "."]), "sentence2": _join([*hypothesis, "."]), "label": int(not follows)}


def mnli(world: World, split: str) -> Row:
    """Mismatched: nouns that training and the matched sets do not use."""
    label = world.random.randrange(3)
    premise, hypothesis = draw_pair(world, label)
    return {"premise": _join([*premise, "."]), "hypothesis": _join([*hypothesis, "."]), "label": label}


def stsb(world: World, split: str) -> Row:
    """0 to 5 by the weighted agreement of the slots; every second event has some slots changed."""
    event = world.event(negated=0.05, extras=0.5)
    other = world.synonymous(event, world.pick([0, 1, 2]))
    changes = world.pick([0, 0, 1, 1, 2, 2, 3, 4, 5, None])
    if changes is None:
        other = world.event(negated=0.05, extras=0.5)
    else:
        for _ in range(changes):
            other = world.near_miss(other)
    return {
        "sentence1": _join(world.sentence(event, 0.4)),
        "sentence2": _join(world.sentence(other, 0.4)),
        "label": similarity(event, other),
    }


def similarity(a: Event, b: Event) -> float:
    """Return the agreement from 0 to 5: subject and object weigh 2 each, the verb 3, place and time 1 each; a negation costs 40%."""
    parts = []
    for slot in ("subject", "object", "recipient"):
        x, y = getattr(a, slot), getattr(b, slot)
        if x or y:
            parts.append((2, _phrase_agreement(x, y) if x and y else 0.0))
    parts.append((3, _predicate_agreement(a, b)))
    for name in ("place", "time"):
        x, y = getattr(a, name), getattr(b, name)
        if x or y:
            parts.append((1, 1.0 if x == y else 0.3 if x and y else 0.0))
    score = 5 * sum(weight * value for weight, value in parts) / sum(weight for weight, _ in parts)
    if a.is_negated != b.is_negated:
        score *= 0.6
    return round(max(0.0, score), 1)


def _phrase_agreement(x: NounPhrase, y: NounPhrase) -> float:
    if x.name or y.name:
        return 1.0 if x.name == y.name else 0.2 if x.name and y.name else 0.0
    a, b = lex.main_noun(str(x.noun)), lex.main_noun(str(y.noun))
    if a == b:
        value = 1.0
    elif b in lex.siblings(a) or a in lex.ancestors(b) or b in lex.ancestors(a):
        value = 0.6
    else:
        value = 0.3 if lex.category(a) == lex.category(b) else 0.0
    if x.adjective != y.adjective and lex.ADJECTIVE_SYNONYMS.get(str(x.adjective)) != y.adjective:
        value *= 0.8
    if x.determiner != y.determiner or x.is_plural != y.is_plural:
        value *= 0.9
    return value


def _predicate_agreement(a: Event, b: Event) -> float:
    if a.kind == b.kind == "state":
        same = a.state == b.state or lex.ADJECTIVE_SYNONYMS.get(str(a.state)) == b.state
        return 1.0 if same else -0.2 if lex.ANTONYMS.get(str(a.state)) == b.state else 0.0
    if a.verb is None or b.verb is None:
        return 0.0
    if a.verb == b.verb or lex.VERB_SYNONYMS.get(a.verb) == b.verb:
        return 1.0
    return 0.5 if lex.VERB_HYPERNYMS.get(a.verb) == b.verb else 0.0


TASKS: dict[str, Callable[[World, str], Row]] = {
    "mnli": mnli,
    "sst2": sst2,
    "cola": cola,
    "qqp": qqp,
    "qnli": qnli,
    "rte": rte,
    "mrpc": mrpc,
    "stsb": stsb,
}


def _draw(task: str, split: str) -> Iterator[Row]:
    half = None
    if task == "mnli":
        half = 1 if split.endswith("mismatched") else 0
    world = World(f"pocket/glue/{task}/{split}", half)
    while True:
        yield TASKS[task](world, split)


def generate(task: str) -> dict[str, list[Row]]:
    """Generate all splits of a task. No text occurs in two splits or twice in one; rows have an idx."""
    sizes = MNLI_SIZES if task == "mnli" else SIZES
    seen: set[tuple[str, ...]] = set()
    splits: dict[str, list[Row]] = {}
    # Evaluation first, so that its sentences do not depend on the draws of training.
    for split in sorted(sizes, key=lambda name: name == "train"):
        rows: list[Row] = []
        for row in _draw(task, split):
            texts = tuple(value for name, value in row.items() if name != "label")
            if texts in seen:
                continue
            seen.add(texts)
            rows.append({**row, "idx": len(rows)})
            if len(rows) == sizes[split]:
                break
        splits[split] = rows
    return splits


def evaluation_sentences() -> frozenset[str]:
    """Return every sentence of every validation and test split, which the corpus must not contain."""
    found: set[Any] = set()
    for task in TASKS:
        for split, rows in generate(task).items():
            if split != "train":
                found.update(value for row in rows for name, value in row.items() if isinstance(value, str))
    return frozenset(found)
