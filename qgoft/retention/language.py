"""Probes of decoders: the loss on text of the pretraining kind, MMLU, and tasks of lm-eval."""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from qgoft.config.retention import POCKET
from qgoft.errors import QgoftError, format_exception
from qgoft.models import load_tokenizer
from qgoft.pocket.documents import unseen_documents
from qgoft.retention.composed import compose_task, locate
from qgoft.retention.probes import Probe, ProbeContext, ProbeValue
from qgoft.tasks.decoder.lm_eval import evaluate_task, task_version
from qgoft.tasks.decoder.mmlu import Mmlu
from qgoft.tasks.evaluate import evaluating
from qgoft.tasks.read import read_rows
from qgoft.tasks.sources import resolve_files

# Tokens of a window, and windows per batch.
WINDOW, BATCH = 512, 16
POCKET_DOCUMENTS = 1000
MMLU = "instruct/mmlu"


class Language(Probe):
    """Loss on held-out text in nats per token. Chance is the entropy of its tokens: the loss of predicting their frequencies.

    Raises:
        QgoftError: no text is named, or it cannot be read or is too short.
    """

    def __init__(self, context: ProbeContext):
        self.accelerator, asked = context.accelerator, context.asked
        directory = context.run_id.model.directory
        tokenizer = load_tokenizer(directory)
        texts, source = _read_texts(context)
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        window = min(WINDOW, getattr(config, "max_position_embeddings", WINDOW))
        self.windows: list[Tensor] = []
        left = asked.text_tokens
        for text in texts:
            ids = tokenizer(text, verbose=False)["input_ids"][:left]
            left -= len(ids)
            parts = (ids[first : first + window] for first in range(0, len(ids), window))
            self.windows += [torch.tensor(part) for part in parts if len(part) > 1]
            if left <= 1:
                break
        if len(self.windows) < 2:
            raise QgoftError(
                f"the text of probe language ({source}) has fewer than two windows of tokens; name a longer one with retention.text"
            )
        self.pad = tokenizer.pad_token_id or 0
        counts = Counter(token for window in self.windows for token in window[1:].tolist())
        total = sum(counts.values())
        self.chance = -sum(count / total * math.log(count / total) for count in counts.values())
        self.depends_on = {"language": hashlib.sha256(repr([window.tolist() for window in self.windows]).encode()).hexdigest()}

    @torch.no_grad()
    def measure(self, model: nn.Module, names: Collection[str]) -> dict[str, ProbeValue]:
        losses, counts = [], []
        with evaluating(model):
            for batch in self.batches():
                ids, mask = batch["input_ids"], batch["attention_mask"]
                logits = model(**{name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}).logits[:, :-1].float().cpu()
                each = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
                losses += each.double().sum(1).tolist()
                counts += mask[:, 1:].sum(1).tolist()
        value = sum(losses) / sum(counts)
        # Standard error of a ratio over windows.
        spread = sum((loss - value * count) ** 2 for loss, count in zip(losses, counts, strict=True))
        error = math.sqrt(spread * len(losses) / (len(losses) - 1)) / sum(counts)
        return {"language": ProbeValue(value if math.isfinite(value) else None, sum(counts), error, self.chance, higher_is_better=False)}

    def batches(self) -> Iterator[dict[str, Tensor]]:
        for first in range(0, len(self.windows), BATCH):
            some = self.windows[first : first + BATCH]
            ids = nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=self.pad)
            lengths = torch.tensor([len(window) for window in some])
            yield {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()}


def _read_texts(context: ProbeContext) -> tuple[list[str], str]:
    """Return the texts of `retention.text`, and its name for messages.

    Raises:
        QgoftError: none is named, or it cannot be read.
    """
    text = context.asked.text
    if text is None:
        raise QgoftError("probe language needs a text; set retention.text=FILE")
    if text == POCKET:
        return unseen_documents(POCKET_DOCUMENTS), "documents of the embedded corpus"
    if isinstance(text, str):
        try:
            return [Path(text).read_text("utf-8")], text
        except (OSError, ValueError) as error:
            raise QgoftError(f"retention.text={text} cannot be read as a text ({format_exception(error)}); name a file in UTF-8") from error
    settings = context.settings
    task = dataclasses.replace(settings.task, sources={"text": {name: value for name, value in text.items() if name != "column"}})
    revision = dataclasses.replace(settings.data, revision="main")  # that of the run belongs to another repository
    (path,) = resolve_files(task, revision).files["text"]
    column = str(text.get("column", "text"))
    rows = read_rows(path, "text of probe language", [column])
    return ["".join(rows[column])], path.name


class Knowledge(Probe):
    """MMLU by the scorer of the suite, with five examples, for runs that do not report it.

    Raises:
        QgoftError: the protocol or the rows lack MMLU.
    """

    def __init__(self, context: ProbeContext):
        self.context = context
        settings = compose_task(context, MMLU)
        self.suite = Mmlu(settings, locate(context, settings))
        self.primary = settings.task.primary
        self.depends_on = {"knowledge": {"rows": self.suite.run_id.data.fingerprint, "prompt": self.suite.prompt}}

    def measure(self, model: nn.Module, names: Collection[str]) -> dict[str, ProbeValue]:
        metric = self.suite.compute_metrics({"": self.suite.score(model, self.context.accelerator)})[self.primary]
        return {"knowledge": ProbeValue(metric.value, metric.n, metric.standard_error, metric.majority_baseline)}

    def batches(self) -> Iterator[dict[str, Tensor]]:
        return iter(())


class LmEval(Probe):
    """A task of lm-eval by its name. Its chance is not known, so that retention is relative to zero.

    Raises:
        QgoftError: lm-eval has no such task; the settings have checked that it is installed.
    """

    def __init__(self, context: ProbeContext, name: str):
        self.name, self.context = name, context
        self.tokenizer = load_tokenizer(context.run_id.model.directory)
        self.depends_on = {name: {"lm-eval": task_version(name)}}

    def measure(self, model: nn.Module, names: Collection[str]) -> dict[str, ProbeValue]:
        value, error, count, higher = evaluate_task(self.name, model, self.tokenizer)
        return {self.name: ProbeValue(value, count, error, None, higher_is_better=higher)}

    def batches(self) -> Iterator[dict[str, Tensor]]:
        return iter(())
