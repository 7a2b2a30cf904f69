"""Lookup of records by planned run."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from qgoft.config.keys import settings_in_key
from qgoft.config.settings import settings_from_record
from qgoft.errors import QgoftError
from qgoft.records import Record, base_model
from qgoft.run_id import key_from_record
from qgoft.sweep.planned_run import PlannedRun, as_dict


def is_current(record: Record) -> bool:
    """Return True if this version of the code gives the record its key. A record with unsupported settings is reported and left out."""
    try:
        return key_from_record(record) == record["key"]
    except QgoftError as error:
        print(
            f"qgoft: left out: run {record['key'][:16]} ({record['task']}, {record['method']}), whose settings this version does not support: "
            f"{error}",
            file=sys.stderr,
        )
        return False


def _origin(record: Record) -> tuple[Any, ...]:
    """Return what distinguishes runs with equal settings: data, weights and number of processes."""
    made = record["provenance"]
    return made["data"]["fingerprint"], base_model(record), made["hardware"]["processes"]


class RecordIndex:
    """Index of records. A planned run is found by its key, or if its rows and weights are unknown, as the newest run with equal settings."""

    def __init__(self, records: Sequence[Record]):
        self.records = records
        self._by_key = {record["key"]: record for record in records}
        # Compared first by cheap fields, since there are thousands of records and of planned runs.
        self._by_fields: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
        for record in records:
            self._by_fields[tuple(record[name] for name in ("protocol", "suite", "task", "method", "variant", "seed"))].append(record)
        self._settings_in_key: dict[str, dict[str, Any] | None] = {}
        self._others: dict[str, int] = {}
        self._methods = {(r["protocol"], f"{r['suite']}/{r['task']}", r["method"]) for r in records}

    def has_any(self, overrides: Sequence[str]) -> bool:
        """Return True if any record has the protocol, task and method of some overrides, which then need not be composed."""
        asked = as_dict(overrides)
        return (asked["protocol"], asked["task"], asked["method"]) in self._methods

    def find(self, planned: PlannedRun, *, only_done: bool = True) -> Record | None:
        """Return the record of a planned run, or None."""
        if planned.key is not None:
            record = self._by_key.get(planned.key)
            return record if record is not None and (record["status"] == "done" or not only_done) else None
        s = planned.settings
        alike = self._by_fields.get((s.protocol, s.task.suite, s.task.name, s.method.name, s.method.variant, s.seed), [])
        # The source of the rows is not part of the key, but generated rows are not official ones.
        alike = [
            record
            for record in alike
            if (record["status"] == "done" or not only_done) and record["settings"]["data"]["source"] == s.data.source
        ]
        wanted = settings_in_key(s) if alike else None
        found = [record for record in alike if self._settings(record) == wanted]
        mine = [record for record in found if planned.matches_origin(record)]
        if not mine:
            return None
        chosen = max(mine, key=lambda record: (record["status"] == "done", record["finished"]))
        self._others[chosen["key"]] = sum(_origin(record) != _origin(chosen) for record in found)
        return chosen

    def others(self, record: Record) -> int:
        """Return how many records have the settings of a found record and another origin."""
        return self._others.get(record["key"], 0)

    def _settings(self, record: Record) -> dict[str, Any] | None:
        if record["key"] not in self._settings_in_key:
            self._settings_in_key[record["key"]] = settings_in_key(settings_from_record(record)) if is_current(record) else None
        return self._settings_in_key[record["key"]]
