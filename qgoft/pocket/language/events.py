"""Meaning as data, and its realisation as words."""

import copy
from dataclasses import dataclass

from qgoft.pocket.language import lexicon as lex

Words = list[str]


@dataclass
class NounPhrase:
    """A name, or a noun with determiner, adjective and number."""

    noun: str | None = None
    determiner: str | None = "the"
    adjective: str | None = None
    is_plural: bool = False
    name: str | None = None

    def words(self) -> Words:
        if self.name:
            return [self.name]
        assert self.noun is not None
        words = [self.adjective] if self.adjective else []
        words.append(lex.plural(self.noun) if self.is_plural else self.noun)
        if self.determiner is None:
            return words
        return [lex.article(words[0]) if self.determiner == "a" else self.determiner, *words]

    def category(self) -> str:
        return "person" if self.name else lex.category(self.noun or "")

    def resembles(self, other: "NounPhrase") -> bool:
        """Return True if a reader could confuse the two."""
        if self.name or other.name:
            return self.name == other.name
        return lex.main_noun(self.noun or "") == lex.main_noun(other.noun or "")


@dataclass
class Event:
    """One clause. Kinds: transitive, dative, intransitive, state."""

    kind: str
    subject: NounPhrase
    verb: str | None = None
    object: NounPhrase | None = None
    recipient: NounPhrase | None = None
    state: str | None = None
    place: tuple[str, str] | None = None
    time: str | None = None
    is_negated: bool = False
    is_past: bool = True

    def copy(self) -> "Event":
        return copy.deepcopy(self)

    def slots(self) -> list[str]:
        """Names of the noun phrases that the event has."""
        return [name for name in ("subject", "object", "recipient") if getattr(self, name) is not None]

    def phrase(self, slot: str) -> NounPhrase:
        found: NounPhrase = getattr(self, slot)
        return found

    def place_words(self) -> Words:
        return [self.place[0], "the", self.place[1]] if self.place else []

    def time_words(self) -> Words:
        if self.time is None:
            return []
        return [self.time] if self.time in ("yesterday", "today") else ["on", self.time]


def realise(event: Event, *, passive: bool = False, double_object: bool = False, time_first: bool = False) -> Words:
    """Return the words of an event, without the final period."""
    place, time = event.place_words(), event.time_words()
    clause = [*_clause(event, passive, double_object), *place]
    return [*time, ",", *clause] if time_first and time else [*clause, *time]


def _clause(event: Event, passive: bool, double_object: bool) -> Words:
    subject, target, recipient = event.subject, event.object, event.recipient
    if event.kind == "state":
        return [*subject.words(), *_be(event, subject), str(event.state)]
    assert event.verb is not None
    if event.kind == "intransitive":
        return [*subject.words(), *_finite(event)]
    assert target is not None
    participle = lex.VERBS[event.verb][3]
    if event.kind == "transitive":
        if passive:
            return [*target.words(), *_be(event, target), participle, "by", *subject.words()]
        return [*subject.words(), *_finite(event), *target.words()]
    assert recipient is not None
    if passive:
        return [*target.words(), *_be(event, target), participle, "to", *recipient.words(), "by", *subject.words()]
    if double_object:
        return [*subject.words(), *_finite(event), *recipient.words(), *target.words()]
    return [*subject.words(), *_finite(event), *target.words(), "to", *recipient.words()]


def _be(event: Event, subject: NounPhrase) -> Words:
    forms = ("were", "was") if event.is_past else ("are", "is")
    return [forms[0] if subject.is_plural else forms[1], *(["not"] if event.is_negated else [])]


def _finite(event: Event) -> Words:
    base, third, past, _ = lex.VERBS[str(event.verb)]
    is_plural = event.subject.is_plural
    if event.is_negated:
        return ["did" if event.is_past else "do" if is_plural else "does", "not", base]
    return [past if event.is_past else base if is_plural else third]
