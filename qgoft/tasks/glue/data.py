"""The eight GLUE tasks: rows, splits and token ids. configs/task/glue describes each task.

Splits by `eval_scheme`:
    test: the official test split; validation selects (pocket)
    halves: validation in a fixed permutation: the first half selects, the second is the test split
    seeded_halves: the same with a permutation by the seed of the run (PSOFT's script)
    validation: all of validation is the test split; there is no selection (GOFT, table 1)
MNLI has two validation sets. Both are test sets; both (test) or half of mismatched (halves) select.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from qgoft.config.settings import RunSettings, TaskSettings
from qgoft.errors import QgoftError
from qgoft.tasks.cache import cached_counts, cached_rows
from qgoft.tasks.read import check_columns, read_parquet
from qgoft.tasks.sources import DataFiles
from qgoft.tasks.splits import split_in_half

# Increment if reading, checks or tokenisation in this module change, to invalidate cached rows.
ROWS_VERSION = 1


@dataclass(frozen=True)
class Splits:
    """Token ids and labels of one task, not padded. `test` has one entry, or one per validation set of MNLI."""

    train: Dataset
    validation: Dataset | None
    test: dict[str, Dataset]
    rows: dict[str, int]
    is_subset: bool
    data_fixes: dict[str, int]


def load_splits(settings: RunSettings, files: DataFiles, tokenizer: PreTrainedTokenizerBase, tokenizer_sha256: str) -> Splits:
    """Read, check, tokenise and split the rows. Tokenised splits are cached by the checksum of their inputs.

    Returns:
        Rows with `labels` and the model's inputs, truncated to `train.max_length`, and `idx` if the file has it.

    Raises:
        QgoftError: a file cannot be read, a column is missing, or a label is out of range.
    """
    task, length = settings.task, settings.train.max_length

    def tokens(split: str) -> Dataset:
        depends_on = {
            "rows": [files.fingerprint, task.full_name, split, task.columns, task.labels, task.label_range, ROWS_VERSION],
            "tokens": [tokenizer_sha256, length, version("tokenizers"), version("transformers")],
        }
        return cached_rows(depends_on, lambda path: tokenize(task, _read(task, split, files.files[split]), tokenizer, length, path))

    data = {split: tokens(split) for split in files.files}
    counted = {"rows": files.fingerprint, "task": task.full_name, "length": length, "tokens": tokenizer_sha256, "splits": list(data)}
    data_fixes = cached_counts({**counted, "version": ROWS_VERSION}, lambda: count_data_fixes(task, data))
    rows = {split: len(part) for split, part in data.items()}
    is_subset = any(rows[split] != official for split, official in task.rows.items() if split in rows)
    train = data["train"]
    if settings.eval_scheme == "test":
        validation = concatenate_datasets([part for split, part in data.items() if split.startswith("validation")])
        return Splits(train, validation, _named(data, "test"), rows, is_subset, data_fixes)
    test = _named(data, "validation")
    if settings.eval_scheme == "validation":
        return Splits(train, None, test, rows, is_subset, data_fixes)
    name = "mismatched" if task.name == "mnli" else ""
    first, second = split_in_half(test[name], settings.seed if settings.eval_scheme == "seeded_halves" else None)
    return Splits(train, first, {name: second}, rows, is_subset, data_fixes)


def _named(data: dict[str, Dataset], split: str) -> dict[str, Dataset]:
    return {name.removeprefix(split).lstrip("_"): part for name, part in data.items() if name.startswith(split)}


def _read(task: TaskSettings, split: str, paths: Sequence[Path]) -> Dataset:
    where = f"{task.full_name}, split {split}"
    rows = read_parquet(paths, where)
    wanted = [*task.columns, "label"]
    # An empty string is valid (QQP has some); a missing one is an error.
    check_columns(rows, where, paths[0].name, wanted, text=task.columns)
    rows = _with_labels(task, where, rows)
    return rows.select_columns([*wanted, "idx"] if "idx" in rows.column_names else wanted)


def _with_labels(task: TaskSettings, where: str, rows: Dataset) -> Dataset:
    """Return rows with numeric labels. Class names, numbers as text, decimals, and booleans are converted.

    Raises:
        QgoftError: a label cannot be converted, or is out of range.
    """
    feature = rows.features["label"]
    if isinstance(feature, ClassLabel) and task.labels and feature.names != task.labels:
        raise QgoftError(f"{where}: labels are named {feature.names}; expected {task.labels}, in this order")
    if task.is_regression:
        low, high = task.label_range
        allowed = f"numbers from {low:g} to {high:g}"
    else:
        low, high = 0, len(task.labels) - 1
        allowed = f"0 to {high}, or {', '.join(task.labels)}"
    given = rows["label"][:]
    labels = [_read_label(task, value) for value in given]
    bad = [i for i, value in enumerate(labels) if value is None or not low <= value <= high]
    if bad:
        raise QgoftError(
            f"{where}: label {given[bad[0]]!r} in row {bad[0]} ({len(bad)} such rows); allowed are {allowed}; correct the data"
        )
    if all(type(value) is type(read) for value, read in zip(given, labels, strict=True)):
        return rows
    kind = Value("float32") if task.is_regression else Value("int64")
    return rows.remove_columns("label").add_column("label", labels, feature=kind)


def _read_label(task: TaskSettings, value: Any) -> float | None:
    """Return a label as a number, an integer for a class; None if it cannot be parsed."""
    if isinstance(value, str) and value in task.labels:
        return task.labels.index(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number):
        return None
    if task.is_regression:
        return number
    return int(number) if number == int(number) else None


def count_data_fixes(task: TaskSettings, data: dict[str, Dataset]) -> dict[str, int]:
    """Count problems of the rows that are shown under a table: evaluation rows that occur in training, repeated ids, and evaluation splits
    of one class.
    """

    def contents(split: str) -> Iterator[int]:
        """Return hashes, because the rows themselves would take a gigabyte."""
        for batch in data[split].select_columns("input_ids").iter(1000):
            yield from (hash(tuple(ids)) for ids in batch["input_ids"])

    found: dict[str, int] = {}
    trained = set(contents("train"))
    for split, rows in data.items():
        if split == "train":
            continue
        found[f"rows of {split} that are in train"] = sum(content in trained for content in contents(split))
        if "idx" in rows.column_names:
            found[f"rows of {split} with an idx that comes twice"] = len(rows) - len(set(rows["idx"]))
        if not task.is_regression:
            found[f"classes that {split} does not have"] = len(task.labels) - len(set(rows["labels"]))
    return {what: count for what, count in found.items() if count}


def tokenize(task: TaskSettings, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, path: Path) -> None:
    """Write the token ids of every row to an Arrow file: truncated to `max_length`, not padded, with the label under `labels`."""

    def encode(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(batch[column] for column in task.columns), truncation=True, max_length=max_length)
        return {**{name: encoded[name] for name in names}, "labels": batch["label"]}

    names = [name for name in tokenizer.model_input_names if name in tokenizer(*[["a"]] * len(task.columns))]
    kept = {"idx": rows.features["idx"]} if "idx" in rows.column_names else {}
    features = Features({**kept, **{name: List(Value("int32")) for name in names}, "labels": Value(rows.features["label"].dtype)})
    # Pass a fingerprint, because the library would spend longer on hashing the function than on calling it.
    rows.map(
        encode,
        batched=True,
        remove_columns=[name for name in rows.column_names if name not in kept],
        features=features,
        cache_file_name=str(path),
        load_from_cache_file=False,
        new_fingerprint="tokens",
    )
