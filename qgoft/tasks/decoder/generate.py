"""Generation of answers in seeded batches, stored on disk as they are produced, so that a rerun generates only the missing ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from qgoft.records import TaggedLines, code_origin, read_tagged
from qgoft.tasks.evaluate import evaluating


@dataclass(frozen=True)
class GenerationSettings:
    """Generation settings. Temperature 0 takes the most likely token, or with several beams the most likely text."""

    max_new_tokens: int
    temperature: float
    top_p: float
    batch_size: int
    seed: int
    top_k: int = 0  # 0: all tokens
    num_beams: int = 1
    stop: tuple[str, ...] = ()  # an answer ends before the first of these texts


class AnswerFile:
    """Answers of certain weights, code and packages; if sampled, also of one batch size, which determines the seeds. Every process writes
    its own file (`<name>-<rank>.jsonl`) and reads all.
    """

    def __init__(self, directory: Path, name: str, weights: str, rank: int, batch_size: int | None = None):
        self.directory, self.name = directory, name
        self.tag = {"weights": weights, **code_origin(), **({} if batch_size is None else {"batch_size": str(batch_size)})}
        self.mine = TaggedLines(directory / f"{name}-{rank}.jsonl", self.tag)

    def read(self) -> dict[int, str]:
        """Return prompt number -> answer, of all processes."""
        files = [read_tagged(path, self.tag) or [] for path in sorted(self.directory.glob(f"{self.name}-*.jsonl"))]
        return {line["number"]: line["answer"] for lines in files for line in lines}

    def append(self, answers: dict[int, str]) -> None:
        self.mine.append([{"number": number, "answer": text} for number, text in answers.items()])


def write_answers(
    model: nn.Module,
    prompts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    generation: GenerationSettings,
    file: AnswerFile,
) -> list[str]:
    """Return one answer per prompt, in their order. The prompts are divided among the processes.

    Batches hold prompts of similar length and are the same for the same prompts and batch size, so that samples do not depend on where an
    earlier attempt was interrupted.
    """
    done = file.read()
    mine: dict[int, str] = {}
    with evaluating(model):
        for number, batch in enumerate(_batches(prompts, tokenizer, generation.batch_size)):
            if number % accelerator.num_processes != accelerator.process_index:
                continue
            if any(index not in done for index in batch):
                torch.manual_seed(generation.seed * 1_000_003 + number)
                answers = dict(
                    zip(batch, _write(model, [prompts[index] for index in batch], tokenizer, accelerator, generation), strict=True)
                )
                file.append(answers)
            else:
                answers = {index: done[index] for index in batch}
            mine.update(answers)
    pairs = list(mine.items())
    if accelerator.num_processes > 1:
        pairs = gather_object(pairs)
    return [text for _, text in sorted(pairs)]


def _batches(prompts: list[str], tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[list[int]]:
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    order = sorted(range(len(prompts)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def _write(
    model: nn.Module, prompts: list[str], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator, generation: GenerationSettings
) -> list[str]:
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    tokenizer.padding_side = side
    sampling = (
        {"do_sample": True, "temperature": generation.temperature, "top_p": generation.top_p, "top_k": generation.top_k}
        if generation.temperature
        else {}
    )
    config = GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        num_beams=generation.num_beams,
        **(sampling or {"do_sample": False}),
    )
    inputs = {name: batch[name].to(accelerator.device) for name in ("input_ids", "attention_mask")}
    # Every process has its own prompts and all weights (train/distributed.py), so none waits for another.
    ids = model.generate(**inputs, generation_config=config, synced_gpus=False)[:, inputs["input_ids"].shape[1] :]
    return [cut_at(text, generation.stop).strip() for text in tokenizer.batch_decode(ids.cpu(), skip_special_tokens=True)]


def cut_at(text: str, stop: tuple[str, ...]) -> str:
    """Return the text before the first occurrence of any stop text."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]
