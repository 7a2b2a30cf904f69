"""Geometry of the change of every method, and its rank correlation with retention across the methods."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from qgoft.report import vega
from qgoft.report.figures import Figure
from qgoft.report.names import display_label
from qgoft.report.retention_rows import (
    DRAWS,
    INTERVAL,
    Estimate,
    Place,
    Resampling,
    RetentionRow,
    draw_weights,
    format_estimate,
    format_mean,
    suite_table,
)
from qgoft.report.table import MISSING, Table

# Measures of qgoft/retention/geometry.py: title of a column, and of an axis if the measure is drawn against retention.
MEASURES = {
    "energy_change": ("energy %", "|change of hyperspherical energy| in %"),
    "angle_change": ("angle", "largest change of a cosine between rows"),
    "relative_norm": ("norm", None),
    "effective_rank": ("rank", None),
    "output_drift": ("drift", "output drift of a layer"),
    "procrustes": ("Procrustes", "Procrustes residual"),
    "cka": ("CKA", None),
}
# Changes that are rounding of float32 weights: rows that rotate together have none.
ROUNDING = {"energy_change": 1e-3, "angle_change": 1e-5}
CORRELATION = "rank correlation"
FEWEST = 5  # rows of a correlation


def build_geometry(rows: Sequence[RetentionRow], protocol: str, suite: str) -> Table | None:
    """Return one row per method with the mean of every measure, and the rank correlation with retention across the methods.

    The correlation covers the methods with the protocol's settings on common tasks and seeds. None if no row has measures.
    """
    known = {measure: {row.label: _measured(row, measure) for row in rows} for measure in MEASURES}
    measured = [row for row in rows if any(found[row.label] for found in known.values())]
    if not measured:
        return None
    columns = ["method", *(column for column, _ in MEASURES.values()), "retention %"]
    table = suite_table("geometry", "Geometry of the change", protocol, suite, columns)
    for row in sorted(measured, key=lambda row: -_mean(row.retentions())):
        cells = [_cell(known[measure][row.label]) for measure in MEASURES]
        table.add_row([row.label, *cells, format_mean(row.retentions())], row.keys())
    compared = [row for row in Resampling(rows).rows if not row.own_settings and not row.label.startswith("random")]
    correlations = [rank_correlation(compared, known[measure]) for measure in MEASURES]
    has_correlation = any(one is not None for one in correlations)
    if has_correlation:
        table.rows.append([CORRELATION, *(format_estimate(one, 2) for one in correlations), MISSING])
    table.notes = _notes(has_correlation=has_correlation)
    return table


def rank_correlation(rows: Sequence[RetentionRow], values: dict[str, dict[Place, float]]) -> Estimate | None:
    """Return Spearman's correlation of a measure with retention across rows, with its 95% interval over draws of rows, tasks and seeds.

    Args:
        rows: on common tasks and seeds. Rows that lack the measure are left out; with fewer than five others the correlation is None.
        values: label of a row -> measure of its runs.
    """
    from scipy.stats import rankdata  # slow to import

    found = [row for row in rows if set(row.places()) <= set(values[row.label])]
    if len(found) < FEWEST:
        return None
    places = found[0].places()
    pairs = np.array([[[known[place] for place in places] for known in (values[row.label], row.retentions())] for row in found])
    weights = np.vstack([np.full(len(places), 1 / len(places)), draw_weights(places)])  # the first is no draw
    chosen = np.random.default_rng(1).integers(len(found), size=(len(found), len(weights)))
    chosen[:, 0] = np.arange(len(found))
    means = np.take_along_axis(pairs @ weights.T, chosen[:, None], axis=0)  # [rows, 2, draws]
    ranks = rankdata(means, axis=0)
    centred = ranks - ranks.mean(0)
    with np.errstate(invalid="ignore"):  # a measure that is the same in all rows
        correlations = centred.prod(1).sum(0) / np.sqrt((centred**2).sum(0).prod(0))
    if math.isnan(correlations[0]):
        return None
    low, high = np.nanpercentile(correlations[1:], INTERVAL)
    return float(correlations[0]), float(low), float(high)


def geometry_figure(rows: Sequence[RetentionRow], name: str) -> list[Figure]:
    """Return the measures with an axis title against retention, one point per method on common tasks and seeds; nothing for fewer than two
    methods.
    """
    titles = {measure: title for measure, (_, title) in MEASURES.items() if title is not None}
    values = [value for row in Resampling(rows).rows for value in _points(row, titles)]
    if len({value["row"] for value in values}) < 2:
        return []
    spec = vega.panels(values, titles, "retention", "retention in %", ["row", "value", "retention"])
    return [Figure(name, spec, "geometry of the change against retention, one point per method")]


def _points(row: RetentionRow, titles: dict[str, str]) -> list[dict[str, Any]]:
    kept, found = row.retentions(), []
    for measure, title in titles.items():
        values = [value for place, value in _measured(row, measure).items() if place in kept]
        if values:
            found.append(
                {"row": display_label(row.label), "measure": title, "value": float(f"{statistics.fmean(values):.3g}")}
                | {"retention": round(_mean(kept), 2)}
            )
    return found


def _measured(row: RetentionRow, measure: str) -> dict[Place, float]:
    """Return the absolute value of a measure, averaged over the layers, for every run that has it; 0 if it is rounding."""
    summaries = {place: retention["geometry"]["summary"] for place, (_, retention) in row.runs.items()}
    values = {place: abs(summary[measure]) for place, summary in summaries.items() if measure in summary}
    return {place: value if value > ROUNDING.get(measure, 0) else 0.0 for place, value in values.items()}


def _mean(values: dict[Place, float]) -> float:
    return statistics.fmean(values.values()) if values else -math.inf


def _cell(values: dict[Place, float]) -> str:
    if not values:
        return MISSING
    mean = _mean(values)
    return f"{mean:.0f}" if mean >= 100 else f"{mean:.2g}"


def _notes(*, has_correlation: bool) -> list[str]:
    notes = [
        "mean over layers and runs. energy: change of the hyperspherical energy of the rows of W; angle: largest change of the cosine between two "
        "rows; norm and rank: relative Frobenius norm and effective rank of the change",
        "drift: squared norm of the change's output relative to the layer's output; Procrustes: residual after the best orthogonal alignment; CKA: "
        "linear, 1 without a change",
    ]
    if has_correlation:
        notes.append(
            f"{CORRELATION}: Spearman's, of a measure with retention, across the methods with the protocol's settings and common tasks and seeds, with its 95% interval over {DRAWS} draws of methods, tasks and seeds"
        )
    return notes
