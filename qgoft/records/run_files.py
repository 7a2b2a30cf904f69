"""Curve, answers and retention of a finished run, which are in its directory or in an archive (qgoft/records/archive.py)."""

import gzip
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qgoft.config.locations import REPOSITORY
from qgoft.records.jsonl import read_curve
from qgoft.records.retention import Retention, read_retention
from qgoft.records.schema import RecordError


@dataclass(frozen=True)
class AnswerColumns:
    """Answers of one run, in the order in which they were written.

    Attributes:
        sets: name of the test set of each answer; empty if the task has one test set.
        items: identifier of each item within its test set.
        predictions: numbers, texts or None.
        labels: numbers, texts, lists of texts or None.
    """

    sets: list[str]
    items: list[str]
    predictions: list[Any]
    labels: list[Any]


class RunFiles(Protocol):
    """Curve, answers and retention of one run."""

    @property
    def place(self) -> str:
        """Path of the directory or archive, relative to the repository if it is inside."""
        ...

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of a logged value, such as loss, score or orthogonality; empty if it was not logged."""
        ...

    def answers(self) -> AnswerColumns | None:
        """Return the answers; None if they are missing, empty or corrupt."""
        ...

    def retention(self) -> Retention | None:
        """Return the retention; None if it is not measured or corrupt."""
        ...


@dataclass(frozen=True)
class RunDirectory:
    """Directory of a run: history.jsonl, predictions.jsonl.gz and retention.json.

    Attributes:
        key: key of the run.
    """

    path: Path
    key: str

    @property
    def place(self) -> str:
        return place_name(self.path)

    def curve(self, name: str) -> list[tuple[int, float]]:
        return read_curve(self.path, name)

    def answers(self) -> AnswerColumns | None:
        try:
            text = gzip.decompress((self.path / "predictions.jsonl.gz").read_bytes())
            # One array is parsed three times as fast as its lines.
            lines = json.loads(b"[" + text.strip().replace(b"\n", b",") + b"]")
            columns = [[line[name] for line in lines] for name in ("set", "idx", "prediction", "label")]
        except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, RecursionError):
            return None
        sets, items, predictions, labels = columns
        return AnswerColumns(sets, [str(item) for item in items], predictions, labels) if lines else None

    def retention(self) -> Retention | None:
        try:
            return read_retention(self.path, self.key)
        except (RecordError, OSError):
            return None


def curve_of(files: Mapping[str, RunFiles], key: str, name: str) -> list[tuple[int, float]]:
    """Return a curve of the run with a key; empty if the files of the run are missing."""
    return files[key].curve(name) if key in files else []


def place_name(path: Path) -> str:
    """Return a path, relative to the repository if it is inside."""
    absolute = path.resolve()
    return os.path.relpath(absolute, REPOSITORY) if REPOSITORY and absolute.is_relative_to(REPOSITORY) else str(path)
