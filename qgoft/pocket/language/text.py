"""Further kinds of text: reviews, questions about events, and ungrammatical sentences."""

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.events import Event, Words
from qgoft.pocket.language.world import World


class Opinions:
    """Words of praise and criticism. `half` keeps every other word, so that test sentences use words without training labels."""

    def __init__(self, half: int | None = None):
        part = slice(None) if half is None else slice(half, None, 2)
        self.adjectives = {True: lex.POSITIVE[part], False: lex.NEGATIVE[part]}
        self.felt = {True: lex.LIKED[part], False: lex.DISLIKED[part]}
        self.feel = {True: lex.LIKE[part], False: lex.DISLIKE[part]}


def praise(world: World, is_positive: bool, opinions: Opinions) -> Words:
    """Return one sentence of praise or criticism without negation or contrast; without the period."""
    topic, form = world.pick(lex.TOPICS), world.random.random()
    if form < 0.3:
        return ["i", world.pick(opinions.felt[is_positive]), "the", topic]
    first, second = world.random.sample(opinions.adjectives[is_positive], 2)
    degree = [world.pick(lex.STRONG)] if world.chance(0.3) else []
    return ["the", topic, world.pick(["was", "is"]), *degree, first, *([] if form < 0.5 else ["and", second])]


def review(world: World, is_positive: bool, opinions: Opinions) -> Words:
    """Return one sentence whose sentiment depends on negation and contrast, without the period."""
    form = world.random.random()
    if form < 0.45:
        return _judgement(world, is_positive, opinions)
    if form < 0.65:
        return [*_judgement(world, is_positive, opinions), "and", *_judgement(world, is_positive, opinions)]
    if form < 0.85:
        return ["although", *_judgement(world, not is_positive, opinions), ",", *_judgement(world, is_positive, opinions)]
    adjective = world.pick(opinions.adjectives[not is_positive])
    return ["despite", "the", adjective, world.pick(lex.TOPICS), ",", *_judgement(world, is_positive, opinions)]


def _judgement(world: World, is_positive: bool, opinions: Opinions) -> Words:
    topic, form = world.pick(lex.TOPICS), world.random.random()
    if form < 0.45:
        degree = [world.pick(lex.STRONG + lex.MILD)] if world.chance(0.4) else []
        return ["the", topic, world.pick(["was", "is"]), *degree, world.pick(opinions.adjectives[is_positive])]
    if form < 0.75:
        degree = [world.pick(lex.STRONG)] if not is_positive and world.chance(0.4) else []
        negation = world.pick([["was", "not"], ["was", "never"], ["is", "not"]])
        return ["the", topic, *negation, *degree, world.pick(opinions.adjectives[not is_positive])]
    if form < 0.9:
        return ["i", world.pick(opinions.felt[is_positive]), "the", topic]
    return ["i", "did", "not", world.pick(opinions.feel[not is_positive]), "the", topic]


def draw_facts(world: World, count: int) -> list[Event]:
    """Draw events in the past, some of which are easily confused."""
    facts: list[Event] = []
    for _ in range(count):
        fact = world.event(["transitive", "transitive", "dative", "intransitive"], extras=0.6, negated=0)
        if facts and world.chance(0.5):
            other = world.pick(facts)
            if world.chance(0.5) and other.kind == fact.kind:
                fact = world.near_miss(other)
            elif fact.kind == other.kind or other.subject.category() == "person":
                fact.subject = other.copy().subject
        fact.is_past, fact.is_negated = True, False
        facts.append(fact)
    return facts


def questions(fact: Event) -> list[tuple[Words, Words]]:
    """Return every question that a fact answers, with its answer; without the question mark."""
    subject, target, recipient = fact.subject, fact.object, fact.recipient
    base, _, past, _ = lex.VERBS[str(fact.verb)]
    place = fact.place_words()
    found: list[tuple[Words, Words]] = []
    if fact.kind == "transitive":
        assert target is not None
        core = [*subject.words(), base, *target.words()]
        found.append(([_who(subject), past, *target.words(), *place], subject.words()))
        found.append(([_who(target), "did", *subject.words(), base, *place], target.words()))
    elif fact.kind == "dative":
        assert target is not None
        assert recipient is not None
        core = [*subject.words(), base, *target.words(), "to", *recipient.words()]
        found.append((["who", past, *target.words(), "to", *recipient.words()], subject.words()))
        found.append((["what", "did", *subject.words(), base, "to", *recipient.words()], target.words()))
        found.append((["who", "did", *subject.words(), base, *target.words(), "to"], recipient.words()))
    else:
        core = [*subject.words(), base]
        if place and subject.category() == "person":
            found.append((["who", past, *place], subject.words()))
    if place:
        found.append((["where", "did", *core], place))
    if fact.time:
        found.append((["when", "did", *core], fact.time_words()))
    return found


def _who(phrase: object) -> str:
    return "who" if phrase.category() == "person" else "what"  # type: ignore[attr-defined]


def break_grammar(world: World, event: Event, words: Words) -> Words | None:
    """Return the words with one mistake, or None if the draw made none."""
    broken = list(words)
    mistake = world.pick(["agreement", "determiner", "order", "omission", "form", "preposition", "repetition"])
    if mistake == "agreement":
        swaps = _both_ways({"was": "were", "is": "are", "does": "do"})
        if not event.is_past:
            swaps.update(_both_ways({forms[0]: forms[1] for forms in lex.VERBS.values()}))
        _exchange(world, broken, swaps)
    elif mistake == "determiner":
        _exchange(world, broken, {"a": "an", "an": "a", "every": "all", "all": "every", "two": "a", "three": "a"})
    elif mistake == "order":
        i = world.random.randrange(len(broken) - 1)
        broken[i], broken[i + 1] = broken[i + 1], broken[i]
    elif mistake == "omission":
        places = [i for i, word in enumerate(broken) if word in ("the", "a", "an", "by", "to", "was", "did", "in", "near")]
        if places:
            del broken[world.pick(places)]
    elif mistake == "form" and event.verb and (event.is_negated or broken[0] in ("was", "were")):
        forms = lex.VERBS[event.verb]
        _exchange(world, broken, {form: world.pick([f for f in forms if f != form] or [form]) for form in forms})
    elif mistake == "preposition":
        _exchange(world, broken, {"by": "to", "to": "by"})
    elif mistake == "repetition":
        i = world.random.randrange(len(broken))
        broken.insert(i, broken[i])
    return None if broken == words else broken


def _both_ways(pairs: dict[str, str]) -> dict[str, str]:
    return {**pairs, **{b: a for a, b in pairs.items()}}


def _exchange(world: World, words: Words, swaps: dict[str, str]) -> None:
    places = [i for i, word in enumerate(words) if word in swaps]
    if places:
        i = world.pick(places)
        words[i] = swaps[words[i]]
