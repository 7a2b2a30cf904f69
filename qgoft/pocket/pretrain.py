"""Pretraining of the embedded encoder: a copy phase, then masked words and replaced-token detection. About seven minutes on one core.

Masked words alone teach grammar but not matching across sentences. A first phase on a sentence and its repetition (or a synonymous form),
with masks only in the second half, does: nine of ten masked words are predicted, and paraphrase and similarity follow (docs/LOG.md).
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DebertaV2Config, DebertaV2ForMaskedLM, PreTrainedTokenizerFast

from qgoft.pocket.language import lexicon as lex
from qgoft.pocket.language.corpus import SPECIAL, document, sentences, vocabulary
from qgoft.pocket.language.tasks import evaluation_sentences
from qgoft.pocket.language.world import World
from qgoft.pocket.pretrain_common import Descent, word_tokenizer

PAD, CLS, SEP, UNK, MASK = range(5)
FIRST_WORD = len(SPECIAL)
# Words that relate two sentences: masked and replaced more often, since they carry the relation.
TELLING = "so therefore maybe perhaps wrong false likewise then recommend praise regret avoid".split()
RELATING = frozenset("likewise so therefore what who where when wrong false".split())


@dataclass(frozen=True)
class Recipe:
    """Recipe of the shipped weights."""

    steps: int = 5000
    batch: int = 48
    rate: float = 2e-3
    copy_share: float = 0.35  # of the steps
    documents: int = 60000
    mask: float = 0.12
    replace: float = 0.12
    mask_copy: float = 0.35
    detection_weight: float = 10.0
    seed: int = 0


def build_config(size: int) -> DebertaV2Config:
    """Return DeBERTaV3's configuration at width 96, which is not a power of two and has a tree of the same shape as 768."""
    return DebertaV2Config(
        vocab_size=size,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=384,
        max_position_embeddings=128,
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        max_relative_positions=-1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pooler_hidden_size=96,
        pooler_dropout=0.0,
        initializer_range=0.08,
        pad_token_id=PAD,
    )


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word, split at spaces; texts are between [CLS] and [SEP], as in BERT."""
    special = [("[CLS]", CLS), ("[SEP]", SEP)]
    template = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B [SEP]", "special_tokens": special}
    return word_tokenizer(words, 128, template, cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def confusable_words() -> list[list[str]]:
    """Return classes of words that replace each other in replaced-token detection."""
    nouns = lex.NOUNS
    classes = [lex.NAMES, nouns, [lex.plural(noun) for noun in nouns]]
    classes += [[forms[i] for forms in lex.VERBS.values()] for i in range(4)]
    classes += [lex.ADJECTIVES, lex.STATES, lex.PLACES, lex.PREPOSITIONS, lex.TIMES, [*lex.QUANTIFIERS, "a", "an", "the", *lex.NUMBERS]]
    classes += [lex.TOPICS, lex.STRONG + lex.MILD]
    classes += [
        line.split()
        for line in (
            "was were is are did does do not",
            "so therefore maybe perhaps likewise then",
            "wrong false so",
            "who what where when",
            "by to in near",
            "i it that and although despite , .",
        )
    ]
    return classes


def opposed_words() -> list[tuple[list[str], list[str]]]:
    """Return words of opinion and those of the other polarity, which replace them: detection then needs the polarity of every word."""
    pairs = [
        (lex.POSITIVE, lex.NEGATIVE),
        (lex.LIKED, lex.DISLIKED),
        (lex.LIKE, lex.DISLIKE),
        (["recommend", "praise"], ["regret", "avoid"]),
    ]
    return [pair for one, other in pairs for pair in ((one, other), (other, one))]


@dataclass
class Example:
    """Token ids, start of the second part, and whether only the second part is masked."""

    ids: list[int]
    second: int
    mask_second_only: bool


class Corpus:
    """Batches of examples of similar length. No document contains a sentence of a validation or test split."""

    def __init__(self, words: list[str], recipe: Recipe, name: str = "train"):
        self.index = {word: i for i, word in enumerate(words)}
        self.recipe = recipe
        self.random = random.Random(f"pocket/pretrain/{name}")
        self.world = World(f"pocket/corpus/{name}")
        self.held_out = evaluation_sentences()

    def encode(self, words: list[str]) -> list[int]:
        return [self.index.get(word, UNK) for word in words]

    def repetition(self) -> Example:
        """Return a sentence followed by itself, by another form of it, or by a synonymous one."""
        while True:
            event = self.world.event(quantified=self.world.chance(0.3))
            first, kind = self.world.sentence(event), self.random.random()
            if kind < 0.6:
                second = first
            elif kind < 0.8:
                second = self.world.sentence(event)
            else:
                second = self.world.sentence(self.world.synonymous(event), 0.4)
            if not {" ".join(first), " ".join(second)} & self.held_out:
                ids = [CLS, *self.encode(first), SEP, *self.encode(second), SEP]
                return Example(ids, len(first) + 2, self.random.random() < 0.8)

    def text(self) -> Example:
        while True:
            words = document(self.world)
            if self.held_out.isdisjoint(sentences(words)):
                break
        ends = [i for i, word in enumerate(words) if word in (".", "?")]
        if len(ends) > 1 and self.random.random() < 0.6:
            cut = self.random.choice(ends[:-1]) + 1
            words = [*words[:cut], "[SEP]", *words[cut:]]
        ids = [CLS, *self.encode(words)[:60], SEP]
        if len(ends) == 1 and len(words) <= 10 and {"kind", "called", "means", "opposite", "is"} & set(words):
            # Of a definition, the defined word is masked.
            return Example(ids, len(words) - 1, self.random.random() < 0.7)
        if RELATING & set(words) and len(ends) > 1:
            return Example(ids, ends[0] + 2, self.random.random() < 0.5)
        return Example(ids, 0, False)

    def batches(self, count: int, *, repeated: bool) -> list[list[Example]]:
        size = self.recipe.batch
        examples = [self.repetition() if repeated else self.text() for _ in range(count)]
        examples.sort(key=lambda example: len(example.ids))
        return [examples[i : i + size] for i in range(0, len(examples) - size + 1, size)]


@dataclass
class Batch:
    """Input ids, original ids, masked positions, and other positions that differ."""

    ids: Tensor
    original: Tensor
    masked: Tensor
    replaced: Tensor
    attention: Tensor

    @property
    def judged(self) -> Tensor:
        """Positions that replaced-token detection predicts."""
        return self.attention & (self.original >= FIRST_WORD) & ~self.masked


class Corruption:
    """Corruption of a batch: masks, replacements by confusable words, and swaps of neighbours."""

    def __init__(self, words: list[str], recipe: Recipe):
        index = {word: i for i, word in enumerate(words)}
        self.recipe = recipe
        self.class_of = torch.zeros(len(words), dtype=torch.long)
        table = [[FIRST_WORD, FIRST_WORD + 1, FIRST_WORD + 2]]
        for members, replacements in [*((words, words) for words in confusable_words()), *opposed_words()]:
            for i in [index[word] for word in members if word in index]:
                if self.class_of[i] == 0:
                    self.class_of[i] = len(table)
            table.append([index[word] for word in replacements if word in index])
        width = 8 * max(map(len, table))
        self.table = torch.tensor([[row[k % len(row)] for k in range(width)] for row in table])
        self.telling = torch.zeros(len(words), dtype=torch.bool)
        self.telling[[index[word] for word in TELLING]] = True

    def __call__(self, examples: list[Example]) -> Batch:
        recipe = self.recipe
        length = max(len(example.ids) for example in examples)
        original = torch.tensor([example.ids + [PAD] * (length - len(example.ids)) for example in examples])
        attention = original != PAD
        is_word = attention & (original >= FIRST_WORD)
        in_second = torch.arange(length)[None] >= torch.tensor([example.second for example in examples])[:, None]
        second_only = torch.tensor([example.mask_second_only for example in examples])[:, None]
        mask = torch.where(second_only, torch.where(in_second, recipe.mask_copy, 0.0), torch.tensor(recipe.mask))
        replace = torch.where(second_only & ~in_second, 0.0, torch.tensor(recipe.replace))
        telling, draw = self.telling[original], torch.rand(original.shape)
        masked = is_word & (draw < torch.where(telling, 0.35, mask))
        change = is_word & ~masked & (draw < torch.where(telling, 0.65, mask + replace))
        ids = original.clone()
        ids[masked] = MASK
        words = original[change]
        ids[change] = self.table[self.class_of[words], torch.randint(0, self.table.shape[1], words.shape)]
        self._exchange_neighbours(ids, masked, attention)
        return Batch(ids, original, masked, (ids != original) & ~masked, attention)

    @staticmethod
    def _exchange_neighbours(ids: Tensor, masked: Tensor, attention: Tensor) -> None:
        for row in (torch.rand(len(ids)) < 0.25).nonzero()[:, 0].tolist():
            i = int(torch.randint(1, int(attention[row].sum()) - 2, (1,)))
            if ids[row, i] >= FIRST_WORD and ids[row, i + 1] >= FIRST_WORD and not masked[row, i : i + 2].any():
                ids[row, [i, i + 1]] = ids[row, [i + 1, i]]


def schedule(corpus: Corpus, recipe: Recipe) -> Iterator[list[Example]]:
    """Return the mixture of a step: mostly repetitions in the first phase, mostly text afterwards."""
    repetitions, texts = corpus.batches(recipe.documents // 2, repeated=True), corpus.batches(recipe.documents, repeated=False)
    for step in range(recipe.steps):
        share = 0.9 if step < recipe.copy_share * recipe.steps else 0.2
        yield corpus.random.choice(repetitions if corpus.random.random() < share else texts)


def pretrain(recipe: Recipe, *, report: Callable[[str], None] = print) -> tuple[DebertaV2ForMaskedLM, PreTrainedTokenizerFast]:
    """Train from random weights; the same recipe gives the same model on the same machine."""
    torch.manual_seed(recipe.seed)
    words = vocabulary()
    words += [f"[unused{i}]" for i in range(-len(words) % 8)]
    model = DebertaV2ForMaskedLM(build_config(len(words)))
    detector = nn.Sequential(nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 1))
    descent = Descent([*model.parameters(), *detector.parameters()], recipe.rate, steps=recipe.steps, rise=0.1 * recipe.steps)
    corrupt = Corruption(words, recipe)
    model.train()
    for step, examples in enumerate(schedule(Corpus(words, recipe), recipe), start=1):
        batch = corrupt(examples)
        hidden = model.deberta(input_ids=batch.ids, attention_mask=batch.attention.long())[0]
        word_loss = functional.cross_entropy(model.cls(hidden[batch.masked]), batch.original[batch.masked])
        judged = batch.judged
        verdict = detector(hidden[judged])[:, 0]
        found_loss = functional.binary_cross_entropy_with_logits(verdict, batch.replaced[judged].float())
        descent.step(word_loss + recipe.detection_weight * found_loss)
        if step % 200 == 0 or step == recipe.steps:
            report(f"step {step}/{recipe.steps}  words {word_loss.item():.3f}  detection {found_loss.item():.3f}")
    return model.eval(), build_tokenizer(words)


@torch.no_grad()
def measure(model: DebertaV2ForMaskedLM, tokenizer: PreTrainedTokenizerFast, *, count: int = 960) -> dict[str, float]:
    """Return the percentage of masked words predicted on unseen text: in the second of two repeated sentences, and in documents."""
    recipe = Recipe()
    vocabulary_ = tokenizer.get_vocab()
    words = sorted(vocabulary_, key=vocabulary_.__getitem__)
    torch.manual_seed(1)
    corpus, corrupt = Corpus(words, recipe, "measure"), Corruption(words, recipe)
    scores = {}
    for name, repeated in (("copy", True), ("words", False)):
        right = total = 0
        for examples in corpus.batches(count, repeated=repeated):
            batch = corrupt(examples)
            logits = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[batch.masked]
            right += int((logits.argmax(-1) == batch.original[batch.masked]).sum())
            total += int(batch.masked.sum())
        scores[name] = 100 * right / total
    return scores
