"""A record as one row of plain columns."""

from typing import Any

from qgoft.config.settings import method_label
from qgoft.records.retention import Retention, retention_of
from qgoft.records.schema import Record


def flat_row(record: Record, retention: Retention | None = None) -> dict[str, Any]:
    """Return the columns of `load_results` for one record. Score, orthogonality and retention are None if they are undefined."""
    metric = record["metrics"].get(record["primary"], {})
    return {
        "protocol": record["protocol"],
        "suite": record["suite"],
        "task": record["task"],
        "model": record["model"],
        "method": record["method"],
        "variant": record["variant"],
        "label": method_label(record["method"], record["variant"]),
        "seed": record["seed"],
        "overrides": " ".join(record.get("overrides", [])),
        "status": record["status"],
        "score": metric.get("value"),
        "metric": record["primary"],
        "n": metric.get("n"),
        "standard_error": metric.get("standard_error"),
        "params": record["params"]["trainable"],
        "seconds": record["cost"]["seconds"],
        "peak_memory_bytes": record["cost"]["peak_memory_bytes"],
        "orthogonality": record["orthogonality"]["max_error"],
        "retention": None if retention is None else retention_of(retention),
        "key": record["key"],
        "commit": record["provenance"]["commit"],
    }
