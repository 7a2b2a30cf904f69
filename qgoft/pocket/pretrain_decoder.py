"""Pretraining of the embedded decoder: next-word prediction, first on repeated sentences, then on documents. About a quarter of an hour on one core."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qgoft.pocket.language.choices import LETTERS, SUBJECTS
from qgoft.pocket.language.knowledge import NUMBERED_LABELS, decoder_document, decoder_vocabulary, held_out_questions, question_words
from qgoft.pocket.language.tasks import evaluation_sentences
from qgoft.pocket.language.world import World
from qgoft.pocket.pretrain_common import Descent, word_tokenizer

PAD, BOS, EOS = 0, 5, 6
UNK = 3
LONGEST = 120
# Last words of an answer.
LABELS = NUMBERED_LABELS | {*LETTERS, "true", "false"}


@dataclass(frozen=True)
class Recipe:
    """Recipe of the shipped weights."""

    steps: int = 10000
    batch: int = 48
    rate: float = 3e-3
    copy_share: float = 0.25  # of the steps
    documents: int = 60000
    label_weight: float = 5.0
    seed: int = 0


def build_config(size: int) -> LlamaConfig:
    """Return LLaMA's configuration at width 96, which is not a power of two and has a tree of the same shape as 768."""
    return LlamaConfig(
        vocab_size=size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=256,
        initializer_range=0.08,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word, split at spaces; a text starts with <s>."""
    return word_tokenizer(words, 256, {"single": "<s> $A", "special_tokens": [("<s>", BOS)]})


class Corpus:
    """Batches of texts of similar length. No text contains a sentence of an evaluation split of synthetic GLUE, or a question of a test
    set of synthetic MMLU or of a commonsense task.
    """

    def __init__(self, words: list[str], recipe: Recipe, name: str = "train"):
        self.index = {word: i for i, word in enumerate(words)}
        self.recipe = recipe
        self.random = random.Random(f"pocket/pretrain/decoder/{name}")
        self.world = World(f"pocket/corpus/decoder/{name}")
        self.sentences, self.questions = evaluation_sentences(), held_out_questions()

    def _ids(self, words: list[str]) -> list[int]:
        return [BOS, *(self.index.get(word, UNK) for word in words[: LONGEST - 2]), EOS]

    def prompt(self, words: list[str]) -> list[int]:
        return [BOS, *(self.index.get(word, UNK) for word in words)]

    def repetition(self) -> list[int]:
        """Return a sentence followed by itself or by a synonymous one."""
        while True:
            event = self.world.event(quantified=self.world.chance(0.3))
            first = self.world.sentence(event)
            second = first if self.world.chance(0.7) else self.world.sentence(self.world.synonymous(event, 1), 0.4)
            if not {" ".join(first), " ".join(second)} & self.sentences:
                return self._ids([*first, "likewise", ",", *second])

    def text(self) -> list[int]:
        words = decoder_document(self.world, self.questions)
        if self.world.chance(0.4):
            words = [*words, *decoder_document(self.world, self.questions)]
        return self._ids(words)

    def batches(self, count: int, *, repeated: bool) -> list[Tensor]:
        size = self.recipe.batch
        texts = sorted((self.repetition() if repeated else self.text() for _ in range(count)), key=len)
        groups = [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)]
        return [torch.tensor([ids + [PAD] * (len(group[-1]) - len(ids)) for ids in group]) for group in groups]


def _loss(model: LlamaForCausalLM, ids: Tensor, is_label: Tensor, period: int, weight: float) -> Tensor:
    """Return the mean next-word loss. The label of an answer, the last word of its sentence, is rare and informative: it has a higher weight."""
    logits = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, :-1]
    each = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    ends = functional.pad(ids[:, 2:] == period, (0, 1))
    weights = (ids[:, 1:] != PAD).float() * torch.where(is_label[ids[:, 1:]] & ends, weight, 1.0)
    return (each * weights).sum() / weights.sum()


def pretrain(recipe: Recipe, *, report: Callable[[str], None] = print) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train from random weights; the same recipe gives the same model on the same machine."""
    torch.manual_seed(recipe.seed)
    words = decoder_vocabulary()
    words += [f"[unused{i}]" for i in range(-len(words) % 8)]
    model = LlamaForCausalLM(build_config(len(words))).train()
    corpus = Corpus(words, recipe)
    repetitions, texts = corpus.batches(recipe.documents // 4, repeated=True), corpus.batches(recipe.documents, repeated=False)
    is_label = torch.tensor([word in LABELS for word in words])
    descent = Descent(model.parameters(), recipe.rate, steps=recipe.steps, rise=0.06 * recipe.steps)
    for step in range(1, recipe.steps + 1):
        share = 0.8 if step <= recipe.copy_share * recipe.steps else 0.1
        batch = corpus.random.choice(repetitions if corpus.random.random() < share else texts)
        loss = _loss(model, batch, is_label, corpus.index["."], recipe.label_weight)
        descent.step(loss)
        if step % 200 == 0 or step == recipe.steps:
            report(f"step {step}/{recipe.steps}  loss {loss.item():.3f}")
    return model.eval(), build_tokenizer(words)


@torch.no_grad()
def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, count: int = 1440) -> dict[str, float]:
    """Return the percentage of next words predicted on unseen text: in the second of two repeated sentences, in documents, and for the
    answer letters of new questions of synthetic MMLU (all subjects except sums, which stay at chance).
    """
    vocabulary = tokenizer.get_vocab()
    corpus = Corpus(sorted(vocabulary, key=vocabulary.__getitem__), Recipe(), "measure")
    likewise = vocabulary["likewise"]
    scores = {}
    for name, repeated in (("copy", True), ("words", False)):
        right = total = 0
        for ids in corpus.batches(count, repeated=repeated):
            found = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, :-1].argmax(-1) == ids[:, 1:]
            counted = ids[:, 1:] != PAD
            if repeated:
                counted &= (ids == likewise).cumsum(1)[:, :-1] > 0
            right, total = right + int((found & counted).sum()), total + int(counted.sum())
        scores[name] = 100 * right / total
    scores["letters"] = _letters_found(model, tokenizer, corpus)
    return scores


def _letters_found(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, *, count: int = 600) -> float:
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(LETTERS)))
    subjects = [draw for name, (_, draw) in SUBJECTS.items() if name != "sums"]
    right = 0
    for i in range(count):
        question, choices, number = subjects[i % len(subjects)](corpus.world)
        ids = corpus.prompt(question_words(question, choices, LETTERS))
        right += int(model(input_ids=torch.tensor([ids])).logits[0, -1][letters].argmax() == number)
    return 100 * right / count
