"""Schema of a record. Unknown values are null, never invented."""

import math
from datetime import datetime
from typing import Any

from qgoft.config.constraints import NAME
from qgoft.errors import RecordError

SCHEMA = 1
Record = dict[str, Any]
PRIMARY_STATUSES = ("done", "oom", "diverged", "interrupted", "failed")

Number = (int, float)
Kind = type | tuple[type, ...]

# name -> (type, may be null). A dict stands for a nested object with exactly these names.
_METRIC: dict[str, tuple[Kind, bool]] = {
    "value": (Number, True),
    "higher_is_better": (bool, False),
    "n": (int, False),
    "standard_error": (Number, True),  # over the items, in the unit of the value
    "majority_baseline": (Number, True),  # the same metric for always predicting the most frequent training label
    "computed_by": (str, False),  # dotted name of the function
}
_FIELDS: dict[str, tuple[Kind, bool]] = {
    "schema": (int, False),
    "key": (str, False),
    "protocol": (str, False),
    "suite": (str, False),
    "task": (str, False),
    "task_version": (int, False),
    "method": (str, False),
    "variant": (str, False),
    "model": (str, False),
    "seed": (int, False),
    "status": (str, False),
    "reason": (str, True),
    "primary": (str, False),
    "metrics": (dict, False),
    "selection": (str, False),
    "best_checkpoint": (dict, False),  # the selected step, and its score
    "params": (dict, False),
    "cost": (dict, False),
    "orthogonality": (dict, False),
    "started": (str, False),
    "finished": (str, False),
    "settings": (dict, False),
    "overrides": (list, False),  # settings of the command line that differ from the protocol, such as those of a sweep: name=value
    "provenance": (dict, False),
    "files": (dict, False),  # name of a file next to the record -> its SHA-256
}
_NESTED: dict[str, dict[str, tuple[Kind, bool]]] = {
    "params": {"trainable": (int, True), "head": (int, True), "total": (int, True)},
    "cost": {
        "setup_seconds": (Number, True),  # loading of rows and weights, and setup of the method
        "seconds": (Number, True),
        "steps": (int, True),
        "seconds_per_step": (Number, True),
        "examples_per_second": (Number, True),
        "peak_memory_bytes": (int, True),
    },
    "best_checkpoint": {"step": (int, True), "score": (Number, True)},
    "orthogonality": {"max_error": (Number, True), "penalty": (Number, True)},
    "provenance": {
        "commit": (str, True),
        "dirty": (bool, True),
        "code": (str, False),  # SHA-256 of the sources that can affect results
        "packages": (dict, False),
        "hardware": (dict, False),
        "data": (dict, False),
        "model": (dict, False),
        "resumed": (list, False),  # interruptions: after which step, and the hardware of the part before
        "rekeyed": (dict, False),  # results version and key of the original record, if a later version kept its result
        "training": (dict, False),  # training shared by several tasks: its key, whether another run did it, and its provenance
    },
}
_DEEPER: dict[str, dict[str, tuple[Kind, bool]]] = {
    "data": {
        "source": (str, False),
        "revision": (str, True),
        "fingerprint": (str, False),
        "rows": (dict, False),
        "subset": (bool, False),
        "data_fixes": (dict, False),  # problem of the data -> count
    },
    "model": {"source": (str, False), "revision": (str, True), "sha256": (str, False), "files": (str, False)},
    "hardware": {
        "device": (str, False),
        "processor": (str, True),
        "cores": (int, True),
        "memory_bytes": (int, True),
        "system": (str, False),
        "threads": (int, False),
        "processes": (int, False),
        "givens": (str, False),  # backend of the Givens operator, which affects rounding
    },
    "rekeyed": {"results_version": (int, False), "key": (str, False)},
    "training": {"key": (str, False), "shared": (bool, False), "by": (dict, False)},
}
# Provenance of a shared training by another run; empty if unknown.
_BY: dict[str, tuple[Kind, bool]] = {
    name: _NESTED["provenance"][name] for name in ("commit", "dirty", "code", "packages", "hardware", "resumed")
}
# Fields that may be absent.
_MAY_BE_ABSENT = {
    "provenance.data.data_fixes",
    "provenance.model.files",  # the checksum of tokenizer and configuration; absent for embedded models
    "provenance.code",  # absent in records before November 2026
    "provenance.resumed",
    "provenance.rekeyed",
    "provenance.hardware.givens",
    "provenance.resumed.hardware.givens",
    "provenance.training.by.hardware.givens",
    "provenance.training.by.resumed.hardware.givens",
    "provenance.training",
    "provenance.training.by",
    "cost.setup_seconds",
    "best_checkpoint",
    "files",
    "overrides",  # absent in records before November 2026
}


# Objects with free names: type of their values.
_MAPS: dict[str, Kind] = {"packages": str, "data.rows": int, "data.data_fixes": int}
_SELECTIONS = ("last", "best_validation", "best_reported")
# Fields that repeat a setting: name -> path in the settings.
_IN_SETTINGS = {
    "protocol": ("protocol",),
    "suite": ("task", "suite"),
    "task": ("task", "name"),
    "task_version": ("task", "version"),
    "primary": ("task", "primary"),
    "method": ("method", "name"),
    "variant": ("method", "variant"),
    "model": ("model", "name"),
    "selection": ("selection",),
    "seed": ("seed",),
}


def validate(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record if it is complete and consistent.

    Raises:
        RecordError: names the field, its value and the accepted values.
    """
    _check(record, _FIELDS, "")
    if record["schema"] != SCHEMA:
        raise RecordError(f"schema is {record['schema']}; this version reads {SCHEMA}")
    for name, fields in _NESTED.items():
        if name in record:  # otherwise it may be absent: the check above has passed
            _check(record[name], fields, name + ".")
    for name, fields in _DEEPER.items():
        if name not in record["provenance"]:
            continue  # it may be absent
        _check(record["provenance"][name], fields, f"provenance.{name}.")
    for name, metric in record["metrics"].items():
        _check(metric, _METRIC, f"metrics.{name}.")
    if not all(isinstance(word, str) for word in record.get("overrides", [])):
        raise RecordError(f"overrides is {record['overrides']!r}; expected texts name=value")
    _check_origin(record["provenance"], "provenance.")
    by = record["provenance"].get("training", {}).get("by", {})
    if by:
        _check(by, {name: kind for name, kind in _BY.items() if name in by}, "provenance.training.by.")
        _check_origin(by, "provenance.training.by.")
    if record["selection"] not in _SELECTIONS:
        raise RecordError(f"selection is {record['selection']!r}; allowed are {', '.join(_SELECTIONS)}")
    _check_names(record)
    if record["status"] not in PRIMARY_STATUSES:
        raise RecordError(f"status is {record['status']!r}; allowed are {', '.join(PRIMARY_STATUSES)}")
    if len(record["key"]) != 64 or not set(record["key"]) <= set("0123456789abcdef"):
        raise RecordError(f"key is {record['key']!r}; expected a SHA-256 in hex")
    for name, checksum in record.get("files", {}).items():
        if not isinstance(checksum, str):
            raise RecordError(f"files.{name} is {checksum!r}; expected a checksum")
    for name in ("started", "finished"):
        try:
            has_zone = datetime.fromisoformat(record[name]).tzinfo is not None
        except ValueError as error:
            raise RecordError(f"{name} is {record[name]!r}; expected an ISO 8601 time") from error
        if not has_zone:
            raise RecordError(f"{name} is {record[name]!r}; expected an ISO 8601 time with its zone")
    if record["status"] == "done":
        if record["params"]["trainable"] is None:
            raise RecordError("status is done, but params.trainable is unknown")
        primary = record["metrics"].get(record["primary"], {}).get("value")
        if primary is None:
            raise RecordError(f"status is done, but the primary metric {record['primary']!r} has no value")
    elif not record["reason"]:
        raise RecordError(f"status is {record['status']}; a reason is needed")
    return record


def _check_origin(made: dict[str, Any], prefix: str) -> None:
    """Check the provenance of a run: objects with free names, the hardware, and the parts of a resumed run."""
    for where, kind in _MAPS.items():
        node: Any = made
        for name in where.split("."):
            node = node.get(name, {})
        for name, value in node.items():
            if not isinstance(value, kind) or isinstance(value, bool):
                raise RecordError(f"{prefix}{where}.{name} is {value!r} of type {type(value).__name__}")
    if "hardware" in made:
        _check(made["hardware"], _DEEPER["hardware"], f"{prefix}hardware.")
    for part in made.get("resumed", []):
        _check(part, {"step": (int, False), "hardware": (dict, False)}, f"{prefix}resumed.")
        _check(part["hardware"], _DEEPER["hardware"], f"{prefix}resumed.hardware.")


def _check_names(record: dict[str, Any]) -> None:
    """Check that names are valid, and that a record agrees with its settings."""
    for name in ("protocol", "suite", "task", "method", "variant", "model"):
        if not NAME.fullmatch(record[name]):
            raise RecordError(f"{name} is {record[name]!r}; letters, digits and _ . , @ + = - are allowed")
    for name, path in _IN_SETTINGS.items():
        node: Any = record["settings"]
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if node != record[name]:
            raise RecordError(f"{name} is {record[name]!r}, and settings.{'.'.join(path)} is {node!r}; they must be equal")


def _check(data: Any, fields: dict[str, tuple[Kind, bool]], where: str) -> None:
    if not isinstance(data, dict):
        raise RecordError(f"{where or 'record'} is {data!r}; expected an object")
    for name in sorted(set(data) ^ set(fields)):
        if f"{where}{name}" in _MAY_BE_ABSENT and name in fields:
            continue
        raise RecordError(f"{where}{name} is {'unknown' if name in data else 'missing'}")
    for name, (kind, optional) in fields.items():
        if name not in data:
            continue
        value = data[name]
        if value is None and optional:
            continue
        is_wrong_bool = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kind) or is_wrong_bool:
            raise RecordError(f"{where}{name} is {value!r} of type {type(value).__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise RecordError(f"{where}{name} is {value}; write null for an unknown value")
