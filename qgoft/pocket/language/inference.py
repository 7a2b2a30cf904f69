"""Sentence pairs by composed edits: entailment, neutral and contradiction. Directions of entailment follow monotonicity."""

from collections.abc import Sequence

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.events import Words
from qgoft.pocket.language.world import World

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2
# How often an edit is tried; moving up or down the taxonomy is the most frequent.
EDITS = (
    "up",
    "up",
    "up",
    "down",
    "down",
    "down",
    "drop",
    "add",
    "quantifier",
    "negation",
    "antonym",
    "verb",
    "swap",
    "synonym",
    "synonym",
    "sibling",
    "sibling",
)
TAXONOMIC = ("up", "down")


class Pair:
    """A premise and the hypothesis that is edited from it. `used` prevents edits from changing one slot twice."""

    def __init__(self, world: World):
        self.world = world
        self.premise = world.event(quantified=world.chance(0.5), negated=0.2, extras=0.5)
        self.hypothesis = self.premise.copy()
        self.used: set[str] = set()
        self.is_neutral = False
        self.is_contradiction = False

    def is_upward(self, slot: str) -> bool:
        """Return True if generalising this slot of the premise preserves its truth."""
        determiner = self.premise.subject.determiner
        if slot == "subject":
            return determiner not in ("every", "all", "no")
        return not (self.premise.is_negated or determiner == "no")

    def label(self) -> int:
        return NEUTRAL if self.is_neutral else CONTRADICTION if self.is_contradiction else ENTAILMENT

    def is_clear(self) -> bool:
        """Return False for a contradiction combined with a negation and another edit, whose label readers would dispute."""
        is_negative = self.premise.is_negated or self.premise.subject.determiner == "no"
        return not (self.is_contradiction and is_negative and self.used & {"verb", "add", "up", "down", "drop"})

    def apply(self, edit: str) -> None:
        """Apply one edit, if it is applicable."""
        if edit not in self.used and getattr(self, "_" + edit)():
            self.used.add(edit)

    def _free_slot(self, slots: Sequence[str]) -> str | None:
        present = [slot for slot in slots if slot in self.hypothesis.slots()]
        slot = self.world.pick(present) if present else None
        return None if slot in self.used else slot

    def _up(self) -> bool:
        slot = self._free_slot(("subject", "object", "recipient"))
        if slot is None:
            return False
        phrase = self.hypothesis.phrase(slot)
        if phrase.name:
            phrase.name, phrase.noun, phrase.determiner, phrase.is_plural = None, "person", "a", False
            holds = self.is_upward(slot)
        else:
            above = lex.ancestors(str(phrase.noun))
            if not above:
                return False
            is_definite = phrase.determiner == "the"
            phrase.noun = self.world.pick(above)
            holds = is_definite or self.is_upward(slot)
            if is_definite and not self.premise.is_negated and not phrase.is_plural and self.world.chance(0.5):
                phrase.determiner = "a"
        self.is_neutral |= not holds
        self.used.add(slot)
        return True

    def _down(self) -> bool:
        slot = self._free_slot(("subject", "object", "recipient"))
        phrase = self.hypothesis.phrase(slot) if slot else None
        below = lex.children(phrase.noun) if phrase and phrase.noun else []
        if not below or slot is None or phrase is None:
            return False
        phrase.noun = self.world.pick(below)
        self.is_neutral |= phrase.determiner == "the" or self.is_upward(slot)
        self.used.add(slot)
        return True

    def _drop(self) -> bool:
        event = self.hypothesis
        options = [name for name in ("place", "time") if getattr(event, name)]
        options += [slot for slot in event.slots() if event.phrase(slot).adjective]
        if not options:
            return False
        what = self.world.pick(options)
        if what in self.used:
            return False
        if what in ("place", "time"):
            setattr(event, what, None)
            self.is_neutral |= not self.is_upward("object")
        else:
            phrase = event.phrase(what)
            phrase.adjective = None
            self.is_neutral |= phrase.determiner != "the" and not self.is_upward(what)
        self.used.add(what)
        return True

    def _add(self) -> bool:
        event, world = self.hypothesis, self.world
        what = world.pick(["place", "time", "subject", "object"])
        if what in self.used:
            return False
        if what in ("place", "time"):
            if getattr(event, what):
                return False
            setattr(event, what, (world.pick(lex.PREPOSITIONS), world.pick(lex.PLACES)) if what == "place" else world.pick(lex.TIMES))
            self.is_neutral |= self.is_upward("object")
        else:
            phrase = event.phrase(what) if what in event.slots() else None
            if phrase is None or phrase.name or phrase.adjective:
                return False
            phrase.adjective = world.pick(lex.ADJECTIVES)
            self.is_neutral |= phrase.determiner == "the" or self.is_upward(what)
        self.used.add(what)
        return True

    def _quantifier(self) -> bool:
        options = {
            "every": ["some", "many"],
            "all": ["some", "many"],
            "many": ["some"],
            "some": ["all", "many"],
            "five": ["some"],
            "four": ["some"],
            "three": ["some"],
            "two": ["some", "all"],
            "no": ["some"],
        }
        old = str(self.premise.subject.determiner)
        if old not in options or "subject" in self.used:
            return False
        new = self.world.pick(options[old])
        self.hypothesis.subject.determiner = new
        self.hypothesis.subject.is_plural = True
        self.is_contradiction |= old == "no"
        self.is_neutral |= new in ("all", "many") and old in ("some", "two")
        self.used |= {"subject", "negation"}
        return True

    def _negation(self) -> bool:
        subject = self.premise.subject
        if subject.name or subject.determiner == "the":
            self.hypothesis.is_negated = not self.premise.is_negated
        elif subject.determiner in ("some", "a"):
            self.hypothesis.subject.determiner, self.hypothesis.subject.is_plural = "no", False
        else:
            return False
        self.is_contradiction = True
        self.used.add("subject")
        return True

    def _antonym(self) -> bool:
        premise = self.premise
        is_plain = premise.subject.name or premise.subject.determiner == "the"
        if premise.state not in lex.ANTONYMS or premise.is_negated or not is_plain:
            return False
        self.hypothesis.state = lex.ANTONYMS[str(premise.state)]
        self.is_contradiction = True
        self.used.add("negation")
        return True

    def _verb(self) -> bool:
        verb = self.premise.verb
        if verb is None:
            return False
        if verb in lex.VERB_HYPERNYMS and self.world.chance(0.6):
            self.hypothesis.verb = lex.VERB_HYPERNYMS[verb]
            self.is_neutral |= not self.is_upward("object")
            return True
        other = self.world.other_verb(self.premise)
        if other is None or verb in _above(other) or other in _above(verb):
            return False
        self.hypothesis.verb = other
        self.is_neutral = True
        return True

    def _swap(self) -> bool:
        event = self.hypothesis
        if self.used or event.kind != "transitive" or not self.world.can_swap(event):
            return False
        assert event.object is not None
        if event.subject.determiner not in ("the", "a") and not event.subject.name:
            return False
        event.subject, event.object = event.object, event.subject
        self.is_neutral = True
        self.used |= {"subject", "object", "verb"}
        return True

    def _sibling(self) -> bool:
        slot = self._free_slot(("subject", "object"))
        phrase = self.hypothesis.phrase(slot) if slot else None
        others = lex.siblings(phrase.noun) if phrase and phrase.noun else []
        if not others or slot is None or phrase is None:
            return False
        phrase.noun = self.world.pick(others)
        self.is_neutral = True
        self.used.add(slot)
        return True

    def _synonym(self) -> bool:
        self.hypothesis = self.world.synonymous(self.hypothesis)
        return True


def _above(verb: str) -> list[str]:
    found = []
    while verb in lex.VERB_HYPERNYMS:
        verb = lex.VERB_HYPERNYMS[verb]
        found.append(verb)
    return found


def draw_pair(world: World, label: int, edits: Sequence[str] = EDITS) -> tuple[Words, Words]:
    """Draw a premise and a hypothesis, without periods, in the given relation."""
    while True:
        pair = Pair(world)
        for _ in range(world.pick([1, 2, 2, 3])):
            pair.apply(world.pick(edits))
        if not pair.is_clear() or pair.label() != label:
            continue
        premise, hypothesis = world.text(pair.premise), world.text(pair.hypothesis)
        if premise != hypothesis:
            return premise, hypothesis
