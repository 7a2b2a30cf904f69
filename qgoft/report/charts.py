"""Figures of the papers and of this suite, from rows of tables, with the runs behind their points (qgoft/report/vega.py has the forms).

Each function returns None if there is too little to draw.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qgoft.records import Record, RunFiles, curve_of
from qgoft.report import vega
from qgoft.report.bench import fit_slope, full_batch, ratios, step_seconds
from qgoft.report.figures import Figure
from qgoft.report.items import Item
from qgoft.report.names import display_label
from qgoft.report.orthogonality import ROUNDING, Traces, readable_traces
from qgoft.report.published import load_figures
from qgoft.report.row import Row, averages_of, scores_of
from qgoft.report.table import Table
from qgoft.report.vega import Spec

# Points of a training curve.
CURVE_POINTS = 24


class ParetoPoint(NamedTuple):
    """A row in the figure of scores against parameters."""

    params: int
    score: float
    label: str
    runs: int

    def is_dominated_by(self, other: "ParetoPoint") -> bool:
        return other.params <= self.params and other.score >= self.score and other[:2] != self[:2]


def pareto_points(item: Item, rows: Sequence[Row]) -> list[ParetoPoint]:
    """Return the average and trainable parameters of the rows that may be ranked."""
    points = []
    for row in rows:
        average = averages_of(row, item)
        if row.is_ranked and average and average[-1] is not None:
            points.append(ParetoPoint(row.all()[0]["params"]["trainable"] or 0, average[-1], display_label(row.label), len(row.all())))
    return points if len(points) > 1 else []


def pareto_front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Return the points that no other one dominates, by parameters."""
    return sorted(point for point in points if not any(point.is_dominated_by(other) for other in points))


def pareto_chart(item: Item, rows: Sequence[Row]) -> Spec | None:
    """Return the average against trainable parameters, with the Pareto front."""
    found = sorted(pareto_points(item, rows), key=lambda point: -point.score)
    if not found:
        return None
    left = min((point.params for point in found if point.params > 0), default=3) / 3  # rows that train nothing, on the logarithmic axis
    values = [
        {"row": p.label, "x": max(p.params, left), "score": _digits(p.score, 4), "parameters": p.params, "runs": p.runs} for p in found
    ]
    front = [{"x": max(point.params, left), "score": point.score} for point in pareto_front(found)]
    none = " (none: at the left edge)" if any(point.params == 0 for point in found) else ""
    titles = (f"trainable parameters, head excluded{none}", "average")
    return vega.points(values, "x", "score", titles, ["row", "score", "parameters", "runs"], log_x=True, front=front)


def lambda_chart(item: Item, rows: Sequence[Row]) -> Spec | None:
    """Return figure 4 (b) of GOFT: the score against lambda with its standard deviation over seeds, a line per task."""
    known = sorted((row for row in rows if row.penalty is not None and row.records), key=lambda row: row.penalty or 0)
    values = []
    for row in known:  # the axis has the order of the values
        for column in item.columns:
            if scores := scores_of(row, column):
                mean, spread = statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
                ends = {"low": _digits(mean - spread, 4), "high": _digits(mean + spread, 4)}
                values.append({"row": column.title, "λ": f"{row.penalty:g}", "score": _digits(mean, 4), **ends, "seeds": len(scores)})
    fields = ["row", "λ", "score", "low", "high", "seeds"]
    return vega.lines(values, "λ", "score", ("λ", "score"), fields, ordinal_x=True, interval=("low", "high")) if values else None


def flexibility_chart(item: Item, rows: Sequence[Row]) -> Spec | None:
    """Return figure 4 (a) of GOFT: the score of every run, by task and method."""
    values = [
        {
            "row": display_label(row.label),
            "task": column.title,
            "score": _digits(column.value(record), 4),
            "seed": record["seed"],
            "run": record["key"][:16],
        }
        for column in item.columns
        for row in rows
        for record in row.records.get(column.task or "", [])
    ]
    return vega.by_task(values, ("", "score"), ["row", "task", "score", "seed", "run"]) if values else None


def wins_chart(table: Table) -> Spec:
    """Return figure 3 of GOFT: questions won, tied and lost against each method."""
    values = [
        {"row": table.label(row[0]), "result": result, "questions": int(cell), "order": order}
        for row in table.rows
        for order, (result, cell) in enumerate(zip(("won", "tie", "lost"), row[1:4], strict=True))
    ]
    return vega.shares(values, ("questions", ""))


def curves_chart(rows: Sequence[Row], task: str, files: Mapping[str, RunFiles]) -> Spec | None:
    """Return the training loss of every row on one task: the median of its seeds, five points averaged; a panel per row."""
    values = []
    for row in rows:
        losses: dict[int, list[float]] = defaultdict(list)
        for record in row.records.get(task, []):
            for step, loss in curve_of(files, record["key"], "loss"):
                losses[step].append(loss)
        if losses and not row.label.startswith("random"):
            steps = sorted(losses)
            smooth = _smooth([statistics.median(losses[step]) for step in steps])
            shown = list(zip(steps, smooth, strict=True))[:: max(1, len(steps) // CURVE_POINTS)]
            values += [{"row": display_label(row.label), "step": step, "loss": _digits(loss, 4)} for step, loss in shown]
    return vega.small_multiples(values, "step", "loss", ("step", "training loss"), ["row", "step", "loss"]) if values else None


def traces_chart(traces: Traces) -> Spec | None:
    """Return the orthogonality error during training: median and range of the runs of a method. If there are many rows, only the largest
    row of each method.
    """
    values = []
    for label, runs in readable_traces(traces).items():
        by_share: dict[float, list[float]] = defaultdict(list)
        for run in runs:
            for share, error in run.points:
                by_share[share].append(max(error, 1e-9))
        values += [
            {"row": display_label(label), "share": share, "error": _digits(statistics.median(errors), 3)}
            | {"smallest": _digits(min(errors), 3), "largest": _digits(max(errors), 3), "runs": len(errors)}
            for share, errors in sorted(by_share.items())
        ]
    if not values:
        return None
    fields, titles = ["row", "share", "error", "smallest", "largest", "runs"], ("share of the training", "max |RᵀR − I|")
    interval, rule = ("smallest", "largest"), (ROUNDING, "rounding")
    return vega.lines(values, "share", "error", titles, fields, log_y=True, interval=interval, is_band=True, rule=rule)


def cost_chart(measured: Sequence[tuple[Record, Record]]) -> Spec | None:
    """Return time and peak memory of a training step against the reference's: median and interquartile range, by method and shape.

    Args:
        measured: shapes with the benchmark record of each.
    """
    values: list[dict[str, Any]] = []
    for line, record in measured:
        for timing, reference in full_batch(line, record["reference"]):
            median, low, high = (_digits(value, 3) for value in ratios(step_seconds(timing), step_seconds(reference)))
            values.append(
                {"row": display_label(timing["name"]), "series": line["shape"], "step": median, "low": low, "high": high}
                | {"memory": _digits(timing["peak_bytes"] / reference["peak_bytes"], 3), "commit": record["commit"][:10]}
            )
    known = {value["row"] for value in values}
    table10 = load_figures("goft-icml2024", "table10")["rows"]
    published = {"series": "published (GOFT table 10: QNLI, two RTX 3090)", "memory": None, "commit": "-"}
    for name, (seconds, *_) in table10.items():
        if display_label(name) in known:
            ratio = _digits(seconds / table10["lora"][0], 3)
            values.append({"row": display_label(name), "step": ratio, "low": ratio, "high": ratio, **published})
    if not values:
        return None
    name = display_label(measured[0][1]["reference"])
    panels = {f"training step, {name} = 1": ("step", "low", "high"), f"peak memory, {name} = 1": ("memory", "memory", "memory")}
    return vega.ratios_by_row(values, panels, ["row", "series", "step", "low", "high", "memory", "commit"])


def width_chart(products: Sequence[Record]) -> Spec:
    """Return the time of the product against its width, a line per product with the exponent of its cost."""
    values = []
    for name in dict.fromkeys(line["name"] for line in products):
        found = [(line["width"], 1e3 * statistics.median(line["seconds"])) for line in products if line["name"] == name]
        label = name if len(found) < 2 else f"{name}: d^{fit_slope([width for width, _ in found], [ms for _, ms in found]):.2f}"
        values += [{"row": label, "width": width, "ms": _digits(ms, 3)} for width, ms in found]
    titles = ("width d", f"ms, {products[0]['rows']} rows")
    return vega.lines(values, "width", "ms", titles, ["row", "width", "ms"], log_x=True, log_y=True)


def bench_figures(record: Record) -> list[Figure]:
    """Return time and memory of blocks and models, and the time of the product against its width."""
    lines = [line for line in record["shapes"] if line["part"] != "layer"] or record["shapes"]
    costs = cost_chart([(line, record) for line in lines])
    widths = width_chart(record["products"]) if record["products"] else None
    found = (("bench-cost", costs, "training step and peak memory"), ("bench-width", widths, "time of the product by width"))
    return [Figure(name, spec, caption) for name, spec, caption in found if spec is not None]


def _digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    return [statistics.fmean(values[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(values))]
