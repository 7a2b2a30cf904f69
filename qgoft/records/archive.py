"""Archive: many finished runs in four Parquet files.

    records.parquet      a row per run: the columns of `flat_row`, the record as JSON, and checksums of its curve and answers
    curves.parquet       a row per logged step: key, step, and a column per logged value (null if a step lacks it)
    predictions.parquet  a row per answer: key, set, item, prediction and label; a text is in prediction_text or label_text, and the accepted
                         answers of a question in label_texts
    retention.parquet    if any is measured, a row per run with its retention: key, and the measurement as JSON with a checksum of itself

Rows are sorted by key; those of a run keep their order. Equal runs give equal bytes with one version of pyarrow. A run is verified by its own
checksums when it is read, so that after an interrupted write the runs of before are still readable.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qgoft.records.flat import flat_row
from qgoft.records.retention import Retention, parse_retention, retention_text
from qgoft.records.run_files import AnswerColumns, place_name
from qgoft.records.schema import Record, RecordError
from qgoft.records.store import ARCHIVE, atomic_file, parse_record, record_text

CURVES, PREDICTIONS, RETENTIONS = "curves.parquet", "predictions.parquet", "retention.parquet"
# In the metadata of each file; incremented if a change of the columns would mislead an older reader.
SCHEMA = 1
_SCHEMA_NAME = b"qgoft.archive"
_TEXT, _WHOLE, _NUMBER = pa.string(), pa.int64(), pa.float64()
_FLAT_TYPES = {
    **dict.fromkeys(("protocol", "suite", "task", "model", "method", "variant", "label"), _TEXT),
    "seed": _WHOLE,
    "overrides": _TEXT,
    "status": _TEXT,
    "score": _NUMBER,
    "metric": _TEXT,
    "n": _WHOLE,
    "standard_error": _NUMBER,
    "params": _WHOLE,
    "seconds": _NUMBER,
    "peak_memory_bytes": _WHOLE,
    "orthogonality": _NUMBER,
    "retention": _NUMBER,
    "key": _TEXT,
    "commit": _TEXT,
}
_FLAT = pa.schema({**_FLAT_TYPES, **dict.fromkeys(("curve_sha256", "predictions_sha256", "record"), _TEXT)})
_CURVES = pa.schema({"key": _TEXT, "step": _WHOLE})
_RETENTIONS = pa.schema({"key": _TEXT, "retention": _TEXT})
_PREDICTIONS = pa.schema(
    {
        "key": _TEXT,
        "set": _TEXT,
        "item": _TEXT,
        "prediction": _NUMBER,
        "prediction_text": _TEXT,
        "label": _NUMBER,
        "label_text": _TEXT,
        "label_texts": pa.list_(_TEXT),
    }
)


@dataclass(frozen=True)
class PackedRun:
    """One run of an archive.

    Attributes:
        steps: its rows of curves.parquet.
        rows: its rows of predictions.parquet.
        place: directory of the archive.
        kept: its retention, if it is measured.
    """

    record: Record
    steps: pa.Table
    rows: pa.Table
    place: str = ""
    kept: Retention | None = None

    def curve(self, name: str) -> list[tuple[int, float]]:
        if name not in self.steps.column_names:
            return []
        steps, values = self.steps["step"].to_numpy(), self.steps[name].to_numpy()  # null becomes NaN
        kept = np.isfinite(values)
        return list(zip(steps[kept].tolist(), values[kept].tolist(), strict=True))

    def answers(self) -> AnswerColumns | None:
        if not len(self.rows):
            return None
        predictions = _join(self.rows["prediction"], self.rows["prediction_text"])
        labels = _join(self.rows["label"], self.rows["label_text"], self.rows["label_texts"])
        return AnswerColumns(self.rows["set"].to_pylist(), self.rows["item"].to_pylist(), predictions, labels)

    def retention(self) -> Retention | None:
        return self.kept


@dataclass(frozen=True)
class Archive:
    """Content of an archive.

    Attributes:
        records: sorted by key.
        files: key -> the run with curve and answers, if they agree with their checksums.
        problems: excluded files and runs, with the reason.
    """

    records: list[Record]
    files: dict[str, PackedRun]
    problems: list[str]


def pack_run(
    record: Record, curve: Sequence[Mapping[str, Any]], answers: AnswerColumns | None, retention: Retention | None = None
) -> PackedRun:
    """Return the rows of one run.

    Args:
        curve: lines of history.jsonl.

    Raises:
        RecordError: a logged value is not a number, or an answer is neither a number nor a text.
    """
    names = sorted({name for line in curve for name in line} - {"step"})
    try:
        steps = {name: pa.array([line.get(name) for line in curve], pa.float64()) for name in names}
        table = pa.table({"key": [record["key"]] * len(curve), "step": pa.array([line["step"] for line in curve], pa.int64()), **steps})
        rows = _PREDICTIONS.empty_table() if answers is None else _pack_answers(record["key"], answers)
    except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError) as error:
        raise RecordError(f"run {record['key'][:16]} ({record['task']}, {record['method']}): {error}") from error
    return PackedRun(record, table, rows, kept=retention)


def write_archive(directory: Path, runs: Sequence[PackedRun]) -> None:
    """Write an archive, the records last. Each file is replaced atomically.

    Raises:
        OSError: a file cannot be written; the archive is as before, or its curves and answers are those of `runs` already.
    """
    runs = sorted(runs, key=lambda run: run.record["key"])
    flat = [
        {
            **flat_row(run.record, run.kept),
            "curve_sha256": _checksum(run.steps),
            "predictions_sha256": _checksum(run.rows),
            "record": record_text(run.record),
        }
        for run in runs
    ]
    curves = pa.concat_tables([_CURVES.empty_table(), *(run.steps for run in runs)], promote_options="default")
    values = sorted(set(curves.column_names) - {"key", "step"})
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / CURVES, curves.select(["key", "step", *values]), values)
    answers = pa.concat_tables([_PREDICTIONS.empty_table(), *(run.rows for run in runs)], promote_options="default")
    _write(directory / PREDICTIONS, answers, [])
    kept = [{"key": run.record["key"], "retention": retention_text(run.kept)} for run in runs if run.kept is not None]
    if kept or (directory / RETENTIONS).exists():
        _write(directory / RETENTIONS, pa.Table.from_pylist(kept, _RETENTIONS), [])
    _write(directory / ARCHIVE, pa.Table.from_pylist(flat, _FLAT), [])


def read_archive(directory: Path) -> Archive:
    """Read an archive.

    Raises:
        RecordError: records.parquet is incomplete, foreign, of a newer version or lacks columns.
    """
    rows, place = _read(directory / ARCHIVE, _FLAT), place_name(directory)
    records, problems = [], []
    for key, text in zip(rows["key"].to_pylist(), rows["record"].to_pylist(), strict=True):
        try:
            record = parse_record(text or "")
            if record["key"] != key:
                raise RecordError(f"it is the record of run {record['key'][:16]}")
            records.append(record)
        except RecordError as error:
            problems.append(f"{directory / ARCHIVE}: run {str(key)[:16]}: {error}")
    try:
        steps, steps_changed = _read_parts(directory / CURVES, _CURVES, rows["curve_sha256"], rows["key"])
        answers, answers_changed = _read_parts(directory / PREDICTIONS, _PREDICTIONS, rows["predictions_sha256"], rows["key"])
    except RecordError as error:
        return Archive(records, {}, [*problems, f"{error}; the curves and answers of this archive are not used"])
    for name, changed in ((CURVES, steps_changed), (PREDICTIONS, answers_changed)):
        if changed:
            some = ", ".join(key[:16] for key in changed[:3]) + (", ..." if len(changed) > 3 else "")
            problems.append(
                f"{directory / name}: {len(changed)} runs differ from their checksums in {ARCHIVE} ({some}); their curves and answers are not used"
            )
    unchanged = [record for record in records if record["key"] not in {*steps_changed, *answers_changed}]
    kept = _read_retentions(directory / RETENTIONS, problems)
    files = {r["key"]: PackedRun(r, steps[r["key"]], answers[r["key"]], place, kept.get(r["key"])) for r in unchanged}
    return Archive(records, files, problems)


def _read_retentions(path: Path, problems: list[str]) -> dict[str, Retention]:
    """Return key -> retention. Corrupt ones are added to `problems`. An archive of an earlier version has no such file."""
    found: dict[str, Retention] = {}
    if not path.is_file():
        return found
    try:
        rows = _read(path, _RETENTIONS)
    except RecordError as error:
        problems.append(f"{error}; the retention of these runs is not used")
        return found
    for key, text in zip(rows["key"].to_pylist(), rows["retention"].to_pylist(), strict=True):
        try:
            found[key] = parse_retention(text or "", key)
        except RecordError as error:
            problems.append(f"{path}: run {key[:16]}: {error}; its retention is not used")
    return found


def _read_parts(path: Path, schema: pa.Schema, checksums: pa.ChunkedArray, keys: pa.ChunkedArray) -> tuple[dict[str, pa.Table], list[str]]:
    """Return the rows of each run of a file, and the keys of those that differ from their checksums.

    Raises:
        RecordError: the file cannot be read.
    """
    table = _read(path, schema)
    found = {key: table.slice(0, 0) for key in keys.to_pylist()} | _split(table)
    return found, [key for key, stated in zip(keys.to_pylist(), checksums.to_pylist(), strict=True) if _checksum(found[key]) != stated]


def _pack_answers(key: str, answers: AnswerColumns) -> pa.Table:
    columns = {
        "key": [key] * len(answers.items),
        "set": answers.sets,
        "item": answers.items,
        "prediction": [one if isinstance(one, int | float) else None for one in answers.predictions],
        "prediction_text": [None if isinstance(one, int | float) else one for one in answers.predictions],
        "label": [one if isinstance(one, int | float) else None for one in answers.labels],
        "label_text": [None if isinstance(one, int | float | list) else one for one in answers.labels],
        "label_texts": [one if isinstance(one, list) else None for one in answers.labels],
    }
    return pa.table(columns, _PREDICTIONS)


def _join(numbers: pa.ChunkedArray, *others: pa.ChunkedArray) -> list[Any]:
    """Return the values of columns of which each row has at most one. A whole number is an int, as in the run's own file."""
    values = [int(one) if one is not None and one.is_integer() else one for one in numbers.to_pylist()]
    for other in others:
        if other.null_count < len(other):
            values = [one if text is None else text for one, text in zip(values, other.to_pylist(), strict=True)]
    return values


def _checksum(table: pa.Table) -> str | None:
    """Return the SHA-256 of the rows of one run, without columns that hold nothing; None without rows."""
    if not len(table):
        return None
    digest = hashlib.sha256()
    for name in sorted(table.column_names):
        column = table[name]
        if name == "key" or column.null_count == len(column):
            continue
        digest.update(name.encode())
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            digest.update(column.to_numpy().astype("<f8").tobytes())
        else:
            digest.update(json.dumps(column.to_pylist()).encode())
    return digest.hexdigest()


def _split(table: pa.Table) -> dict[str, pa.Table]:
    """Return the rows of each run. Equal keys are neighbours."""
    if not len(table):
        return {}
    keys = table["key"].combine_chunks().dictionary_encode()
    codes = keys.indices.to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist()]
    names = keys.dictionary.to_pylist()
    return {names[codes[start]]: table.slice(start, end - start) for start, end in zip(starts, [*starts[1:], len(codes)], strict=True)}


def _write(path: Path, table: pa.Table, plain: Sequence[str]) -> None:
    """Write a table.

    Args:
        plain: numeric columns with few equal values, written without a dictionary.
    """
    table = table.replace_schema_metadata({_SCHEMA_NAME: str(SCHEMA).encode()}).combine_chunks()
    names = [name for name in table.column_names if name not in plain]
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=15, use_dictionary=names, use_byte_stream_split=list(plain))


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a file with at least the columns of a schema.

    Raises:
        RecordError: it is missing, incomplete, foreign, of a newer version, or lacks columns.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path}: not readable as a Parquet file: {' '.join(str(error).split())}") from error
    version = (table.schema.metadata or {}).get(_SCHEMA_NAME, b"").decode(errors="replace")
    if not version:
        raise RecordError(f"{path}: not a file of `python scripts/collect.py`, which names its version in the metadata")
    if version != str(SCHEMA):
        raise RecordError(f"{path}: archive version {version}; this version of qgoft reads {SCHEMA}")
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise RecordError(f"{path}: columns are missing: {', '.join(missing)}")
    wrong = [
        f"{name} ({table.schema.field(name).type})" for name in schema.names if table.schema.field(name).type != schema.field(name).type
    ]
    if wrong:
        raise RecordError(f"{path}: columns of another type: {', '.join(wrong)}")
    if table["key"].null_count:
        raise RecordError(f"{path}: {table['key'].null_count} rows without a key")
    return table
