"""Multiple-choice questions: eight tasks in the format of the commonsense suite, and five subjects in the format of MMLU.

Every task asks for different knowledge from the pretraining corpus, and the correct answer is equally likely at every position.
"""

from collections.abc import Callable
from typing import Any

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.events import Words
from qgoft.pocket.language.instructions import divide
from qgoft.pocket.language.problems import LARGEST
from qgoft.pocket.language.world import World

Row = dict[str, Any]
Choice = tuple[Words, list[Words], int]  # question, answers, index of the correct one
TRAIN_ROWS, TEST_ROWS, VALIDATION_ROWS = 250, 200, 25
LETTERS = ("A", "B", "C", "D")
BOOLEAN = [["true"], ["false"]]  # answers without labels


def _place(world: World, question: Words, right: Words, wrong: list[Words]) -> Choice:
    number = world.random.randrange(len(wrong) + 1)
    return question, [*wrong[:number], right, *wrong[number:]], number


def _others(world: World, options: list[str], count: int) -> list[str]:
    return world.random.sample(options, count)


def _boolq(world: World, is_training: bool) -> Choice:
    """Is a noun of a kind? A wrong kind is as general as a right one, so that it alone does not tell. The adjective makes questions differ."""
    adjective, noun = world.pick(lex.ADJECTIVES), world.pick(divide(list(lex.PARENT), is_training))
    right = world.pick(lex.ancestors(noun))
    is_true = world.chance(0.5)
    level = list(lex.TAXONOMY if right in lex.TAXONOMY else lex.KINDS)
    above = right if is_true else world.pick([word for word in level if word not in (*lex.ancestors(noun), noun)])
    return ["is", lex.article(adjective), adjective, noun, lex.article(above), above, "?"], BOOLEAN, 0 if is_true else 1


def _piqa(world: World, is_training: bool) -> Choice:
    """Which of two sentences is possible: the other has an object that does not fit its verb."""
    verb = world.pick(list(lex.TRANSITIVE))
    _, fitting = lex.TRANSITIVE[verb]
    right = world.pick(divide([n for n in lex.PARENT if lex.category(n) in fitting], is_training))
    wrong = world.pick(divide([n for n in lex.PARENT if lex.category(n) not in fitting], is_training))
    return _place(world, ["what", "can", "you", verb, "?"], [lex.article(right), right], [[lex.article(wrong), wrong]])


def _siqa(world: World, is_training: bool) -> Choice:
    """Who did it: three people, one of whom is the subject of the sentence."""
    event = world.event(["transitive"], extras=0, negated=0)
    names = _others(world, lex.NAMES, 3)
    event.subject.name, event.is_past = names[0], True
    assert event.object is not None
    event.object.name = names[1] if lex.category(event.object.noun or "person") == "person" else None
    if event.object.name is None and event.object.noun is None:
        event.object.name = names[1]
    words = [*world.text(event, 0.5), "."]
    return _place(world, [*words, "who", "did", "it", "?"], [names[0]], [[names[1]], [names[2]]])


def _hellaswag(world: World, is_training: bool) -> Choice:
    """How a sentence continues: after this verb only one of four nouns makes sense."""
    verb = world.pick(list(lex.TRANSITIVE))
    _, fitting = lex.TRANSITIVE[verb]
    right = world.pick([n for n in lex.PARENT if lex.category(n) in fitting])
    wrong = _others(world, [n for n in lex.PARENT if lex.category(n) not in fitting], 3)
    question = [world.pick(lex.NAMES), lex.VERBS[verb][2], "the"]
    return _place(world, question, [right], [[word] for word in wrong])


def _winogrande(world: World, is_training: bool) -> Choice:
    """Which of two nouns fills the gap."""
    verb = world.pick(list(lex.TRANSITIVE))
    _, fitting = lex.TRANSITIVE[verb]
    right = world.pick([n for n in lex.PARENT if lex.category(n) in fitting])
    wrong = world.pick([n for n in lex.PARENT if lex.category(n) not in fitting])
    return _place(world, [world.pick(lex.NAMES), lex.VERBS[verb][2], "the", "_", "."], [right], [[wrong]])


def _arc_easy(world: World, is_training: bool) -> Choice:
    """The group of a kind, among groups of other categories."""
    noun = world.pick(divide([kind for kinds in lex.KINDS.values() for kind in kinds], is_training))
    right = lex.PARENT[noun]
    far = [group for group in lex.KINDS if lex.category(group) != lex.category(right)]
    return _place(world, ["what", "is", lex.article(noun), noun, "?"], [right], [[word] for word in _others(world, far, 3)])


def _arc_challenge(world: World, is_training: bool) -> Choice:
    """The group of a kind, among groups of its own category if there are enough."""
    noun = world.pick(divide([kind for kinds in lex.KINDS.values() for kind in kinds], is_training))
    right = lex.PARENT[noun]
    near = [group for group in lex.KINDS if group != right and lex.category(group) == lex.category(right)]
    far = [group for group in lex.KINDS if lex.category(group) != lex.category(right)]
    wrong = [*near, *_others(world, far, 3)][:3]
    world.random.shuffle(wrong)
    return _place(world, ["what", "is", lex.article(noun), noun, "?"], [right], [[word] for word in wrong])


def _obqa(world: World, is_training: bool) -> Choice:
    """Two facts, and which of four sentences follows: the passive of the first, with its roles, or with another of the four people."""
    first, second, third, fourth = _others(world, lex.NAMES, 4)
    among_people = [verb for verb, roles in lex.TRANSITIVE.items() if all("person" in categories for categories in roles)]
    verb, other = _others(world, among_people, 2)
    told = [first, lex.VERBS[verb][2], second, ".", third, lex.VERBS[other][2], fourth, "."]
    passive = [
        [patient, "was", lex.VERBS[verb][3], "by", agent]
        for patient, agent in ((second, first), (first, second), (second, third), (second, fourth))
    ]
    wrong = passive[1:]
    world.random.shuffle(wrong)
    return _place(world, [*told, "what", "is", "true", "?"], passive[0], wrong)


# Directory of the task -> how a question is drawn, and the names of its answers.
COMMONSENSE: dict[str, tuple[Callable[[World, bool], Choice], str]] = {
    "boolq": (_boolq, ""),
    "piqa": (_piqa, "solution"),
    "social_i_qa": (_siqa, "answer"),
    "hellaswag": (_hellaswag, "ending"),
    "winogrande": (_winogrande, "option"),
    "ARC-Easy": (_arc_easy, "answer"),
    "ARC-Challenge": (_arc_challenge, "answer"),
    "openbookqa": (_obqa, "answer"),
}


def _commonsense_row(task: str, choice: Choice) -> Row:
    question, answers, number = choice
    name = COMMONSENSE[task][1]
    is_boolean = answers == BOOLEAN
    labels = ["true", "false"] if is_boolean else [f"{name}{i + 1}" for i in range(len(answers))]
    if is_boolean:
        return {"instruction": " ".join(question), "input": "", "output": f"the answer is {labels[number]}", "answer": labels[number]}
    options = [word for label, answer in zip(labels, answers, strict=True) for word in (*answer, label)]
    return {
        "instruction": " ".join([*question, *options]),
        "input": "",
        "output": " ".join(["the", "answer", "is", *answers[number], labels[number]]),
        "answer": labels[number],
    }


def generate_commonsense() -> dict[str, list[Row]]:
    """Generate `train` and `validation`, which mix the eight tasks, and the test set of each task. No instruction is in two of them."""
    seen: set[str] = set()

    def draw(task: str, name: str, count: int, *, is_training: bool) -> list[Row]:
        world = World(f"pocket/commonsense/{task}/{name}")
        rows: list[Row] = []
        while len(rows) < count:
            row = _commonsense_row(task, COMMONSENSE[task][0](world, is_training))
            # A closed task has fewer questions than rows: evaluation uses each once, training may repeat one.
            if row["instruction"] not in seen:
                rows.append(row)
                if not is_training:
                    seen.add(row["instruction"])
        return rows

    splits = {}
    for task in COMMONSENSE:
        splits[task] = draw(task, "test", TEST_ROWS, is_training=False)
    splits["validation"] = [row for task in COMMONSENSE for row in draw(task, "validation", VALIDATION_ROWS, is_training=True)]
    known = {row["instruction"] for row in splits["validation"]}
    mixed = [row for task in COMMONSENSE for row in draw(task, "train", TRAIN_ROWS, is_training=True) if row["instruction"] not in known]
    World("pocket/commonsense/order").random.shuffle(mixed)
    splits["train"] = mixed
    return splits


def _sums(world: World) -> Choice:
    first, second = world.random.randint(1, 10), world.random.randint(1, 9)
    is_plus = world.chance(0.5) or second > first
    right = first + second if is_plus else first - second
    near = [n for n in range(max(0, right - 4), min(LARGEST, right + 4) + 1) if n != right]
    wrong = [str(n) for n in world.random.sample(near, 3)]
    return _place(world, [str(first), "+" if is_plus else "-", str(second), "="], [str(right)], [[word] for word in wrong])


def _opposites(world: World) -> Choice:
    word = world.pick(list(lex.ANTONYMS))
    same = {word, lex.ANTONYMS[word], lex.ADJECTIVE_SYNONYMS.get(word), lex.ADJECTIVE_SYNONYMS.get(lex.ANTONYMS[word])}
    wrong = _others(world, sorted({*lex.ANTONYMS, *lex.STATES} - same), 3)
    return _place(world, ["the", "opposite", "of", word, "is"], [lex.ANTONYMS[word]], [[other] for other in wrong])


def _synonyms(world: World) -> Choice:
    verb = world.pick(list(lex.VERB_SYNONYMS))
    wrong = _others(world, sorted(set(lex.VERBS) - {verb, lex.VERB_SYNONYMS[verb]}), 3)
    return _place(world, ["to", verb, "is", "to"], [lex.VERB_SYNONYMS[verb]], [[other] for other in wrong])


def _kinds(world: World, categories: tuple[str, ...]) -> Choice:
    noun = world.pick([kind for group, kinds in lex.KINDS.items() if lex.category(group) in categories for kind in kinds])
    wrong = _others(world, [group for group in lex.KINDS if group != lex.PARENT[noun]], 3)
    right = lex.PARENT[noun]
    return _place(world, [lex.article(noun), noun, "is", "a", "kind", "of"], [right], [[other] for other in wrong])


# Subject -> one of Hendrycks's four groups, for the same averages, and how a question is drawn.
SUBJECTS: dict[str, tuple[str, Callable[[World], Choice]]] = {
    "sums": ("stem", _sums),
    "people": ("social", lambda world: _kinds(world, ("person",))),
    "opposites": ("humanities", _opposites),
    "synonyms": ("humanities", _synonyms),
    "kinds": ("other", lambda world: _kinds(world, ("animal", "food", "vehicle", "thing"))),
}
DEV_ROWS, SUBJECT_ROWS = 5, 100


def generate_subjects() -> dict[str, list[Row]]:
    """Generate dev (five per subject, for the few-shot examples) and test, with the hub's columns of MMLU."""
    splits: dict[str, list[Row]] = {"dev": [], "test": []}
    for subject, (_, draw) in SUBJECTS.items():
        world = World(f"pocket/mmlu/{subject}")
        seen: set[tuple[str, ...]] = set()
        while len(seen) < DEV_ROWS + SUBJECT_ROWS:
            question, choices, number = draw(world)
            row: Row = {
                "question": " ".join(question),
                "subject": subject,
                "choices": [" ".join(choice) for choice in choices],
                "answer": number,
            }
            key = (row["question"], *row["choices"])
            if key not in seen:
                seen.add(key)
                splits["dev" if len(seen) <= DEV_ROWS else "test"].append(row)
    return splits
