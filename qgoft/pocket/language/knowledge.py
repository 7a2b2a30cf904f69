"""Corpus of the embedded decoder: the documents of the encoder, and the knowledge that multiple-choice questions, sums and instructions
need.

It states facts (plurals, kinds, sums, who has how many), shows questions of synthetic MMLU and of the commonsense tasks with labelled
answers, and repeats texts after the markers of an instruction. Following an instruction, reasoning in steps and the form in which the
commonsense tasks name an answer are left to fine-tuning.
"""

from collections.abc import Callable, Sequence
from functools import partial

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.choices import BOOLEAN, COMMONSENSE, LETTERS, SUBJECTS, Choice, generate_commonsense, generate_subjects
from qgoft.pocket.language.corpus import SPECIAL, document
from qgoft.pocket.language.events import Words
from qgoft.pocket.language.instructions import generate_instructions, generate_questions
from qgoft.pocket.language.problems import LARGEST, draw_chain, generate_problems
from qgoft.pocket.language.world import World

INSTRUCTION, INPUT, RESPONSE = "[INST]", "[INP]", "[RESP]"
TEMPLATE = {
    "prompt_no_input": f"{INSTRUCTION} {{instruction}} {RESPONSE} ",
    "prompt_input": f"{INSTRUCTION} {{instruction}} {INPUT} {{input}} {RESPONSE} ",
}
NUMBERED = ("answer", "solution", "option", "ending")
NUMBERED_LABELS = frozenset(f"{name}{i + 1}" for name in NUMBERED for i in range(len(LETTERS)))
HARD = ("social_i_qa", "openbookqa")  # tasks that need more questions than the others to be learnt


def decoder_document(world: World, held_out: frozenset[str]) -> Words:
    """Return one document."""
    while True:
        words = _draw(world, held_out)
        if words is not None:
            return words


def _draw(world: World, held_out: frozenset[str]) -> Words | None:
    kind = world.random.random()
    if kind < 0.22:
        return document(world)
    if kind < 0.28:
        return _fact(world)
    if kind < 0.38:
        return _sum(world)
    if kind < 0.48:
        return _having(world)
    if kind < 0.95:
        return _questions(world, held_out)
    return _told(world)


def _fact(world: World) -> Words:
    noun, form = world.pick(lex.NOUNS), world.random.randrange(4)
    if form == 0:
        return ["the", "plural", "of", noun, "is", lex.plural(noun), "."]
    if form == 1:
        word = world.pick(list(lex.ANTONYMS))
        return ["the", "opposite", "of", word, "is", lex.ANTONYMS[word], "."]
    if form == 2:
        group = world.pick([*lex.KINDS, *lex.TAXONOMY])
        first, second, third = world.random.sample(lex.children(group), 3)
        if world.chance(0.5):
            return ["two", "kinds", "of", group, "are", first, "and", second, "."]
        return ["three", "kinds", "of", group, "are", first, ",", second, "and", third, "."]
    verb = world.pick(list(lex.TRANSITIVE))
    fits = lex.category(main := world.pick(list(lex.PARENT))) in lex.TRANSITIVE[verb][1]
    return ["you", "can", *([] if fits else ["not"]), verb, lex.article(main), main, "."]


def _sum(world: World) -> Words:
    words: Words = []
    for _ in range(world.pick([2, 3, 4])):
        start, ((is_plus, change, after),) = draw_chain(world, 1)
        words += [str(start), "+" if is_plus else "-", str(change), "=", str(after), "."]
    return words


def _having(world: World) -> Words:
    """A person's things become more or fewer: a statement, not a question."""
    start, steps = draw_chain(world, world.pick([1, 2]))
    name, other = world.random.sample(lex.NAMES, 2)
    noun = world.pick([kind for kinds in lex.KINDS.values() for kind in kinds])
    words = [name, "has", str(start), lex.plural(noun), "."]
    for is_plus, change, after in steps:
        words += [other, "gives", name] if is_plus else [name, "gives", other]
        words += [str(change), lex.plural(noun), ".", "now", name, "has", str(after), lex.plural(noun), "."]
    return words


def question_words(question: Words, choices: list[Words], labels: Sequence[str]) -> Words:
    """Return a question, each answer before its label (true and false have none), and the words before the answer."""
    options = [] if choices == BOOLEAN else [word for label, choice in zip(labels, choices, strict=True) for word in (*choice, label)]
    return [*question, *options, "answer", ":"]


def _questions(world: World, held_out: frozenset[str]) -> Words | None:
    """Return one to four questions of a subject or of a commonsense task, or one between the markers of an instruction. The answer is a
    letter as in MMLU, or its text with the numbered label that follows it in the question; true or false have no label. None if a question
    is held out.
    """
    draw: Callable[[World], Choice]
    if world.chance(0.3):
        _, draw = SUBJECTS[world.pick(list(SUBJECTS))]
    else:
        draw_task, _ = COMMONSENSE[world.pick([*COMMONSENSE, *HARD, *HARD])]
        draw = partial(_either, draw_task)
    name, form = world.pick(NUMBERED), world.pick(["letters", "letters", "numbers", "instruction"])
    words: Words = []
    for _ in range(1 if form == "instruction" else world.pick([1, 2, 3, 4])):
        question, choices, number = draw(world)
        if _text(question, choices) in held_out:
            return None
        labels = LETTERS[: len(choices)] if form == "letters" else tuple(f"{name}{i + 1}" for i in range(len(choices)))
        asked = question_words(question, choices, labels)
        text = [] if form == "letters" and choices != BOOLEAN else choices[number]
        answer = [*text, *([] if choices == BOOLEAN else [labels[number]]), "."]
        words += [INSTRUCTION, *asked[:-2], RESPONSE, *answer] if form == "instruction" else [*asked, *answer]
    return words


def _either(draw_task: Callable[[World, bool], Choice], world: World) -> Choice:
    """Draw a question about a word of either part: knowledge of the words of evaluation comes from pretraining."""
    return draw_task(world, world.chance(0.5))


def _told(world: World) -> Words:
    """Return the markers of an instruction around a text and its repetition."""
    words = world.sentence(world.event())
    return [INSTRUCTION, *words, RESPONSE, *words] if world.chance(0.5) else [INSTRUCTION, "repeat", INPUT, *words, RESPONSE, *words]


def held_out_questions() -> frozenset[str]:
    """Return the questions of synthetic MMLU and of the commonsense test sets with their answers, without labels."""
    found = {_text(row["question"].split(), [choice.split() for choice in row["choices"]]) for row in generate_subjects()["test"]}
    splits = generate_commonsense()
    for row in (row for task in COMMONSENSE for row in splits[task]):
        found.add(" ".join(word for word in row["instruction"].split() if word not in NUMBERED_LABELS))
    return frozenset(found)


def _text(question: Words, choices: list[Words]) -> str:
    return " ".join(question) if choices == BOOLEAN else " ".join([*question, *(word for choice in choices for word in choice)])


def decoder_vocabulary() -> list[str]:
    """Return special tokens, then every word of the corpus and of the tasks, in alphabetical order."""
    world = World("pocket/vocabulary/decoder")
    words = {word for _ in range(20000) for word in decoder_document(world, frozenset())}
    rows = [*generate_questions(), *(row for part in generate_subjects().values() for row in part)]
    for source in (generate_instructions(), generate_problems(), generate_commonsense()):
        rows += [row for split in source.values() for row in split]
    for row in rows:
        texts = [text for value in row.values() for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        words.update(word for text in texts for word in text.split())
    words.update(str(n) for n in range(LARGEST + 1))
    words |= NUMBERED_LABELS
    # No model reads the names of tasks and subjects, or the end of the reference answers.
    words -= {INSTRUCTION, INPUT, RESPONSE, "####", *COMMONSENSE, *SUBJECTS}
    words = {word for word in words if not word.startswith("$")}
    return [*SPECIAL, INSTRUCTION, INPUT, RESPONSE, *sorted(words)]
