"""Drawing and editing of events: synonyms keep the meaning, a near miss changes one thing."""

import random
from collections.abc import Sequence
from typing import TypeVar

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.events import Event, NounPhrase, Words, realise

T = TypeVar("T")
QUANTIFYING = (*lex.QUANTIFIERS, *lex.NUMBERS)


class World:
    """Seeded source of events. `half` keeps the even or the odd kinds of every group: two genres for MNLI."""

    def __init__(self, seed: str, half: int | None = None):
        self.random = random.Random(seed)
        self.half = half

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def kinds(self, group: str) -> list[str]:
        kinds = lex.KINDS[group]
        return kinds if self.half is None else kinds[self.half :: 2]

    def noun(self, categories: Sequence[str]) -> str:
        """Draw a kind (70%), a group or a category."""
        category = self.pick(categories)
        group = self.pick(lex.GROUPS[category])
        level = self.random.random()
        return self.pick(self.kinds(group)) if level < 0.7 else group if level < 0.9 else category

    def phrase(self, categories: Sequence[str], *, names: bool = True, quantified: bool = False) -> NounPhrase:
        if "person" in categories and names and self.chance(0.35 if len(categories) > 1 else 0.5):
            return NounPhrase(name=self.pick(lex.NAMES))
        noun = self.noun(categories)
        if noun in lex.NOUN_SYNONYMS and self.chance(0.15):
            noun = lex.NOUN_SYNONYMS[noun]
        adjective = self.pick(lex.ADJECTIVES) if self.chance(0.3) else None
        if quantified and self.chance(0.6):
            determiner = self.pick(QUANTIFYING)
            return NounPhrase(noun, determiner, adjective, determiner not in ("every", "no"))
        if self.chance(0.2):
            return NounPhrase(noun, self.pick(["the", "some", "the", "two", "three"]), adjective, True)
        return NounPhrase(noun, self.pick(["the", "a"]), adjective)

    def _other_phrase(self, categories: Sequence[str], than: NounPhrase, *, names: bool = True) -> NounPhrase:
        while True:
            phrase = self.phrase(categories, names=names)
            if not phrase.resembles(than):
                return phrase

    def event(self, kinds: Sequence[str] | None = None, *, quantified: bool = False, extras: float = 0.35, negated: float = 0.15) -> Event:
        """Draw an event. `extras` is the probability of a place and of a time, each."""
        kind = self.pick(kinds) if kinds else self.random.choices(["transitive", "intransitive", "dative", "state"], [5, 2, 2, 1.5])[0]
        is_past = self.chance(0.7)
        if kind == "transitive":
            verb = self.pick(list(lex.TRANSITIVE))
            subjects, objects = lex.TRANSITIVE[verb]
            subject = self.phrase(subjects, quantified=quantified)
            event = Event(kind, subject, verb, self._other_phrase(objects, subject))
        elif kind == "dative":
            subject = self.phrase(("person",), quantified=quantified)
            target = self.phrase(("food", "thing"), names=False)
            event = Event(kind, subject, self.pick(lex.DATIVE), target, self._other_phrase(("person",), subject))
        elif kind == "intransitive":
            verb = self.pick(list(lex.INTRANSITIVE))
            event = Event(kind, self.phrase(lex.INTRANSITIVE[verb], quantified=quantified), verb)
        else:
            event = Event(kind, self.phrase(("animal", "person"), quantified=quantified), state=self.pick(lex.STATES))
        event.is_past = is_past
        if self.chance(extras):
            event.place = (self.pick(lex.PREPOSITIONS), self.pick(lex.PLACES))
        if self.chance(extras):
            event.time = self.pick(lex.TIMES)
        if event.subject.determiner not in QUANTIFYING and self.chance(negated):
            event.is_negated = True
        return event

    def text(self, event: Event, passive: float = 0.25) -> Words:
        """Return the words of an event in one of its forms, without the period. Quantified subjects stay active, which keeps their scope
        clear.
        """
        can_turn = event.kind in ("transitive", "dative") and event.subject.determiner not in lex.QUANTIFIERS
        return realise(
            event,
            passive=can_turn and self.chance(passive),
            double_object=self.chance(0.5),
            time_first=self.chance(0.3),
        )

    def sentence(self, event: Event, passive: float = 0.25) -> Words:
        return [*self.text(event, passive), "."]

    def synonymous(self, event: Event, count: int = 1) -> Event:
        """Return the same meaning with up to `count` words replaced by synonyms."""
        event = event.copy()
        options = []
        if event.verb in lex.VERB_SYNONYMS:
            options.append(("verb", ""))
        if event.state in lex.ADJECTIVE_SYNONYMS:
            options.append(("state", ""))
        for slot in event.slots():
            phrase = event.phrase(slot)
            if phrase.noun and lex.noun_synonym(phrase.noun):
                options.append(("noun", slot))
            if phrase.adjective in lex.ADJECTIVE_SYNONYMS:
                options.append(("adjective", slot))
        self.random.shuffle(options)
        for what, slot in options[:count]:
            if what == "verb":
                event.verb = lex.VERB_SYNONYMS[str(event.verb)]
            elif what == "state":
                event.state = lex.ADJECTIVE_SYNONYMS[str(event.state)]
            elif what == "adjective":
                event.phrase(slot).adjective = lex.ADJECTIVE_SYNONYMS[str(event.phrase(slot).adjective)]
            else:
                event.phrase(slot).noun = lex.noun_synonym(str(event.phrase(slot).noun))
        return event

    def can_swap(self, event: Event) -> bool:
        """Return True if the event makes sense with subject and object swapped."""
        if event.kind != "transitive":
            return event.kind == "dative"
        assert event.object is not None
        subjects, objects = lex.TRANSITIVE[str(event.verb)]
        return event.subject.category() in objects and event.object.category() in subjects

    def other_verb(self, event: Event) -> str | None:
        """Return a verb that fits the event's phrases and has another meaning."""
        if event.kind == "transitive":
            assert event.object is not None
            subject, target = event.subject.category(), event.object.category()
            pool = [verb for verb, (s, o) in lex.TRANSITIVE.items() if subject in s and target in o]
        elif event.kind == "dative":
            pool = list(lex.DATIVE)
        else:
            pool = [verb for verb, subjects in lex.INTRANSITIVE.items() if event.subject.category() in subjects]
        pool = [verb for verb in pool if verb != event.verb and lex.VERB_SYNONYMS.get(verb) != event.verb]
        return self.pick(pool) if pool else None

    def near_miss(self, event: Event) -> Event:
        """Return an event that differs in one respect."""
        for _ in range(20):
            changed = event.copy()
            change = getattr(self, "_change_" + self.pick(["roles", "verb", "noun", "adjective", "negation", "place", "time", "number"]))
            if change(changed):
                return changed
        changed = event.copy()
        changed.is_past = not changed.is_past
        return changed

    def _change_roles(self, event: Event) -> bool:
        if not self.can_swap(event):
            return False
        if event.kind == "dative":
            assert event.recipient is not None
            event.subject, event.recipient = event.recipient, event.subject
        else:
            assert event.object is not None
            event.subject, event.object = event.object, event.subject
        return True

    def _change_verb(self, event: Event) -> bool:
        if event.kind == "state":
            same = (event.state, lex.ADJECTIVE_SYNONYMS.get(str(event.state)))
            event.state = self.pick([state for state in lex.STATES if state not in same])
            return True
        verb = self.other_verb(event)
        if verb is None:
            return False
        event.verb = verb
        return True

    def _change_noun(self, event: Event) -> bool:
        phrase = event.phrase(self.pick(event.slots()))
        if phrase.name:
            phrase.name = self.pick([name for name in lex.NAMES if name != phrase.name])
            return True
        others = lex.siblings(str(phrase.noun))
        if not others:
            return False
        phrase.noun = self.pick(others)
        return True

    def _change_adjective(self, event: Event) -> bool:
        phrase = event.phrase(self.pick(event.slots()))
        if phrase.adjective in lex.COLOURS:
            phrase.adjective = self.pick([colour for colour in lex.COLOURS if colour != phrase.adjective])
            return True
        if phrase.adjective in lex.ANTONYMS:
            phrase.adjective = lex.ANTONYMS[phrase.adjective]
            return True
        return False

    def _change_negation(self, event: Event) -> bool:
        if event.subject.determiner in lex.QUANTIFIERS or self.chance(0.5):
            return False
        event.is_negated = not event.is_negated
        return True

    def _change_place(self, event: Event) -> bool:
        if event.place is None:
            return False
        preposition, place = event.place
        if self.chance(0.6):
            event.place = (preposition, self.pick([other for other in lex.PLACES if other != place]))
        else:
            event.place = (self.pick([other for other in lex.PREPOSITIONS if other != preposition]), place)
        return True

    def _change_time(self, event: Event) -> bool:
        if event.time is None:
            return False
        event.time = self.pick([other for other in lex.TIMES if other != event.time])
        return True

    def _change_number(self, event: Event) -> bool:
        if event.subject.determiner not in lex.NUMBERS:
            return False
        event.subject.determiner = self.pick([other for other in lex.NUMBERS if other != event.subject.determiner])
        return True
