"""Measured runs by method, and draws of tasks and seeds for their intervals."""

import collections
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qgoft.config.compose import override_name
from qgoft.config.suites import suite_info
from qgoft.records import Record, RecordSet, RunFiles
from qgoft.records.retention import Retention, retention_of, step_at
from qgoft.report.row import row_label
from qgoft.report.table import MISSING, Table, table_name

DRAWS, INTERVAL = 1000, (2.5, 97.5)
AT_EQUAL = "at equal target"  # in the title of a column with retention_gap_at_equal_target
Place = tuple[str, int]  # task and seed
Estimate = tuple[float, float, float]  # a value and its 95% interval, whose ends are NaN if it is not known


def suite_table(kind: str, title: str, protocol: str, suite: str, columns: list[str]) -> Table:
    """Return an empty table `<kind>-<suite>` of methods, with the protocol in its name unless it is pocket."""
    return Table(table_name(f"{kind}-{suite}", protocol), f"{title}: {suite_info(suite).title}", columns, has_methods=True)


def format_estimate(value: Estimate | None, digits: int = 1) -> str:
    """Return `+1.2 (-0.3, +2.7)`, the value alone if its interval is not known, or a dash."""
    if value is None:
        return MISSING
    mean, low, high = (f"{number:+.{digits}f}" for number in value)
    return mean if math.isnan(value[1]) else f"{mean} ({low}, {high})"


def format_mean(values: Mapping[Place, float]) -> str:
    """Return the mean of targets or retentions without sign, or a dash."""
    return f"{abs(statistics.fmean(values.values())):.1f}" if values else MISSING


@dataclass
class RetentionRow:
    """The measured runs of one method.

    Attributes:
        label: method, with the settings that differ from the protocol.
        runs: task and seed -> record and retention.
        method: label of the method with the settings of the protocol.
        own_settings: the settings that differ (setting -> value).
    """

    label: str
    runs: dict[Place, tuple[Record, Retention]] = field(default_factory=dict)
    method: str = ""
    own_settings: dict[str, str] = field(default_factory=dict)

    def targets(self, t: float = 1.0) -> dict[Place, float]:
        """Return the score of the target at t; higher is better."""
        found = {}
        for place, (_, retention) in self.runs.items():
            step = step_at(retention, t)
            if step is not None and step["target"]["value"] is not None:
                found[place] = step["target"]["value"] * (1 if step["target"]["higher_is_better"] else -1)
        return found

    def retentions(self, t: float = 1.0) -> dict[Place, float]:
        """Return the retention at t in percent, without the runs for which it is undefined."""
        found = {place: retention_of(retention, t) for place, (_, retention) in self.runs.items()}
        return {place: percent for place, percent in found.items() if percent is not None}

    def steps(self, places: Sequence[Place]) -> list[float]:
        """Return every t with target and retention at all of some places, in order."""
        known = sorted({step["t"] for place in places for step in self.runs[place][1]["steps"]})
        return [t for t in known if {*places} <= set(self.targets(t)) & set(self.retentions(t))]

    def places(self) -> list[Place]:
        """Return the tasks and seeds with target score and retention of the tuned backbone."""
        return sorted(set(self.targets()) & set(self.retentions()))

    def keys(self) -> list[str]:
        return [record["key"] for record, _ in self.runs.values()]


def retention_rows(records: Sequence[Record], files: Mapping[str, RunFiles], protocol: str, suite: str) -> list[RetentionRow]:
    """Return the measured runs of a suite by method, by backbone, and by settings that differ from the protocol.

    Of equal runs the newest counts. Values by other probes than those of the newest measurement cannot be compared and are left out.
    """
    mine = [record for record in records if (record["protocol"], record["suite"], record["status"]) == (protocol, suite, "done")]
    found = [(record, files[record["key"]].retention()) for record in mine if record["key"] in files]
    measured = [(record, retention) for record, retention in found if retention is not None]
    if not measured:
        return []
    wanted = _probe_settings(max((retention for _, retention in measured), key=lambda retention: str(retention["finished"])))
    models = {record["model"] for record, _ in measured if record["settings"]["model"]["init"] != "random"}
    rows: dict[str, RetentionRow] = {}
    for record, retention in sorted(measured, key=lambda pair: str(pair[0]["finished"])):
        if _probe_settings(retention) != wanted:
            continue
        method = row_label(record)
        method += f", {record['model']}" if len(models) > 1 and not method.startswith("random") else ""
        own = {override_name(override): override.partition("=")[2] for override in record.get("overrides", [])}
        label = ", ".join([method, *(f"{_short(name)}={value}" for name, value in own.items())])
        row = rows.setdefault(label, RetentionRow(label, method=method, own_settings=own))
        row.runs[record["task"], record["seed"]] = record, retention
    return sorted(rows.values(), key=lambda row: row.label)


def _probe_settings(retention: Retention) -> dict[str, Any]:
    """Return the settings that values at one t depend on."""
    return {name: value for name, value in retention["settings"].items() if name not in ("steps", "positions", "weight_rows", "ask_judge")}


def _short(name: str) -> str:
    """Return the name of a setting as part of a label: λ, max_steps."""
    return "λ" if name == "method.penalty" else name.rpartition(".")[2]


def measured_suites(found: RecordSet) -> list[tuple[str, str]]:
    """Return the (protocol, suite) pairs with a measured run."""
    done = (record for record in found.records if record["status"] == "done" and record["key"] in found.files)
    return sorted({(record["protocol"], record["suite"]) for record in done if found.files[record["key"]].retention() is not None})


class Resampling:
    """Draws of tasks and seeds with replacement, for rows on common tasks and seeds.

    Attributes:
        rows: the rows on the most frequent set of tasks and seeds, the largest of equally frequent ones.
        has_spread: there are several runs in a row.
        means: mean target score and retention [2, rows].
        targets: mean target score [rows, draws].
        retentions: mean retention [rows, draws].
    """

    def __init__(self, rows: Sequence[RetentionRow]):
        sets = collections.Counter(frozenset(row.places()) for row in rows)
        common = max(sets, key=lambda places: (sets[places] if places else 0, len(places)), default=frozenset())
        places = sorted(common)
        self.rows = [row for row in rows if places and set(row.places()) == common]
        self.has_spread = len(places) > 1
        ends = [_values(row, places, [1.0])[:, 0] for row in self.rows]  # [2, places] of each row
        values = np.array(ends).reshape(len(self.rows), 2, len(places)).transpose(1, 0, 2)
        self.means = values.mean(2) if places else np.zeros((2, 0))
        self.targets, self.retentions = (one @ draw_weights(places).T for one in values)

    def is_front(self) -> np.ndarray:
        """Return for each row whether no other row is at least equal in target score and retention, and better in one."""
        return _front(*self.means)

    def front_share(self) -> np.ndarray:
        """Return for each row the share of draws in which it is on the front."""
        return np.mean([_front(*pair) for pair in zip(self.targets.T, self.retentions.T, strict=True)], axis=0)


def retention_gap(row: RetentionRow, baseline: RetentionRow) -> Estimate | None:
    """Return the mean difference of two rows' retention over their common tasks and seeds, with its 95% interval; None without any."""
    places = sorted(set(row.places()) & set(baseline.places()))
    if not places:
        return None
    difference = _values(row, places, [1.0])[1, 0] - _values(baseline, places, [1.0])[1, 0]
    return _gap(difference.mean(), draw_weights(places) @ difference, has_spread=len(places) > 1)


def retention_gap_at_equal_target(row: RetentionRow, baseline: RetentionRow, *, rewinds_baseline: bool = True) -> Estimate | None:
    """Return the difference after both rows are rewound to the same target score; None without common runs, or with fewer than three t.

    That score is the lower of the two highest ones on the mean paths over the common tasks and seeds. A path is taken at the point that
    first reaches it, with linear interpolation between the steps.

    Args:
        rewinds_baseline: False to compare with the tuned backbone of the baseline as it is.
    """
    places = sorted(set(row.places()) & set(baseline.places()))
    steps = row.steps(places), baseline.steps(places) if rewinds_baseline else [1.0]
    if not places or len(steps[0]) < 3 or (rewinds_baseline and len(steps[1]) < 3):
        return None
    paths = [_values(one, places, some) for one, some in zip((row, baseline), steps, strict=True)]
    weights = draw_weights(places)
    ours, theirs = (values @ weights.T for values in paths)  # [2, steps, draws]
    gaps = [_gap_at_equal_target(ours[..., i], theirs[..., i]) for i in range(len(weights))]
    return _gap(_gap_at_equal_target(paths[0].mean(2), paths[1].mean(2)), np.array(gaps), has_spread=len(places) > 1)


def _values(row: RetentionRow, places: Sequence[Place], steps: Sequence[float]) -> np.ndarray:
    """Return targets and retentions [2, steps, places]."""
    found = [[row.targets(t) for t in steps], [row.retentions(t) for t in steps]]
    return np.array([[[values[place] for place in places] for values in kind] for kind in found]).reshape(2, len(steps), len(places))


def _gap(mean: float, drawn: np.ndarray, *, has_spread: bool) -> Estimate:
    low, high = np.percentile(drawn, INTERVAL) if has_spread else (math.nan, math.nan)
    return float(mean), float(low), float(high)


def draw_weights(places: Sequence[Place]) -> np.ndarray:
    """Return the weight of every place in every draw [draws, places], with sum 1: how often its task and its seed were drawn."""
    random = np.random.default_rng(0)
    weights = np.ones((DRAWS, len(places)))
    for part in (0, 1) if places else ():  # tasks, then seeds
        names = sorted({place[part] for place in places}, key=str)
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
        weights *= drawn[:, [names.index(place[part]) for place in places]]
    total = weights.sum(1, keepdims=True)
    return np.divide(weights, total, where=total > 0, out=np.full_like(weights, 1 / max(1, len(places))))


def _front(targets: np.ndarray, retentions: np.ndarray) -> np.ndarray:
    reaches = (targets[None] >= targets[:, None]) & (retentions[None] >= retentions[:, None])
    exceeds = (targets[None] > targets[:, None]) | (retentions[None] > retentions[:, None])
    return np.logical_not(np.any(reaches & exceeds, axis=1))


def _gap_at_equal_target(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the difference in retention of two paths [2, steps] (target, retention) at the lower of their highest targets."""
    level = min(ours[0].max(), theirs[0].max())
    return _retention_at(ours[0], ours[1], level) - _retention_at(theirs[0], theirs[1], level)


def _retention_at(targets: np.ndarray, retentions: np.ndarray, level: float) -> float:
    """Return the retention at the first point of a path with a target score of `level`, which it reaches."""
    after = int(np.argmax(targets >= level))
    if after == 0:
        return float(retentions[0])
    share = (level - targets[after - 1]) / (targets[after] - targets[after - 1])
    return float(retentions[after - 1] + share * (retentions[after] - retentions[after - 1]))
