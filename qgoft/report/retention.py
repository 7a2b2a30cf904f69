"""Tables and figures of retention: the target score against what is kept of the pretrained backbone."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qgoft.config.suites import suite_info
from qgoft.records import Record, RecordSet, RunFiles
from qgoft.records.retention import Retention, probe_kinds, retention_of, step_at
from qgoft.report import vega
from qgoft.report.figures import Figure
from qgoft.report.names import display_label
from qgoft.report.row import row_label
from qgoft.report.table import MISSING, Table

FRONT = "*"
DRAWS, INTERVAL = 1000, (2.5, 97.5)
BASELINE = "lora"
# Measures of the geometry of the change that are drawn against retention, with their titles.
MEASURES = {
    "energy_change": "|change of hyperspherical energy| in %",
    "angle_change": "largest change of a cosine between rows",
    "output_drift": "output drift of a layer",
    "procrustes": "Procrustes residual",
}
Place = tuple[str, int]  # task and seed


@dataclass
class RetentionRow:
    """The measured runs of one method.

    Attributes:
        runs: task and seed -> record and retention.
    """

    label: str
    runs: dict[Place, tuple[Record, Retention]] = field(default_factory=dict)

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

    def keys(self) -> list[str]:
        return [record["key"] for record, _ in self.runs.values()]


def retention_rows(records: Sequence[Record], files: Mapping[str, RunFiles], protocol: str, suite: str) -> list[RetentionRow]:
    """Return the measured runs of a suite by method. Of runs with equal method, task and seed the newest counts."""
    measured = [
        (record, retention)
        for record in sorted(records, key=lambda record: record["finished"])
        if (record["protocol"], record["suite"], record["status"]) == (protocol, suite, "done")
        and record["key"] in files
        and (retention := files[record["key"]].retention()) is not None
    ]
    penalties = defaultdict(set)
    for record, _ in measured:
        penalties[row_label(record)].add(record["settings"]["method"]["penalty"])
    rows: dict[str, RetentionRow] = {}
    for record, retention in measured:
        label = row_label(record)
        if len(penalties[label]) > 1:
            label += f", λ={record['settings']['method']['penalty']:g}"
        rows.setdefault(label, RetentionRow(label)).runs[record["task"], record["seed"]] = record, retention
    return sorted(rows.values(), key=lambda row: row.label)


def measured_suites(found: RecordSet) -> list[tuple[str, str]]:
    """Return the (protocol, suite) pairs with a measured run."""
    pairs = {(record["protocol"], record["suite"]) for record in found.records if record["key"] in found.files}
    return [pair for pair in sorted(pairs) if retention_rows(found.records, found.files, *pair)]


class Resampling:
    """Draws of tasks and seeds with replacement, the same for all rows.

    Attributes:
        rows: the rows with the most runs, on common tasks and seeds.
        has_spread: there are several runs a row.
        means: mean target score and retention [2, rows].
        targets: mean target score [rows, draws].
        retentions: mean retention [rows, draws].
    """

    def __init__(self, rows: Sequence[RetentionRow]):
        defined = {row.label: set(row.targets()) & set(row.retentions()) for row in rows}
        most = max((len(places) for places in defined.values()), default=0)
        self.rows = [row for row in rows if len(defined[row.label]) == most and most]
        shared = set.intersection(*(defined[row.label] for row in self.rows)) if self.rows else set()
        self.rows = [row for row in self.rows if defined[row.label] == shared]
        places = sorted(shared)
        self.has_spread = len(places) > 1
        if not places:
            self.means, self.targets, self.retentions = np.zeros((2, 0)), np.zeros((0, DRAWS)), np.zeros((0, DRAWS))
            return
        values = np.array([[[found[place] for place in places] for found in (row.targets(), row.retentions())] for row in self.rows])
        values = values.reshape(len(self.rows), 2, len(places)).transpose(1, 0, 2)  # [target or retention, row, place]
        random = np.random.default_rng(0)
        weights = np.ones((DRAWS, len(places)))
        for part in (0, 1):  # tasks, then seeds
            names = sorted({place[part] for place in places})
            drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
            weights *= drawn[:, [names.index(place[part]) for place in places]]
        weights = weights[weights.sum(1) > 0]
        self.means = values.mean(2)
        self.targets, self.retentions = (one @ weights.T / weights.sum(1) for one in values)  # [row, draw]

    def is_front(self) -> np.ndarray:
        """Return for each row whether no other row has at least its target score and retention."""
        return _front(*self.means)

    def front_share(self) -> np.ndarray:
        """Return for each row the share of draws in which it is on the front."""
        return np.mean([_front(*pair) for pair in zip(self.targets.T, self.retentions.T, strict=True)], axis=0)

    def minus(self, row: RetentionRow, baseline: RetentionRow) -> tuple[float, float, float] | None:
        """Return the mean difference of two rows' retention with its 95% interval; None if one lacks runs.

        With one run a row, both ends are NaN.
        """
        if row not in self.rows or baseline not in self.rows:
            return None
        one, other = self.rows.index(row), self.rows.index(baseline)
        low, high = np.percentile(self.retentions[one] - self.retentions[other], INTERVAL) if self.has_spread else (math.nan, math.nan)
        return float(self.means[1, one] - self.means[1, other]), float(low), float(high)


def _front(targets: np.ndarray, retentions: np.ndarray) -> np.ndarray:
    reaches = (targets[None] >= targets[:, None]) & (retentions[None] >= retentions[:, None])
    exceeds = (targets[None] > targets[:, None]) | (retentions[None] > retentions[:, None])
    return np.logical_not(np.any(reaches & exceeds, axis=1))


def build_retention(rows: Sequence[RetentionRow], protocol: str, suite: str) -> Table:
    """Return a row a method: target score, every kind of probe before -> after, retention, its difference from LoRA's, and the front."""
    kinds = list(dict.fromkeys(kind for row in rows for _, retention in row.runs.values() for kind in probe_kinds(retention)))
    drawn = Resampling(rows)
    baseline = next((row for row in drawn.rows if row.label.partition("@")[0] == BASELINE), None)
    less = None if baseline is None else f"minus {display_label(baseline.label)}"
    columns = ["method", "target", *kinds, "retention %", *([less] if less else []), "front", "runs"]
    name = f"retention-{suite}" + ("" if protocol == "pocket" else f"-{protocol}")
    table = Table(name, f"Retention: {suite_info(suite).title}", columns, has_methods=True)
    is_front, share = drawn.is_front(), drawn.front_share()
    has_undefined = False
    for row in sorted(rows, key=lambda row: -_mean(row.targets().values(), float("-inf"))):
        for column in range(1, len(columns)):
            table.sources[len(table.rows), column] = row.keys()
        undefined = len(row.runs) - len(row.retentions())
        has_undefined |= undefined > 0
        cells = [f"{abs(_mean(row.targets().values())):.1f}" if row.targets() else MISSING, *(_probe_cell(row, kind) for kind in kinds)]
        cells.append(_retention_cell(row) + (f" ({undefined} undefined)" if undefined else ""))
        if baseline is not None:
            cells.append(_gap_cell(None if row is baseline else drawn.minus(row, baseline)))
        place = drawn.rows.index(row) if row in drawn.rows else None
        times = "" if place is None or not drawn.has_spread else f"{100 * share[place]:.0f}%"
        cells.append(MISSING if place is None else f"{FRONT if is_front[place] else ''}{times}")
        table.rows.append([row.label, *cells, str(len(row.runs))])
    table.notes = _notes(kinds, has_spread=drawn.has_spread, has_undefined=has_undefined, is_partial=len(drawn.rows) < len(rows))
    return table


def _notes(kinds: Sequence[str], *, has_spread: bool, has_undefined: bool, is_partial: bool) -> list[str]:
    notes = [
        "target: mean score of the tasks that the run was trained on; other columns: mean over the tasks of the pretrained backbone's value -> that "
        "of the tuned one",
        "retention: value above chance of the tuned backbone, relative to the pretrained one; ± is the standard deviation over seeds of the mean over tasks",
        f"{FRONT}: no other row has at least this target score and retention; the percentage counts 1000 draws of tasks and seeds in which that holds",
        "differences from LoRA on the common tasks and seeds with their 95% interval over the same draws, which do not cover the choice of the probes' rows",
    ]
    if not has_spread:
        notes[2:] = [f"{FRONT}: no other row has at least this target score and retention; one run a row, so that no interval is known"]
    meanings = {
        "transfer": "transfer: ridge classifier on frozen features of the suite's other tasks",
        "similarity": "similarity: Spearman's correlation of the cosine of sentence embeddings with the ratings of STS-B",
        "language": "language: loss on text of the pretraining kind in nats per token, lower is better",
        "knowledge": "knowledge: MMLU with five examples",
    }
    notes += [meanings[kind] for kind in kinds if kind in meanings]
    if has_undefined:
        notes.append("undefined: the pretrained backbone is not better than chance, so that nothing can be retained")
    if is_partial:
        notes.append("-: the row lacks runs that others have, so that it is not compared")
    return notes


def _gap_cell(gap: tuple[float, float, float] | None) -> str:
    if gap is None:
        return MISSING
    return f"{gap[0]:+.1f}" + ("" if math.isnan(gap[1]) else f" ({gap[1]:+.1f}, {gap[2]:+.1f})")


def _probe_cell(row: RetentionRow, kind: str) -> str:
    pairs = [
        (retention["pretrained"][name]["value"], step["probes"][name]["value"])
        for _, retention in row.runs.values()
        if (step := step_at(retention, 1.0)) is not None
        for name in probe_kinds(retention).get(kind, [])
    ]
    known = [pair for pair in pairs if None not in pair]
    if not known:
        return MISSING
    before, after = (statistics.fmean(pair[i] for pair in known) for i in (0, 1))
    digits = 2 if max(before, after) < 20 else 1  # nats per token
    return f"{before:.{digits}f} -> {after:.{digits}f}"


def _retention_cell(row: RetentionRow) -> str:
    by_seed = defaultdict(list)
    for (_, seed), percent in row.retentions().items():
        by_seed[seed].append(percent)
    if not by_seed:
        return MISSING
    means = [statistics.fmean(values) for values in by_seed.values()]
    spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
    return f"{statistics.fmean(means):.1f}{spread}"


def _mean(values: Iterable[float], default: float = 0.0) -> float:
    found = list(values)
    return statistics.fmean(found) if found else default


def retention_figures(rows: Sequence[RetentionRow], name: str) -> list[Figure]:
    """Return target score against retention along the path of every method, and the geometry of the change against retention."""
    paths, front = _paths(rows)
    figures = []
    if len(rows) > 1 and paths:
        titles = ("retention in %", "target score")
        spec = vega.paths(paths, "retention", "target", "t", titles, ["row", "t", "target", "retention", "runs"], front)
        figures.append(Figure(name, spec, "target score against retention from t = 0 (pretrained) to t = 1 (tuned, filled)"))
    values = [value for row in rows for value in _geometry_values(row)]
    if len({value["row"] for value in values}) > 1:
        spec = vega.panels(values, MEASURES, "retention", "retention in %", ["row", "value", "retention"])
        figures.append(Figure(name.replace("retention", "geometry", 1), spec, "geometry of the change against retention, a point a method"))
    return figures


def _paths(rows: Sequence[RetentionRow]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of all paths, and those of the front at t = 1."""
    values = []
    for row in rows:
        steps = sorted({step["t"] for _, retention in row.runs.values() for step in retention["steps"]})
        for t in steps:
            targets, retentions = row.targets(t), row.retentions(t)
            places = set(targets) & set(retentions)
            if places:
                target, kept = (statistics.fmean(found[place] for place in places) for found in (targets, retentions))
                values.append(
                    {"row": display_label(row.label), "t": t, "target": round(target, 2), "retention": round(kept, 2), "runs": len(places)}
                )
    drawn = Resampling(rows)
    points = [
        {"retention": float(kept), "target": float(target)} for target, kept, on in zip(*drawn.means, drawn.is_front(), strict=True) if on
    ]
    return values, sorted(points, key=lambda point: point["retention"])


def _geometry_values(row: RetentionRow) -> list[dict[str, Any]]:
    kept = row.retentions()
    found = []
    for measure, title in MEASURES.items():
        values = [
            abs(retention["geometry"]["summary"][measure])
            for place, (_, retention) in row.runs.items()
            if place in kept and measure in retention["geometry"]["summary"]
        ]
        if values:
            found.append(
                {"row": display_label(row.label), "measure": title, "value": float(f"{statistics.fmean(values):.3g}")}
                | {"retention": round(statistics.fmean(kept.values()), 2)}
            )
    return found
