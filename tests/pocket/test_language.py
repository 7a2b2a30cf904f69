"""The synthetic language: labels follow from meaning, splits are disjoint, and the shipped encoder matches its card."""

import json
from collections import Counter

import pytest
from datasets import Dataset

from qgoft.pocket.data import pocket_files, pocket_fingerprint
from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.choices import COMMONSENSE, LETTERS, SUBJECT_ROWS, TEST_ROWS, generate_commonsense
from qgoft.pocket.language.corpus import document, sentences, vocabulary
from qgoft.pocket.language.events import Event, NounPhrase, realise
from qgoft.pocket.language.inference import CONTRADICTION, ENTAILMENT, NEUTRAL, Pair
from qgoft.pocket.language.knowledge import NUMBERED_LABELS, decoder_document, held_out_questions
from qgoft.pocket.language.tasks import MNLI_SIZES, SIZES, TASKS, evaluation_sentences, generate, similarity
from qgoft.pocket.language.text import Opinions, praise
from qgoft.pocket.language.world import World
from qgoft.pocket.weights import weights_directory

COLUMNS = {
    "mnli": {"premise", "hypothesis"}, "sst2": {"sentence"}, "cola": {"sentence"}, "qqp": {"question1", "question2"}, "qnli": {"question", "sentence"},
    "rte": {"sentence1", "sentence2"}, "mrpc": {"sentence1", "sentence2"}, "stsb": {"sentence1", "sentence2"},
}  # fmt: skip


def event(**changes):
    facts = {"kind": "transitive", "subject": NounPhrase("dog"), "verb": "chase", "object": NounPhrase("cat", "a", "red")}
    return Event(**{**facts, **changes})


@pytest.mark.parametrize("task", list(TASKS))
def test_glue_columns_sizes_and_labels(task):
    splits = generate(task)
    assert {name: len(rows) for name, rows in splits.items()} == (MNLI_SIZES if task == "mnli" else SIZES)
    texts = [tuple(row[c] for c in sorted(COLUMNS[task])) for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts), "no item occurs twice, within or across splits"
    for rows in splits.values():
        assert set(rows[0]) == COLUMNS[task] | {"label", "idx"}
        assert [row["idx"] for row in rows] == list(range(len(rows)))
        if task == "stsb":
            assert all(0 <= row["label"] <= 5 for row in rows)
            continue
        counts = Counter(row["label"] for row in rows)
        classes = 3 if task == "mnli" else 2
        assert set(counts) == set(range(classes))
        assert max(counts.values()) < 1.25 * len(rows) / classes


def test_generation_is_seeded():
    assert generate("rte") == generate("rte")


def test_sst2_evaluation_words_are_rare_in_training():
    splits = generate("sst2")
    first, second = Opinions(0), Opinions(1)

    def words(opinions):
        return {w for kind in (opinions.adjectives, opinions.felt, opinions.feel) for sign in (True, False) for w in kind[sign]}

    assert words(first).isdisjoint(words(second))
    for split in ("validation", "test"):
        assert not any(words(first) & set(row["sentence"].split()) for row in splits[split])
    shared = sum(bool(words(second) & set(row["sentence"].split())) for row in splits["train"])
    assert 25 < shared < 80


def test_mnli_mismatched_nouns():
    splits = generate("mnli")
    kinds = {kind for kinds in lex.KINDS.values() for kind in kinds}

    def drawn(rows):
        return {word for row in rows for word in row["premise"].split()} & kinds

    assert not drawn(splits["train"]) & drawn(splits["test_mismatched"])


def test_sentence_realisation():
    assert " ".join(realise(event())) == "the dog chased a red cat"
    assert " ".join(realise(event(), passive=True)) == "a red cat was chased by the dog"
    assert " ".join(realise(event(is_negated=True, is_past=False))) == "the dog does not chase a red cat"
    assert (
        " ".join(realise(event(time="monday", place=("in", "park")), time_first=True)) == "on monday , the dog chased a red cat in the park"
    )
    gift = event(kind="dative", verb="give", subject=NounPhrase(name="mary"), recipient=NounPhrase("uncle", "an"))
    assert " ".join(realise(gift, double_object=True)) == "mary gave an uncle a red cat"


@pytest.mark.parametrize(
    ("determiner", "change", "label"),
    [
        ("a", ("up", "subject"), ENTAILMENT),
        ("every", ("up", "subject"), NEUTRAL),
        ("every", ("down", "subject"), ENTAILMENT),
        ("no", ("down", "subject"), ENTAILMENT),
        ("some", ("down", "subject"), NEUTRAL),
    ],
)
def test_entailment_follows_monotonicity(determiner, change, label):
    """ "A dog ran" entails "an animal ran". "Every dog ran" does not entail "every animal ran", but "every poodle ran"."""
    edit, slot = change
    world = World("test")
    pair = Pair(world)
    pair.premise = Event("intransitive", NounPhrase("dog", determiner, is_plural=determiner == "some"), "run")
    pair.hypothesis, pair.used = pair.premise.copy(), set()
    pair.is_neutral = pair.is_contradiction = False
    pair.apply(edit)
    assert slot in pair.used
    assert pair.label() == label


def test_negation_contradicts():
    pair = Pair(World("test"))
    pair.premise = event()
    pair.hypothesis, pair.used, pair.is_neutral, pair.is_contradiction = pair.premise.copy(), set(), False, False
    pair.apply("negation")
    assert pair.hypothesis.is_negated
    assert pair.label() == CONTRADICTION


def test_similarity_counts_slots():
    same = event()
    assert similarity(event(), same) == 5.0
    assert similarity(event(), event(verb="pursue")) == 5.0, "a synonym changes nothing"
    assert similarity(event(), event(verb="watch")) == pytest.approx(5 * 4 / 7, abs=0.05)
    assert similarity(event(), event(is_negated=True)) == 3.0
    other = Event("state", NounPhrase(name="leo"), state="sad")
    assert similarity(event(), other) == 0.0


def test_near_misses_differ():
    world = World("near")
    for _ in range(300):
        drawn = world.event()
        assert realise(world.near_miss(drawn)) != realise(drawn)


def test_corpus_excludes_evaluation_sentences():
    from qgoft.pocket.pretrain import Corpus, Recipe

    held_out, words = evaluation_sentences(), vocabulary()
    corpus = Corpus(words, Recipe())
    assert len(held_out) > 20000
    for example in [corpus.text() for _ in range(300)] + [corpus.repetition() for _ in range(300)]:
        text = [words[i] for i in example.ids if i >= 7]
        assert held_out.isdisjoint(sentences(text))


def test_opinions_are_consistent_in_a_document():
    """Praise has words of one polarity, and no negation or contrast."""
    world, opinions = World("praise"), Opinions()
    for is_positive in (True, False):
        other = {word for kind in (opinions.adjectives, opinions.felt, opinions.feel) for word in kind[not is_positive]}
        assert all(other.isdisjoint(praise(world, is_positive, opinions)) for _ in range(300))


def test_opinion_words_are_replaced_by_the_other_polarity():
    import torch

    from qgoft.pocket.pretrain import Corruption, Recipe

    words = vocabulary()
    index = {word: i for i, word in enumerate(words)}
    corruption = Corruption(words, Recipe())
    for members, others in ((lex.POSITIVE, lex.NEGATIVE), (lex.NEGATIVE, lex.POSITIVE), (["regret"], ["recommend", "praise"])):
        found = corruption.table[corruption.class_of[torch.tensor([index[word] for word in members])]]
        assert {words[i] for i in found.flatten()} == set(others)


def test_decoder_corpus_excludes_questions_of_evaluation():
    """A document may have several questions; their labels are left out of the comparison."""
    held_out = held_out_questions()
    assert len(held_out) == 5 * SUBJECT_ROWS + 8 * TEST_ROWS
    labels = NUMBERED_LABELS | {*LETTERS}

    def found(excluded):
        world = World("decoder corpus")
        documents = (" ".join(word for word in decoder_document(world, excluded) if word not in labels) for _ in range(4000))
        return sum(question in text for text in documents for question in closed)

    closed = [question for question in held_out if question.startswith("is ") and question.endswith("?")]
    assert found(frozenset()) > 0
    assert found(held_out) == 0


def test_answers_of_choice_tasks_are_balanced():
    splits = generate_commonsense()
    for task in COMMONSENSE:
        counts = Counter(row["answer"] for row in splits[task])
        assert max(counts.values()) < 1.25 * TEST_ROWS / len(counts), task


def test_corpus_excludes_question_pairs():
    world = World("questions")
    assert all(document(world).count("?") <= 1 for _ in range(2000))


def test_vocabulary_covers_everything():
    from qgoft.models import load_tokenizer

    tokenizer = load_tokenizer(weights_directory("pocket-deberta"))
    for task in TASKS:
        for rows in generate(task).values():
            for row in rows[:200]:
                for text in row.values():
                    if isinstance(text, str):
                        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text
    encoded = tokenizer("the dog ran .", "a cat slept .")["input_ids"]
    assert tokenizer.decode(encoded) == "[CLS] the dog ran . [SEP] a cat slept . [SEP]"


def test_cache_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path))
    directory = pocket_files("glue", "cola")
    first = pocket_fingerprint(directory)
    changed = (directory / "test.parquet").stat().st_mtime_ns
    assert pocket_files("glue", "cola") == directory
    assert (directory / "test.parquet").stat().st_mtime_ns == changed
    assert len(first) == 64


def test_shipped_encoder_loads():
    from qgoft.pocket.pretrain import Recipe

    directory = weights_directory("pocket-deberta")
    size = (directory / "model.safetensors").stat().st_size
    assert size < 1_000_000
    assert weights_directory("pocket-deberta-random") == directory
    card = json.loads((directory / "card.json").read_text())
    assert card["percent of masked words found"]["copy"] > 80
    assert card["recipe"] == vars(Recipe())


def test_shipped_encoder_is_pretrained():
    """The backbone distinguishes a repeated sentence from another one: its states of the two halves agree."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(weights_directory("pocket-deberta") / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    from transformers import AutoModel, AutoTokenizer

    directory = weights_directory("pocket-deberta")
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    world = World("probe")
    near, far = [], []
    for _ in range(30):
        one, two = world.sentence(world.event()), world.sentence(world.event())
        for bag, other in ((near, one), (far, two)):
            with torch.no_grad():
                states = model(**tokenizer(" ".join(one), " ".join(other), return_tensors="pt")).last_hidden_state[0]
            bag.append(torch.cosine_similarity(states[1 : len(one) + 1].mean(0), states[len(one) + 2 : -1].mean(0), dim=0).item())
    assert sum(near) / 30 > sum(far) / 30 + 0.1


def test_changed_cache_rows_are_regenerated(tmp_path, monkeypatch, capfd):
    """Rows with labels changed by hand would be used under the checksum of the correct ones."""
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path))
    directory = pocket_files("glue", "rte")
    right = {path.name: path.read_bytes() for path in directory.iterdir()}
    rows = Dataset.from_parquet(str(directory / "train.parquet"))
    flipped = rows.map(lambda row: {"label": 1 - row["label"]})
    flipped.to_parquet(directory / "train.parquet")
    assert (directory / "train.parquet").read_bytes() != right["train.parquet"]
    assert pocket_files("glue", "rte") == directory
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == right
    assert "has other rows than were generated; generating them again" in capfd.readouterr().err
