"""Retention of a finished run: `retention.json` next to its record.

    schema, key      of this format; of run, settings and version of the measurement
    run              key of the run
    settings         probes, steps and sizes
    path             how the change was rewound
    pretrained       probe -> value of the untouched backbone
    steps            t, value of the run's own metric (target), probe -> value
    geometry         layer -> measures of weights and activations, and their means
    provenance       code, packages, hardware, and checksums of the probes' rows

A value is {value, n, standard_error, chance, higher_is_better}, in percent or nats per token.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qgoft.records.schema import Number, RecordError
from qgoft.records.store import checksummed_text, content_checksum, write_atomically

RETENTION_SCHEMA = 1
# Increment for any change that affects the values.
RETENTION_VERSION = 1
RETENTION = "retention.json"
# Below the directory of a run, for the lease of a measurement.
LEASE_DIRECTORY = "retention"
Retention = dict[str, Any]

_FIELDS: dict[str, type] = {
    "schema": int,
    "key": str,
    "run": str,
    "settings": dict,
    "path": str,
    "pretrained": dict,
    "steps": list,
    "geometry": dict,
    "started": str,
    "finished": str,
    "provenance": dict,
}
_VALUE = ("value", "n", "standard_error", "chance", "higher_is_better")


def retention_key(run: str, settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the run and the settings of a measurement.

    Args:
        run: key of the run.
        settings: retention settings as plain data.
    """
    return content_checksum({"run": run, "settings": settings, "version": RETENTION_VERSION})


def write_retention(directory: Path, retention: Retention) -> Path:
    """Write `retention.json` atomically, with a checksum of itself.

    Raises:
        RecordError: it is invalid.
        OSError: it cannot be written; no partial file remains.
    """
    return write_atomically(directory / RETENTION, retention_text(retention))


def retention_text(retention: Retention) -> str:
    """Return a valid measurement as JSON, with a checksum of itself.

    Raises:
        RecordError: it is invalid.
    """
    return checksummed_text(_validate(retention))


def read_retention(directory: Path, run: str) -> Retention | None:
    """Return the measurement in the directory of a run, or None if it was not measured.

    Raises:
        RecordError: it is not JSON, invalid, modified, or that of another run.
    """
    path = directory / RETENTION
    if not path.is_file():
        return None
    try:
        return parse_retention(path.read_text("utf-8"), run)
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from error


def parse_retention(text: str, run: str) -> Retention:
    """Return the measurement of a text of `retention_text`.

    Raises:
        RecordError: it is not JSON, invalid, modified, or that of another run.
    """
    try:
        content = json.loads(text)
        stated = content.pop("checksum", None) if isinstance(content, dict) else None
        found = _validate(content)
        if stated != content_checksum(found):
            raise RecordError("its checksum does not match: it was modified")
        if found["run"] != run:
            raise RecordError(f"it is the retention of run {found['run'][:16]} (a copy?), not of {run[:16]}")
    except (ValueError, RecursionError) as error:
        raise RecordError(str(error)) from error
    return found


def _validate(data: Any) -> Retention:
    if not isinstance(data, dict):
        raise RecordError(f"retention is {data!r}; expected an object")
    for name in sorted(set(data) ^ set(_FIELDS)):
        raise RecordError(f"{name} is {'unknown' if name in data else 'missing'}")
    for name, kind in _FIELDS.items():
        if not isinstance(data[name], kind) or isinstance(data[name], bool):
            raise RecordError(f"{name} is {data[name]!r} of type {type(data[name]).__name__}")
    if data["schema"] != RETENTION_SCHEMA:
        raise RecordError(f"schema is {data['schema']}; this version reads {RETENTION_SCHEMA}")
    for name, value in data["pretrained"].items():
        _check_value(value, f"pretrained.{name}")
    for step in data["steps"]:
        if not isinstance(step, dict) or set(step) != {"t", "target", "probes"}:
            raise RecordError("a step needs t, target and probes")
        if not isinstance(step["t"], Number) or not 0 <= step["t"] <= 1:
            raise RecordError(f"t is {step['t']!r}; expected a number from 0 to 1")
        _check_value(step["target"], f"target at t={step['t']}")
        for name, value in step["probes"].items():
            _check_value(value, f"{name} at t={step['t']}")
    return data


def _check_value(value: Any, where: str) -> None:
    if not isinstance(value, dict) or set(value) != set(_VALUE):
        raise RecordError(f"{where} needs {', '.join(_VALUE)}")
    for name in ("value", "standard_error", "chance"):
        number = value[name]
        if number is not None and (not isinstance(number, Number) or isinstance(number, bool) or not math.isfinite(number)):
            raise RecordError(f"{where}: {name} is {number!r}; expected a finite number or null")


def step_at(retention: Retention, t: float) -> dict[str, Any] | None:
    """Return the step at t, or None if it was not measured."""
    return next((step for step in retention["steps"] if step["t"] == t), None)


def retained_percent(
    values: Mapping[str, Mapping[str, Any]], pretrained: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> float | None:
    """Return what is retained of some probes in percent: the sum of their values above chance, relative to that of the pretrained backbone.

    A probe at or below chance for the pretrained backbone is left out. None if no probe is left, or a value is undefined.
    """
    kept = [name for name in names if (above := above_chance(pretrained[name])) is not None and above > 0]
    gains = [above_chance(values[name]) for name in kept]
    if not kept or None in gains:
        return None
    return 100 * sum(gain for gain in gains if gain is not None) / sum(above_chance(pretrained[name]) or 0.0 for name in kept)


def retention_of(retention: Retention, t: float = 1.0) -> float | None:
    """Return what is retained at t over all probes, in percent: the mean over the kinds of probes (`transfer`, `language`) of `retained_percent`.

    None if t was not measured, or the retention of a kind is undefined.
    """
    step, kinds = step_at(retention, t), probe_kinds(retention)
    if step is None or not kinds:
        return None
    found = [retained_percent(step["probes"], retention["pretrained"], names) for names in kinds.values()]
    known = [percent for percent in found if percent is not None]
    return sum(known) / len(known) if len(known) == len(found) else None


def probe_kinds(retention: Retention) -> dict[str, list[str]]:
    """Return kind of probe -> its values: transfer -> transfer/rte, transfer/qnli."""
    kinds: dict[str, list[str]] = {}
    for name in retention["pretrained"]:
        kinds.setdefault(name.partition("/")[0], []).append(name)
    return kinds


def above_chance(value: Mapping[str, Any]) -> float | None:
    """Return how much better a value is than chance, in its unit; None if it is undefined. Chance is 0 for a correlation."""
    if value["value"] is None:
        return None
    difference: float = value["value"] - (value["chance"] or 0.0)
    return difference if value["higher_is_better"] else -difference
