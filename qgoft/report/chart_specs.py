"""Figures of the page from rows of tables, with the runs behind their points (qgoft/report/vega.py has the forms)."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from qgoft.report import vega
from qgoft.report.bench import find_reference, ratios, step_seconds
from qgoft.report.charts import pareto_front, pareto_points
from qgoft.report.cost import BenchColumn
from qgoft.report.items import Item
from qgoft.report.names import display_label
from qgoft.report.orthogonality import Traces
from qgoft.report.row import Row, scores_of
from qgoft.report.table import Table
from qgoft.report.vega import Spec

Curves = Mapping[str, Sequence[tuple[int, float]]]


def pareto_spec(item: Item, rows: Sequence[Row]) -> Spec | None:
    """Return the average against trainable parameters, with the Pareto front; None with fewer than two rows."""
    found = pareto_points(item, rows)
    if not found:
        return None
    left = min((point.params for point in found if point.params > 0), default=3) / 3  # rows that train nothing, on the logarithmic axis
    values = [{"row": p.label, "x": max(p.params, left), "score": round(p.score, 2), "parameters": p.params, "runs": p.runs} for p in found]
    front = [{"x": max(point.params, left), "score": point.score} for point in pareto_front(found)]
    titles = ("trainable parameters, head excluded", "average")
    return vega.points(values, "x", "score", titles, ["row", "score", "parameters", "runs"], log_x=True, front=front)


def lambda_spec(item: Item, rows: Sequence[Row]) -> Spec | None:
    """Return the score against lambda, a line per task."""
    known = sorted((row for row in rows if row.penalty is not None and row.records), key=lambda row: row.penalty or 0)
    values = [
        {"row": column.title, "lambda": f"{row.penalty:g}", "score": round(statistics.fmean(scores), 2), "seeds": len(scores)}
        for column in item.columns
        for row in known
        if (scores := scores_of(row, column))
    ]
    return (
        vega.lines(values, "lambda", "score", ("lambda", "score"), ["row", "lambda", "score", "seeds"], ordinal_x=True) if values else None
    )


def flexibility_spec(item: Item, rows: Sequence[Row]) -> Spec | None:
    """Return the score of every run, by task and method."""
    values = [
        {
            "row": display_label(row.label),
            "task": column.title,
            "score": round(column.value(record), 2),
            "seed": record["seed"],
            "run": record["key"][:16],
        }
        for column in item.columns
        for row in rows
        for record in row.records.get(column.task or "", [])
    ]
    return vega.by_task(values, ("", "score"), ["row", "task", "score", "seed", "run"]) if values else None


def wins_spec(table: Table) -> Spec:
    """Return the questions won, tied and lost against each method."""
    values = [
        {"row": table.label(row[0]), "result": result, "questions": int(cell), "order": order}
        for row in table.rows
        for order, (result, cell) in enumerate(zip(("won", "tie", "lost"), row[1:4], strict=True))
    ]
    return vega.shares(values, ("questions", ""))


def curves_spec(curves: Curves) -> Spec | None:
    """Return training losses, a panel per row."""
    values = [{"row": label, "step": step, "loss": float(f"{loss:.4g}")} for label, points in curves.items() for step, loss in points[::2]]
    return vega.small_multiples(values, "step", "loss", ("step", "loss"), ["row", "step", "loss"]) if values else None


def traces_spec(traces: Traces) -> Spec | None:
    """Return the orthogonality error during training: median and range of the runs of a method."""
    values = []
    for label, runs in traces.items():
        by_share: dict[float, list[float]] = defaultdict(list)
        for run in runs:
            for share, error in run.points:
                by_share[share].append(max(error, 1e-9))
        values += [
            {"row": display_label(label), "share": share, "error": float(f"{statistics.median(errors):.3g}")}
            | {"smallest": float(f"{min(errors):.3g}"), "largest": float(f"{max(errors):.3g}"), "runs": len(errors)}
            for share, errors in sorted(by_share.items())
        ]
    fields = ["row", "share", "error", "smallest", "largest", "runs"]
    titles = ("share of the training", "max |R^T R - I|")
    return vega.lines(values, "share", "error", titles, fields, log_y=True, band=("smallest", "largest")) if values else None


def cost_spec(measured: Sequence[BenchColumn]) -> Spec | None:
    """Return the time of a training step against LoRA's: median and interquartile range, by method and shape."""
    values = []
    for one in measured:
        name = one.record["reference"]
        for group in one.line["groups"]:
            if group[0]["batch"] != one.line["groups"][0][0]["batch"]:
                continue
            reference = step_seconds(find_reference(group, name))
            for timing in group:
                if timing["name"] != name:
                    median, low, high = (float(f"{value:.3g}") for value in ratios(step_seconds(timing), reference))
                    row = display_label(timing["name"])
                    values.append(
                        {"row": row, "series": one.shape, "ratio": median, "low": low, "high": high, "commit": one.record["commit"][:10]}
                    )
    titles = ("time of a training step, LoRA r=8 = 1", "shape")
    return vega.intervals(values, titles, ["row", "series", "ratio", "low", "high", "commit"]) if values else None
