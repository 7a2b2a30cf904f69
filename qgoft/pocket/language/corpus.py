"""Documents for pretraining: definitions, synonyms, entailments with connectives, paraphrases, reviews, facts with a question."""

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.events import Words
from qgoft.pocket.language.inference import draw_pair
from qgoft.pocket.language.tasks import generate
from qgoft.pocket.language.text import Opinions, draw_facts, praise, questions, review
from qgoft.pocket.language.world import World

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "<s>", "</s>")
CONNECTIVES = {0: ("so", "therefore"), 1: ("maybe", "perhaps"), 2: ("wrong", "false")}


def document(world: World) -> Words:
    """Return one document, with its periods."""
    kind = world.random.random()
    if kind < 0.06:
        return [*world.sentence(world.event(quantified=world.chance(0.3))), *world.sentence(world.event())]
    if kind < 0.18:
        return _definition(world)
    if kind < 0.26:
        return _synonym(world)
    if kind < 0.52:
        label = world.random.randrange(3)
        premise, hypothesis = draw_pair(world, label)
        word = world.pick(CONNECTIVES[label])
        if label == 2:
            return [*premise, ".", "it", "is", word, "that", *hypothesis, "."]
        return [*premise, ".", word, *([","] if world.chance(0.5) else []), *hypothesis, "."]
    if kind < 0.68:
        event = world.event()
        other = world.synonymous(event, world.pick([1, 2, 3]))
        if world.chance(0.6):
            return [*world.sentence(event, 0.4), "likewise", ",", *world.sentence(other, 0.5)]
        return [*world.sentence(event, 0.4), "then", ",", *world.sentence(world.near_miss(other), 0.5)]
    if kind < 0.84:
        return _verdict(world)
    facts = draw_facts(world, world.pick([1, 2, 3]))
    words = [word for fact in facts for word in world.sentence(fact, 0.2)]
    asked = questions(world.pick(facts))
    if asked:
        question, answer = world.pick(asked)
        words += [*question, "?", *answer, "."]
    return words


def _definition(world: World) -> Words:
    noun = world.pick(list(lex.PARENT))
    above = world.pick(lex.ancestors(noun))
    form = world.random.randrange(4)
    if form == 0:
        return [lex.article(noun), noun, "is", lex.article(above), above, "."]
    if form == 1:
        return ["every", noun, "is", lex.article(above), above, ".", "all", lex.plural(noun), "are", lex.plural(above), "."]
    if form == 2:
        return [lex.article(noun), noun, "is", "a", "kind", "of", above, "."]
    below = lex.children(above)
    return ["some", lex.plural(above), "are", lex.plural(world.pick(below)), "and", "some", "are", lex.plural(world.pick(below)), "."]


def _synonym(world: World) -> Words:
    form = world.random.randrange(3)
    if form == 0:
        verb = world.pick(list(lex.VERB_SYNONYMS))
        return ["to", verb, "is", "to", lex.VERB_SYNONYMS[verb], "."]
    if form == 1:
        word = world.pick(list(lex.ADJECTIVE_SYNONYMS))
        words = [word, "means", lex.ADJECTIVE_SYNONYMS[word], "."]
        return [*words, word, "is", "the", "opposite", "of", lex.ANTONYMS[word], "."] if word in lex.ANTONYMS else words
    noun = world.pick(list(lex.NOUN_SYNONYMS))
    other = lex.NOUN_SYNONYMS[noun]
    return [lex.article(noun), noun, "is", "also", "called", lex.article(other), other, "."]


def _verdict(world: World) -> Words:
    """Return one or more sentences of one opinion, and a verdict. Half of the documents have no negation or contrast, so that words of one
    polarity occur together.
    """
    is_positive, opinions = world.chance(0.5), Opinions()
    sentence = world.pick([praise, review])
    words: Words = []
    for _ in range(world.pick([2, 3]) if sentence is praise else world.pick([1, 2, 2])):
        words += [*sentence(world, is_positive, opinions), "."]
    verdict = ["i", world.pick(["recommend", "praise"] if is_positive else ["regret", "avoid"]), "it", "."]
    return [*words, *verdict] if world.chance(0.5) else [*verdict, *words]


def sentences(words: Words) -> list[str]:
    """Return the sentences of a document as text."""
    found, start = [], 0
    for i, word in enumerate(words):
        if word in (".", "?"):
            found.append(" ".join(words[start : i + 1]))
            start = i + 1
    return found


def vocabulary() -> list[str]:
    """Return special tokens, then every word of the corpus and of the tasks' training rows, in alphabetical order."""
    world = World("pocket/vocabulary")
    words = {word for _ in range(20000) for word in document(world)}
    for task in ("cola", "sst2", "mrpc", "qqp", "rte", "qnli", "mnli", "stsb"):
        for rows in generate(task).values():
            words.update(word for row in rows for text in row.values() if isinstance(text, str) for word in text.split())
    return [*SPECIAL, *sorted(words)]
