"""The eight GLUE tasks: rows, parts that choose and are reported, and token ids. The facts of a task are in configs/task/glue.

Parts by `splits`:
    test        the reported part is test, the choosing part validation (pocket)
    halves      validation, permuted by seed 0 for every run: the first half chooses, the second is reported
    seeded_halves  the same with a permutation by the seed of the run (PSOFT's script)
    validation  all of validation is reported; nothing may choose (GOFT, table 1)
MNLI has two validation sets. Both are reported; the choosing part is both (test) or the half of mismatched (halves).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets
from pyarrow import ArrowException
from transformers import PreTrainedTokenizerBase

from qgoft.errors import QgoftError
from qgoft.settings import RunSettings, TaskSettings
from qgoft.tasks.cache import cached_rows
from qgoft.tasks.halves import halve
from qgoft.tasks.parts import read_parquet
from qgoft.tasks.sources import DataFiles

# Raised by any change of what is read, checked or tokenised here, so that no cached rows of before are used.
ROWS_VERSION = 1


@dataclass(frozen=True)
class Parts:
    """Token ids and labels of one task, not padded. `report` has one entry, or one per validation set of MNLI."""

    train: Dataset
    choose: Dataset | None
    report: dict[str, Dataset]
    rows: dict[str, int]
    is_subset: bool


def load_parts(settings: RunSettings, files: DataFiles, tokenizer: PreTrainedTokenizerBase, tokenizer_sha256: str) -> Parts:
    """Read, check, tokenise and divide the rows. Tokenised splits are kept on disk, by checksum of what they are made from.

    Returns:
        Rows with `labels`, the names that the model takes, cut to `train.max_length`, and `idx` where the file has it.

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
    rows = {split: len(part) for split, part in data.items()}
    is_subset = any(rows[split] != official for split, official in task.rows.items() if split in rows)
    train = data["train"]
    if settings.splits == "test":
        choose = concatenate_datasets([part for split, part in data.items() if split.startswith("validation")])
        return Parts(train, choose, _named(data, "test"), rows, is_subset)
    report = _named(data, "validation")
    if settings.splits == "validation":
        return Parts(train, None, report, rows, is_subset)
    name = "mismatched" if task.name == "mnli" else ""
    first, second = halve(report[name], settings.seed if settings.splits == "seeded_halves" else None)
    return Parts(train, first, {name: second}, rows, is_subset)


def _named(data: dict[str, Dataset], split: str) -> dict[str, Dataset]:
    return {name.removeprefix(split).lstrip("_"): part for name, part in data.items() if name.startswith(split)}


def _read(task: TaskSettings, split: str, paths: Sequence[Path]) -> Dataset:
    try:
        rows = read_parquet(paths)
    except (ArrowException, OSError, ValueError, RuntimeError) as error:
        reason = str(error.__cause__ or error)
        raise QgoftError(
            f"{task.full_name}, split {split}: the parquet file cannot be read ({reason}); it is damaged or only partly downloaded: fetch it again"
        ) from error
    wanted = [*task.columns, "label"]
    missing = [name for name in wanted if name not in rows.column_names]
    if missing:
        raise QgoftError(
            f"{task.full_name}, split {split}: no column {missing[0]}; present are {', '.join(rows.column_names)}, needed {', '.join(wanted)}"
        )
    _check_labels(task, split, rows)
    for column in task.columns:
        # An empty string is a text (QQP has some); a missing one is damage.
        if rows.features[column].dtype not in ("string", "large_string") or rows.data.column(column).null_count:
            raise QgoftError(f"{task.full_name}, split {split}: column {column} has rows that are not text; correct the data")
    return rows.select_columns([*wanted, "idx"] if "idx" in rows.column_names else wanted)


def _check_labels(task: TaskSettings, split: str, rows: Dataset) -> None:
    labels = rows["label"]
    feature = rows.features["label"]
    if isinstance(feature, ClassLabel) and task.labels and feature.names != task.labels:
        raise QgoftError(f"{task.full_name}, split {split}: labels are named {feature.names}; needed is {task.labels}, in this order")
    if task.is_regression:
        low, high = task.label_range
        bad = [i for i, v in enumerate(labels) if v is None or not math.isfinite(v) or not low <= v <= high]
        allowed = f"numbers from {low:g} to {high:g}"
    else:
        bad = [i for i, v in enumerate(labels) if not isinstance(v, int) or not 0 <= v < len(task.labels)]
        allowed = f"0 to {len(task.labels) - 1}"
    if bad:
        raise QgoftError(
            f"{task.full_name}, split {split}: label {labels[bad[0]]} in row {bad[0]} ({len(bad)} such rows); allowed are {allowed}; correct the data"
        )


def tokenize(task: TaskSettings, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, path: Path) -> None:
    """Write the token ids of every row to an Arrow file: cut to `max_length`, not padded; with the label under `labels`."""

    def encode(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(batch[column] for column in task.columns), truncation=True, max_length=max_length)
        return {**{name: encoded[name] for name in names}, "labels": batch["label"]}

    names = [name for name in tokenizer.model_input_names if name in tokenizer(*[["a"]] * len(task.columns))]
    kept = {"idx": rows.features["idx"]} if "idx" in rows.column_names else {}
    features = Features({**kept, **{name: List(Value("int32")) for name in names}, "labels": Value(rows.features["label"].dtype)})
    # A fingerprint is given, or the library would spend longer on hashing the function than on calling it.
    rows.map(
        encode,
        batched=True,
        remove_columns=[name for name in rows.column_names if name not in kept],
        features=features,
        cache_file_name=str(path),
        load_from_cache_file=False,
        new_fingerprint="tokens",
    )
