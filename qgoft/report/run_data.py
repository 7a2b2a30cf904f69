"""Runs as data for the script of the page."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qgoft.config.settings import method_label
from qgoft.records import Record, RunFiles, curve_of
from qgoft.records.rerun import rerun_words
from qgoft.records.retention import retention_of
from qgoft.report.names import display_name

# Points of a curve on the page.
POINTS = 24
# Settings that are locations.
LEFT_OUT = ("results", "wandb", "model.target_sets", "task.columns", "task.rows", "task.sources", "seed")


class _Shared:
    """Values that many runs share, written once; runs hold indices."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        return self.places.setdefault(json.dumps(value), len(self.places))

    def curve(self, points: Sequence[tuple[int, float]]) -> int | None:
        """Return [index of the steps, values]."""
        return self.place([self.place([step for step, _ in points]), [value for _, value in points]]) if points else None

    @property
    def values(self) -> list[Any]:
        return [json.loads(text) for text in self.places]


def run_data(records: Sequence[Record], files: Mapping[str, RunFiles], models: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the data of the page's script. Numbers for `loss`, `scores`, `origin`, `facts`, `own` and `command` of a run are indices into
    `shared`.
    """
    bases: dict[str, dict[str, Any]] = {}
    shared = _Shared()
    runs, numbers = [], {}
    for record in records:
        base_name = f"{record['protocol']}/{record['suite']}"
        settings = _flat(record["settings"])
        base = bases.setdefault(base_name, settings)
        own = {name: value for name, value in settings.items() if base.get(name) != value}
        own |= {name: None for name in base if name not in settings}
        runs.append(
            {
                "key": record["key"],
                "task": f"{record['suite']}/{record['task']}",
                "label": method_label(record["method"], record["variant"]),
                "name": display_name(record["method"], record["variant"]),
                "seed": record["seed"],
                "status": record["status"],
                "reason": record["reason"],
                "primary": record["primary"],
                "value": record["metrics"].get(record["primary"], {}).get("value"),
                "metrics": {name: _metric(metric) for name, metric in record["metrics"].items()},
                "facts": [[shared.place(name), value] for name, value in _facts(record, files.get(record["key"])).items()],
                "loss": shared.curve(_thin(curve_of(files, record["key"], "loss"))),
                "scores": shared.curve(_thin(curve_of(files, record["key"], "score"))),
                "settings": base_name,
                "own": [shared.place(pair) for pair in own.items()],
                "origin": shared.place(_origin(record)),
                "command": [shared.place(word) for word in rerun_words(record, models)],
            }
        )
        numbers[record["key"]] = len(runs) - 1
    return {"runs": runs, "settings": bases, "shared": shared.values}, numbers


def _metric(metric: dict[str, Any]) -> str:
    value, error = metric["value"], metric["standard_error"]
    return (
        "undefined" if value is None else f"{value:.2f}" + ("" if error is None else f" ±{error:.2f} (over items)") + f", n = {metric['n']}"
    )


def _facts(record: Record, files: RunFiles | None) -> dict[str, Any]:
    cost, orthogonality = record["cost"], record["orthogonality"]
    peak, error = cost["peak_memory_bytes"], orthogonality["max_error"]
    measured = None if files is None else files.retention()
    kept = None if measured is None else retention_of(measured)
    facts = {
        "selection": record["selection"],
        "trainable parameters": record["params"]["trainable"],
        "seconds of training": None if cost["seconds"] is None else round(cost["seconds"], 1),
        "steps": cost["steps"],
        "peak memory": None if peak is None else f"{peak / 1e9:.2f} GB",
        "max |R^T R - I|": None if error is None else f"{error:.1e}",
        "retention": None if kept is None else f"{kept:.1f}%",
        "started": record["started"],
    }
    return {name: value for name, value in facts.items() if value is not None}


def _origin(record: Record) -> dict[str, Any]:
    provenance = record["provenance"]
    hardware, data, model = provenance["hardware"], provenance["data"], provenance["model"]
    packages = ", ".join(f"{name} {version}" for name, version in provenance["packages"].items())
    return {
        "commit": f"{provenance['commit']}{' (dirty)' if provenance['dirty'] else ''}",
        "device": f"{hardware['device']}, {hardware['processor']}, {hardware['threads']} threads, {hardware['processes']} processes",
        "data": f"{data['source']}, revision {data['revision']}, fingerprint {data['fingerprint'][:16]}, rows {json.dumps(data['rows'])}",
        "subset": "yes" if data["subset"] else None,
        "model": f"{model['source']}, revision {model['revision']}, sha256 {model['sha256'][:16]}"
        + (f", with tokenizer and configuration {model['files'][:16]}" if "files" in model else ""),
        "packages": packages,
    }


def _flat(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return dotted names and values, without locations."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        full = f"{where}{name}"
        if full in LEFT_OUT:
            continue
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{full}.")
        elif value is not None and value not in ({}, []):
            found[full] = value if isinstance(value, int | float | str) else json.dumps(value)
    return found


def _thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most `POINTS` points of a curve, including the last."""
    if len(points) > POINTS:
        every = len(points) / POINTS
        points = [*(points[int(i * every)] for i in range(POINTS - 1)), points[-1]]
    return [(step, float(f"{value:.3g}")) for step, value in points]
