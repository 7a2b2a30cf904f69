"""The words of the synthetic world and their relations."""

# category -> group -> kinds
TAXONOMY = {
    "animal": {
        "dog": "poodle beagle terrier spaniel",
        "cat": "tabby siamese manx",
        "bird": "robin sparrow finch crow",
        "horse": "pony mare stallion",
    },
    "person": {
        "worker": "baker nurse farmer pilot miner tailor",
        "artist": "painter singer dancer poet",
        "child": "boy girl toddler",
        "relative": "aunt uncle cousin",
    },
    "food": {"fruit": "apple pear plum fig", "bread": "bagel roll toast", "sweet": "candy cake cookie"},
    "vehicle": {"car": "sedan coupe taxi", "boat": "canoe ferry kayak", "bike": "tandem moped scooter"},
    "thing": {
        "tool": "hammer saw drill",
        "toy": "puppet kite marble",
        "instrument": "guitar flute drum",
        "garment": "shirt jacket scarf",
    },
}
GROUPS = {category: list(groups) for category, groups in TAXONOMY.items()}
KINDS = {group: kinds.split() for groups in TAXONOMY.values() for group, kinds in groups.items()}
PARENT = {kind: group for group, kinds in KINDS.items() for kind in kinds}
PARENT.update({group: category for category, groups in GROUPS.items() for group in groups})

NOUN_SYNONYMS = {
    "child": "kid",
    "bike": "cycle",
    "garment": "cloth",
    "jacket": "coat",
    "candy": "bonbon",
    "boat": "vessel",
    "instrument": "device",
    "horse": "steed",
}
_MAIN_NOUN = {synonym: noun for noun, synonym in NOUN_SYNONYMS.items()}
NOUNS = [*TAXONOMY, *KINDS, *(kind for kinds in KINDS.values() for kind in kinds), *NOUN_SYNONYMS.values()]

_PLURALS = dict(
    pair.split(":")
    for pair in "person:people child:children scarf:scarves finch:finches candy:candies ferry:ferries tabby:tabbies pony:ponies "
    "siamese:siameses manx:manxes".split()
)
NAMES = "mary anna lucy emma nina clara rosa ella john peter tom oscar hugo felix leo adam".split()


def main_noun(noun: str) -> str:
    """Return the main word of a synonym."""
    return _MAIN_NOUN.get(noun, noun)


def noun_synonym(noun: str) -> str | None:
    return NOUN_SYNONYMS.get(noun) or _MAIN_NOUN.get(noun)


def plural(noun: str) -> str:
    return _PLURALS.get(noun, noun + "s")


def ancestors(noun: str) -> list[str]:
    """Return the group and the category above a noun, nearest first."""
    found, word = [], main_noun(noun)
    while word in PARENT:
        word = PARENT[word]
        found.append(word)
    return found


def children(noun: str) -> list[str]:
    word = main_noun(noun)
    return KINDS.get(word) or GROUPS.get(word) or []


def siblings(noun: str) -> list[str]:
    parent = PARENT.get(main_noun(noun))
    return [other for other in children(parent) if other != main_noun(noun)] if parent else []


def category(noun: str) -> str:
    above = ancestors(noun)
    return above[-1] if above else main_noun(noun)


# verb -> (base, third person, past, participle)
VERBS: dict[str, tuple[str, str, str, str]] = {}


def _add_verb(base: str, past: str | None = None, participle: str | None = None, third: str | None = None) -> None:
    past = past or base + ("d" if base.endswith("e") else "ed")
    third = third or base + ("es" if base.endswith(("ch", "sh", "s")) else "s")
    VERBS[base] = (base, third, past, participle or past)


for _base in (
    "chase pursue watch observe help assist clean wash push shove pull tow paint repair walk shout yell dance jump laugh giggle work visit "
    "adore admire loathe touch toss offer mail hand detest yawn devour purchase notice"
).split():
    _add_verb(_base)
for _form in (
    "carry:carried:carried:carries nap:napped spot:spotted fix:fixed:fixed:fixes eat:ate:eaten buy:bought find:found build:built make:made "
    "hold:held hide:hid:hidden break:broke:broken throw:threw:thrown give:gave:given send:sent show:showed:shown sell:sold sing:sang:sung "
    "sleep:slept run:ran:run sprint:sprinted swim:swam:swum speak:spoke:spoken whisper:whispered move:moved steal:stole:stolen take:took:taken lend:lent"
).split():
    _add_verb(*_form.split(":"))

VERB_SYNONYMS = dict(
    pair.split(":")
    for pair in "chase:pursue watch:observe help:assist clean:wash push:shove pull:tow fix:repair eat:devour buy:purchase build:make throw:toss "
    "adore:admire detest:loathe notice:spot sleep:nap shout:yell laugh:giggle mail:send hand:give".split()
)
VERB_SYNONYMS.update({b: a for a, b in list(VERB_SYNONYMS.items())})
# verb -> the more general one
VERB_HYPERNYMS = dict(
    pair.split(":")
    for pair in "sprint:run run:move walk:move swim:move dance:move jump:move whisper:speak shout:speak yell:speak steal:take".split()
)

_LIVING, _PEOPLE = ("animal", "person"), ("person",)
# verb -> (categories of the subject, of the object)
TRANSITIVE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "chase": (_LIVING, ("animal", "person", "vehicle")),
    "watch": (_LIVING, ("animal", "person", "vehicle")),
    "help": (_PEOPLE, _LIVING),
    "clean": (_PEOPLE, ("vehicle", "thing", "animal")),
    "push": (_PEOPLE, ("vehicle", "person", "thing")),
    "pull": (_LIVING, ("vehicle", "thing")),
    "fix": (_PEOPLE, ("vehicle", "thing")),
    "eat": (_LIVING, ("food",)),
    "buy": (_PEOPLE, ("food", "vehicle", "thing", "animal")),
    "build": (_PEOPLE, ("vehicle", "thing")),
    "throw": (_PEOPLE, ("thing", "food")),
    "adore": (_PEOPLE, ("animal", "person", "vehicle")),
    "detest": (_PEOPLE, ("animal", "person", "food")),
    "notice": (_LIVING, ("animal", "person", "thing", "food")),
    "paint": (_PEOPLE, ("animal", "vehicle", "thing")),
    "find": (_LIVING, ("animal", "food", "thing")),
    "carry": (_LIVING, ("thing", "food")),
    "hide": (_LIVING, ("food", "thing")),
    "break": (_LIVING, ("thing", "vehicle")),
    "hold": (_PEOPLE, ("thing", "food", "animal")),
    "steal": (_LIVING, ("food", "thing")),
    "take": (_LIVING, ("food", "thing")),
    "visit": (_PEOPLE, _PEOPLE),
    "touch": (_LIVING, ("animal", "thing", "food")),
}
TRANSITIVE.update({VERB_SYNONYMS[verb]: slots for verb, slots in list(TRANSITIVE.items()) if verb in VERB_SYNONYMS})
DATIVE = "give hand send mail show sell offer lend".split()
INTRANSITIVE: dict[str, tuple[str, ...]] = dict.fromkeys("sleep nap run sprint walk swim jump move yawn".split(), _LIVING)
INTRANSITIVE.update(dict.fromkeys("shout yell laugh giggle sing dance whisper speak work".split(), _PEOPLE))

COLOURS = "red blue green yellow black white brown pink".split()
ADJECTIVES = [*COLOURS, "big", "small", "large", "tiny", "old", "young", "ancient"]
STATES = "happy sad glad gloomy angry furious calm quiet silent noisy fast slow quick".split()
ADJECTIVE_SYNONYMS = dict(
    pair.split(":") for pair in "big:large small:tiny old:ancient happy:glad sad:gloomy angry:furious quiet:silent fast:quick".split()
)
ADJECTIVE_SYNONYMS.update({b: a for a, b in list(ADJECTIVE_SYNONYMS.items())})
ANTONYMS = dict(
    pair.split(":")
    for pair in "big:small small:big large:tiny tiny:large old:young young:old ancient:young happy:sad sad:happy glad:gloomy gloomy:glad "
    "angry:calm calm:angry furious:calm quiet:noisy silent:noisy noisy:quiet fast:slow slow:fast quick:slow".split()
)
PLACES = "park garden kitchen forest market school station harbor library village".split()
PREPOSITIONS = ["in", "near", "behind"]
TIMES = "yesterday today monday tuesday friday sunday".split()
NUMBERS = ["two", "three", "four", "five"]
QUANTIFIERS = ["every", "no", "some", "all", "many"]

POSITIVE = "superb great wonderful delightful brilliant charming excellent lovely gripping fresh touching funny clever smart good nice decent pleasant fine solid".split()
NEGATIVE = (
    "awful terrible dreadful boring dull clumsy horrible tedious stupid bland messy weak ugly poor bad flat odd stale thin slowish".split()
)
LIKED, DISLIKED = "loved enjoyed adored liked".split(), "hated disliked loathed detested".split()
LIKE, DISLIKE = "love enjoy adore like".split(), "hate dislike loathe detest".split()
TOPICS = "film movie story plot novel song show meal hotel game script scene".split()
STRONG, MILD = "very really truly extremely".split(), "fairly rather".split()
VOWELS = frozenset("aeiou")


def article(word: str) -> str:
    return "an" if word[0] in VOWELS else "a"
