"""Similarity: do cosines of mean-pooled sentence embeddings rank the sentence pairs of STS-B as people do? Nothing is trained."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from qgoft.models import load_tokenizer
from qgoft.retention.composed import compose_task, locate
from qgoft.retention.probes import Probe, ProbeContext, ProbeValue, backbone_of
from qgoft.retention.transfer import BATCH, pool_features
from qgoft.tasks.evaluate import forward_rows
from qgoft.tasks.read import read_parquet

TASK, COLUMNS = "glue/stsb", ("sentence1", "sentence2")


class Similarity(Probe):
    """Spearman's correlation on the validation rows of STS-B, in percent.

    Raises:
        QgoftError: the rows are not available.
    """

    def __init__(self, context: ProbeContext):
        settings = compose_task(context, TASK)
        run_id = locate(context, settings)
        directory, self.accelerator = run_id.model.directory, context.accelerator
        tokenizer = load_tokenizer(directory)
        rows = read_parquet(run_id.data.files["validation"], f"{TASK}, split validation")
        self.labels = [float(label) for label in rows["label"]]
        texts = [text for column in COLUMNS for text in rows[column]]
        encoded = tokenizer(texts, truncation=True, max_length=settings.train.max_length)
        self.rows = Dataset.from_dict(dict(encoded))
        self.lengths = [len(ids) for ids in encoded["input_ids"]]
        self.collate = DataCollatorWithPadding(tokenizer)
        self.depends_on = {"similarity": {"rows": run_id.data.fingerprint, "length": settings.train.max_length}}

    def measure(self, model: nn.Module, names: Collection[str]) -> dict[str, ProbeValue]:
        from qgoft.tasks.metrics import compute_score, standard_error  # their libraries take half a second

        found: list[Tensor] = forward_rows(
            backbone_of(model), self.rows, self.collate, self.accelerator, BATCH, pool_features, self.lengths
        )
        first, second = torch.stack(found).double().chunk(2)
        cosines = nn.functional.cosine_similarity(first, second).numpy()
        labels: Any = self.labels
        return {
            "similarity": ProbeValue(
                compute_score("spearman", cosines, labels), len(labels), standard_error("spearman", cosines.tolist(), labels), None
            )
        }

    def batches(self) -> Iterator[dict[str, Tensor]]:
        yield from DataLoader(self.rows, batch_size=16, collate_fn=self.collate)
