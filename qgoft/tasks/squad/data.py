"""SQuAD v1.1: questions whose answer is a span of a passage; windows, and the search for spans.

A passage longer than the model's input is divided into windows that overlap by `stride` tokens. In training, a window without the whole
answer has its target at the first token. At evaluation every window proposes its best spans of the passage, and the best of all windows is
the answer. Version 1.1 has no unanswerable questions, so the null answer is never proposed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from qgoft.config.settings import RunSettings, TaskSettings
from qgoft.errors import QgoftError
from qgoft.tasks.cache import cached_counts, cached_rows
from qgoft.tasks.read import check_columns, read_parquet
from qgoft.tasks.sources import DataFiles
from qgoft.tasks.splits import split_in_half

# Increment if reading, checks or windows in this module change, to invalidate cached rows.
ROWS_VERSION = 1
MODEL_INPUT = ("input_ids", "attention_mask", "token_type_ids")
# Position of an answer: as stated; elsewhere in the passage; not in the passage.
AS_GIVEN, MOVED, ABSENT = 0, 1, 2


@dataclass(frozen=True)
class Splits:
    """Windows for training, and per evaluation split the questions with their windows (`row` is the question's number in the split)."""

    train: Dataset
    questions: dict[str, Dataset]  # keys: validation, test:
    windows: dict[str, Dataset]
    rows: dict[str, int]
    is_subset: bool
    data_fixes: dict[str, int]


def load_splits(settings: RunSettings, files: DataFiles, tokenizer: PreTrainedTokenizerBase, tokenizer_sha256: str) -> Splits:
    """Read, check and split the questions, and divide their passages into windows (cached by checksum).

    Raises:
        QgoftError: a file cannot be read, a column is missing, or a question has no answer.
    """
    task, length = settings.task, settings.train.max_length
    stride = task.options["stride"]

    def windows(part: str, rows: Callable[[], Dataset]) -> Dataset:
        depends_on = {
            "rows": [files.fingerprint, task.full_name, settings.eval_scheme, part, ROWS_VERSION],
            "tokens": [tokenizer_sha256, length, stride, version("tokenizers"), version("transformers")],
        }
        is_training = part == "train"
        return cached_rows(depends_on, lambda path: write_windows(rows(), tokenizer, length, stride, path, is_training=is_training))

    train = windows("train", lambda: read_rows(task, "train", files))
    held = {split: read_rows(task, split, files) for split in files.files if split != "train"}
    if settings.eval_scheme == "test":
        questions = {"validation": held["validation"], "test:": held["test"]}
    elif settings.eval_scheme == "validation":
        questions = {"test:": held["validation"]}
    else:
        halves = split_in_half(held["validation"], settings.seed if settings.eval_scheme == "seeded_halves" else None)
        questions = dict(zip(("validation", "test:"), halves, strict=True))
    cut = {name: windows(name, _always(part)) for name, part in questions.items()}
    counted = {"rows": files.fingerprint, "task": task.full_name, "splits": list(held), "version": ROWS_VERSION}
    shared = cached_counts(counted, lambda: count_shared(read_rows(task, "train", files), held))
    rows = {"train": len(set(train["row"])), **{split: len(part) for split, part in held.items()}}
    is_subset = any(rows[split] != official for split, official in task.rows.items() if split in rows)
    return Splits(train, questions, cut, rows, is_subset, {**count_data_fixes(train, held), **shared})


def read_rows(task: TaskSettings, split: str, files: DataFiles) -> Dataset:
    """Read questions in the hub's format: id, title, context, question, answers {text, answer_start}.

    Raises:
        QgoftError: they cannot be read, or an evaluation question has no reference answer.
    """
    where = f"{task.full_name}, split {split}"
    rows = read_parquet(files.files[split], where)
    wanted = ["id", "context", "question", "answers"]
    check_columns(rows, where, files.files[split][0].name, wanted, text=["id", "context", "question"])
    given = rows["answers"][:]
    answers = [_read_answers(answer) for answer in given]
    bad = [i for i, answer in enumerate(answers) if answer is None]
    if bad:
        raise QgoftError(
            f"{where}: question {rows[bad[0]]['id']} in row {bad[0]} has no answer, or not one start for each ({len(bad)} such rows): needed are "
            f"a list text and a list answer_start of whole numbers; version 1.1 has one to six; correct the data"
        )
    if answers != given:
        kind = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
        rows = rows.remove_columns("answers").add_column("answers", answers, feature=Features(answers=kind)["answers"])
    if len(set(rows["id"])) != len(rows):
        raise QgoftError(f"{task.full_name}, split {split}: an id occurs twice; predictions are identified by id; correct the data")
    return rows.select_columns(wanted)


def _read_answers(answer: Any) -> dict[str, list[Any]] | None:
    """Return the answers of a question as two lists; also from a list of objects, or with starts as decimals. None if they cannot be read."""
    if isinstance(answer, list) and all(isinstance(one, dict) for one in answer):
        answer = {name: [one.get(name) for one in answer] for name in ("text", "answer_start")}
    if not isinstance(answer, dict):
        return None
    texts, starts = answer.get("text"), answer.get("answer_start")
    if not texts or not isinstance(starts, list) or len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
        return None
    if not all(isinstance(start, int | float) and start == start // 1 for start in starts):
        return None
    return {"text": texts, "answer_start": [int(start) for start in starts]}


def place_answer(context: str, text: str, start: int) -> tuple[int, int]:
    """Return the position of a training answer: (start, AS_GIVEN), the occurrence nearest to `start` (MOVED), or (-1, ABSENT)."""
    if text and context[start : start + len(text)] == text and start >= 0:
        return start, AS_GIVEN
    found = [match.start() for match in re.finditer(re.escape(text), context)] if text else []
    return (min(found, key=lambda place: abs(place - start)), MOVED) if found else (-1, ABSENT)


def _always(rows: Dataset) -> Callable[[], Dataset]:
    return lambda: rows


def write_windows(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int, path: Path, *, is_training: bool
) -> None:
    """Write windows of `max_length` tokens over every passage, each after its question, to an Arrow file.

    Columns: the model's inputs, and `row`, the number of the question. For training: `start_positions` and `end_positions`, first and last
    token of the answer (both 0 if the window does not contain all of it), and `repair`, how the answer was found. For evaluation: `first`,
    the first token of the passage, and `offsets`, start and end of each of its tokens in the passage.

    Raises:
        QgoftError: the tokenizer has no offsets, or `stride` leaves no room.
    """
    if not tokenizer.is_fast:
        raise QgoftError(f"{type(tokenizer).__name__} has no character offsets; SQuAD needs a model directory with tokenizer.json")
    # A question is truncated to half of what the overlap leaves; the longest of SQuAD has about 60 tokens.
    question_limit = (max_length - stride) // 2
    if question_limit < 8:
        raise QgoftError(
            f"windows of train.max_length={max_length} that overlap by task.options.stride={stride} leave no room; reduce the stride"
        )
    cut = WindowCutter(tokenizer, max_length, stride, question_limit, is_training)
    rows.map(
        cut,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        features=cut.features,
        cache_file_name=str(path),
        load_from_cache_file=False,
        new_fingerprint="windows",
    )


@dataclass(frozen=True)
class WindowCutter:
    """Cuts a batch of questions into windows.

    Attributes:
        question_limit: tokens to which a question is truncated.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    stride: int
    question_limit: int
    is_training: bool

    @property
    def inputs(self) -> list[str]:
        """Names of the model's inputs."""
        return [name for name in MODEL_INPUT if name in self.tokenizer.model_input_names]

    @property
    def features(self) -> Features:
        """Types of the columns."""
        numbers = ("row", "repair", "start_positions", "end_positions") if self.is_training else ("row", "first")
        lists = (*self.inputs, *(() if self.is_training else ("offsets",)))
        return Features({**{name: List(Value("int32")) for name in lists}, **{name: Value("int32") for name in numbers}})

    def __call__(self, batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        encoded = self.tokenizer(
            [_shorten(question.strip(), self.tokenizer, self.question_limit) for question in batch["question"]],
            batch["context"],
            truncation="only_second",
            max_length=self.max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners = encoded["overflow_to_sample_mapping"]
        extents = [_passage_tokens(encoded.sequence_ids(i)) for i in range(len(owners))]
        found: dict[str, list] = {name: encoded[name] for name in self.inputs}
        found["row"] = [numbers[owner] for owner in owners]
        if self.is_training:
            return {**found, **self._targets(batch, owners, encoded["offset_mapping"], extents)}
        found["first"] = [first for first, _ in extents]
        found["offsets"] = [
            [place for pair in offsets[first:end] for place in pair]
            for offsets, (first, end) in zip(encoded["offset_mapping"], extents, strict=True)
        ]
        return found

    @staticmethod
    def _targets(batch: dict[str, list], owners: list[int], offsets: list, extents: list[tuple[int, int]]) -> dict[str, list]:
        """Return the positions of the answers in their windows."""
        places = [
            place_answer(context, answer["text"][0], answer["answer_start"][0])
            for context, answer in zip(batch["context"], batch["answers"], strict=True)
        ]
        targets = []
        for i, owner in enumerate(owners):
            start = places[owner][0]
            end = start + len(batch["answers"][owner]["text"][0])
            targets.append((0, 0) if start < 0 else _tokens_of(offsets[i], extents[i], start, end))
        starts, ends = ([target[side] for target in targets] for side in (0, 1))
        return {"repair": [places[owner][1] for owner in owners], "start_positions": starts, "end_positions": ends}


def _shorten(question: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    if len(question) <= limit:  # a token is at least one character
        return question
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(offsets) <= limit else question[: offsets[limit - 1][1]]


def _passage_tokens(sequence: list[int | None]) -> tuple[int, int]:
    """Return the first token of the passage and the one after its last; (0, 0) if a window holds none."""
    if 1 not in sequence:
        return 0, 0
    first = sequence.index(1)
    return first, len(sequence) - sequence[::-1].index(1)


def _tokens_of(offsets: list[tuple[int, int]], extent: tuple[int, int], start: int, end: int) -> tuple[int, int]:
    """Return the first and last token that overlap [start, end) of the passage; (0, 0) unless the window holds all of it."""
    first, after = extent
    inside = [i for i in range(first, after) if offsets[i][1] > start and offsets[i][0] < end]
    if not inside or offsets[first][0] > start or offsets[after - 1][1] < end:
        return 0, 0
    return inside[0], inside[-1]


def count_data_fixes(train: Dataset, held: dict[str, Dataset]) -> dict[str, int]:
    """Count problems of the data, which are shown under the table and stored in the record."""
    by_row = dict(zip(train["row"], train["repair"], strict=True))
    found = {
        "training answers found elsewhere than stated": sum(state == MOVED for state in by_row.values()),
        "training answers that are not in their passage (target: none)": sum(state == ABSENT for state in by_row.values()),
        "evaluation questions with an empty passage (answered by nothing)": sum(
            not context.strip() for part in held.values() for context in part["context"]
        ),
    }
    return {what: count for what, count in found.items() if count}


def count_shared(train: Dataset, held: dict[str, Dataset]) -> dict[str, int]:
    """Count the questions of each evaluation split that training has too, on the same passage."""
    trained = set(zip(train["context"], train["question"], strict=True))
    counts = {split: sum(pair in trained for pair in zip(rows["context"], rows["question"], strict=True)) for split, rows in held.items()}
    return {f"questions of {split} that are in train": count for split, count in counts.items() if count}


def best_span(start: np.ndarray, end: np.ndarray, *, n_best: int, max_tokens: int) -> tuple[float, int, int] | None:
    """Return the span with the highest sum of scores among the `n_best` starts and ends of one window.

    Args:
        start, end: [n] scores of the tokens of the passage.
        max_tokens: longest span.

    Returns:
        Its score, first and last token; None if no pair is a span.
    """
    starts, ends = (np.argsort(-scores, kind="stable")[:n_best] for scores in (start, end))
    sums = start[starts][:, None] + end[ends][None]
    lengths = ends[None] - starts[:, None] + 1
    sums = np.where((lengths >= 1) & (lengths <= max_tokens), sums, -np.inf)
    if not sums.size or np.isneginf(sums.max()):
        return None
    i, j = np.unravel_index(sums.argmax(), sums.shape)
    return float(sums[i, j]), int(starts[i]), int(ends[j])


def answers_of(
    questions: Dataset, windows: Dataset, logits: list[tuple[np.ndarray, np.ndarray]], *, n_best: int, max_tokens: int
) -> list[str]:
    """Return the texts of the best spans, in the order of the questions; empty if no window has one.

    Args:
        logits: per window, start and end scores of all its tokens.
    """
    best: dict[int, tuple[float, int, int]] = {}
    for row, first, offsets, (start, end) in zip(windows["row"], windows["first"], windows["offsets"], logits, strict=True):
        after = first + len(offsets) // 2
        span = best_span(start[first:after], end[first:after], n_best=n_best, max_tokens=max_tokens)
        if span and (row not in best or span[0] > best[row][0]):
            best[row] = (span[0], offsets[2 * span[1]], offsets[2 * span[2] + 1])
    contexts = questions["context"][:]
    return [contexts[row][best[row][1] : best[row][2]].strip() if row in best else "" for row in range(len(questions))]
