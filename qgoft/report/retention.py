"""Tables and figures of retention: the target score against what is kept of the pretrained backbone."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from qgoft.records.retention import probe_kinds, step_at
from qgoft.report import vega
from qgoft.report.figures import Figure
from qgoft.report.geometry import build_geometry, geometry_figure
from qgoft.report.names import display_label
from qgoft.report.penalties import build_penalties
from qgoft.report.retention_rows import (
    AT_EQUAL,
    DRAWS,
    Resampling,
    RetentionRow,
    format_estimate,
    format_mean,
    retention_gap,
    retention_gap_at_equal_target,
    suite_table,
)
from qgoft.report.stopping import build_stopping, is_stopped
from qgoft.report.table import MISSING, ColumnGroup, Table

FRONT = "*"
# Methods whose retention is subtracted from that of the others: the most common one, and the exactly orthogonal one.
BASELINES = ("lora", "goft")


def retention_report(measured: Sequence[RetentionRow], protocol: str, suite: str) -> tuple[list[Table], list[Figure]]:
    """Return the tables and figures of a suite: retention, penalty weights, geometry, and stopped runs against rewound ones, which have no other table."""
    rows = [row for row in measured if not is_stopped(row)]
    retention = build_retention(rows, protocol, suite)
    others = build_penalties(rows, protocol, suite), build_geometry(rows, protocol, suite), build_stopping(measured, protocol, suite)
    figures = [*retention_figure(rows, retention.name), *geometry_figure(rows, retention.name.replace("retention", "geometry", 1))]
    return [retention, *(table for table in others if table is not None)], figures


def build_retention(rows: Sequence[RetentionRow], protocol: str, suite: str) -> Table:
    """Return one row per method: target score, every kind of probe before -> after, retention, differences from LoRA and GOFT, and the front."""
    kinds = list(dict.fromkeys(kind for row in rows for _, retention in row.runs.values() for kind in probe_kinds(retention)))
    drawn = Resampling(rows)
    plain = {row.label.partition("@")[0]: row for row in rows if not row.own_settings}
    baselines = [plain[name] for name in BASELINES if name in plain]
    less = [f"minus {display_label(row.label)}" for row in baselines]
    differences = [column for title in less for column in (title, f"{title}, {AT_EQUAL}")]
    columns = ["method", "target", *kinds, "retention %", *differences, "front", "runs"]
    table = suite_table("retention", "Retention", protocol, suite, columns)
    table.groups = [ColumnGroup(title, columns.index(title), ("tuned", AT_EQUAL)) for title in less]
    is_front, share = drawn.is_front(), drawn.front_share()
    has_undefined = False
    for row in sorted(rows, key=lambda row: -_mean(row.targets().values(), float("-inf"))):
        undefined = len(row.runs) - len(row.retentions())
        has_undefined |= undefined > 0
        cells = [format_mean(row.targets()), *(_probe_cell(row, kind) for kind in kinds)]
        cells.append(_retention_cell(row) + (f" ({undefined} undefined)" if undefined else ""))
        for baseline, gap in itertools.product(baselines, (retention_gap, retention_gap_at_equal_target)):
            cells.append(format_estimate(None if row is baseline else gap(row, baseline)))
        place = drawn.rows.index(row) if row in drawn.rows else None
        times = "" if place is None or not drawn.has_spread else f"{100 * share[place]:.0f}%"
        cells.append(MISSING if place is None else f"{FRONT if is_front[place] else ''}{times}")
        table.add_row([row.label, *cells, str(len(row.runs))], row.keys())
    table.notes = _notes(kinds, has_spread=drawn.has_spread, has_undefined=has_undefined, is_partial=len(drawn.rows) < len(rows))
    return table


def _notes(kinds: Sequence[str], *, has_spread: bool, has_undefined: bool, is_partial: bool) -> list[str]:
    notes = [
        "target: mean score of the tasks that the run was trained on; other columns: mean over the tasks of the pretrained backbone's value -> that "
        "of the tuned one",
        "retention: value above chance of the tuned backbone, relative to the pretrained one; ± is the standard deviation over seeds of the mean over "
        "tasks; tasks of a probe at or below chance for the pretrained backbone are left out",
        f"{FRONT}: no other row is at least equal in target score and retention, and better in one; the percentage counts {DRAWS} draws of tasks and "
        "seeds in which that holds",
        "differences in retention on the common tasks and seeds with their 95% interval over the same draws, which do not cover the choice of the "
        "probes' rows",
        f"{AT_EQUAL}: the same difference after both methods are rewound to the lower of the highest scores on their paths",
    ]
    if not has_spread:
        notes[2:] = [
            f"{FRONT}: no other row is at least equal in target score and retention, and better in one; with one run no interval is known",
            notes[-1],
        ]
    meanings = {
        "transfer": "transfer: ridge classifier on frozen features of the suite's other tasks",
        "similarity": "similarity: Spearman's correlation of the cosine of sentence embeddings with the ratings of STS-B",
        "language": "language: loss on text of the pretraining kind in nats per token, lower is better",
        "knowledge": "knowledge: MMLU with five examples",
    }
    notes += [meanings[kind] for kind in kinds if kind in meanings]
    if has_undefined:
        notes.append("undefined: the pretrained backbone is not better than chance in any task of a probe")
    if is_partial:
        notes.append("front -: the row has other tasks or seeds than most rows, so that it is not compared")
    return notes


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
    return f"{before:.{digits}f} -> {after:.{digits}f} ({after - before:+.{digits}f})"


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


def retention_figure(rows: Sequence[RetentionRow], name: str) -> list[Figure]:
    """Return target score against retention along the path of every method on common tasks and seeds; nothing for fewer than two rows."""
    drawn = Resampling(rows)
    if len(drawn.rows) < 2:
        return []
    paths, front = _paths(drawn)
    titles = ("retention in %", "target score")
    spec = vega.paths(paths, "retention", "target", "t", titles, ["row", "t", "target", "retention", "runs"], front)
    return [Figure(name, spec, "target score against retention from t = 0 (pretrained) to t = 1 (tuned, filled)")]


def _paths(drawn: Resampling) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of all paths, and those of the front at t = 1."""
    values = []
    for row in drawn.rows:
        steps = sorted({step["t"] for _, retention in row.runs.values() for step in retention["steps"]})
        for t in steps:
            targets, retentions = row.targets(t), row.retentions(t)
            places = set(targets) & set(retentions)
            if places:
                target, kept = (statistics.fmean(found[place] for place in places) for found in (targets, retentions))
                values.append(
                    {"row": display_label(row.label), "t": t, "target": round(target, 2), "retention": round(kept, 2), "runs": len(places)}
                )
    points = [
        {"retention": float(kept), "target": float(target)} for target, kept, on in zip(*drawn.means, drawn.is_front(), strict=True) if on
    ]
    return values, sorted(points, key=lambda point: point["retention"])
