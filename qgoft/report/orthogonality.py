"""Orthogonality error of each method: a table from the records of finished runs, and a figure from their histories."""

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from qgoft.config.settings import method_label
from qgoft.records import RecordSet, curve_of
from qgoft.report.figures import COLOURS, save_figure
from qgoft.report.items import Record, group_by_training
from qgoft.report.names import display_label
from qgoft.report.table import Table


@dataclass(frozen=True)
class Trace:
    """One run: its error at fractions of the training; for the selected step, its error and unweighted penalty, if any; its key."""

    points: tuple[tuple[float, float], ...]
    error: float
    penalty: float | None = None
    key: str = ""


Traces = dict[str, list[Trace]]  # by label
# Rounding error of float32 products is below.
ROUNDING = 1e-5
MOST_LINES = 12  # of a figure


def read_traces(found: RecordSet, protocol: str, suite: str) -> Traces:
    """Return the traces of all finished runs of a suite with a pretrained backbone; under pocket only on generated rows. Methods that
    rotate nothing have none. A training shared by several tasks counts once. If the runs of a method differ in their target sets or in the
    weight of the penalty, each choice has its own row.
    """
    runs: dict[str, tuple[Record, Trace]] = {}
    for training, record in group_by_training(found.records):
        is_asked = (record["status"], record["protocol"], record["suite"]) == ("done", protocol, suite)
        is_foreign = protocol == "pocket" and record["provenance"]["data"]["source"] != "pocket"
        error = record["orthogonality"]["max_error"]
        if not is_asked or is_foreign or record["settings"]["model"]["init"] == "random" or error is None:
            continue
        if training not in runs:
            points = curve_of(found.files, record["key"], "orthogonality")
            steps = record["cost"]["steps"] or 0
            # Trainings of other lengths have their evaluations at the same fractions up to rounding.
            shares = tuple((round(step / steps, 2), value) for step, value in points) if steps else ()
            runs[training] = record, Trace(shares, error, record["orthogonality"]["penalty"], record["key"])
    targets: dict[str, set[str]] = defaultdict(set)
    for record, _ in runs.values():
        targets[_method(record)].add(record["settings"]["method"]["targets"])
    traces: Traces = defaultdict(list)
    by_weight: dict[tuple[str, str], dict[float, list[Trace]]] = defaultdict(lambda: defaultdict(list))
    for record, trace in runs.values():
        method = record["settings"]["method"]
        label = _method(record) + (f", {method['targets']}" if len(targets[_method(record)]) > 1 else "")
        traces[label].append(trace)
        task = "" if "training" in record["provenance"] else f", {record['task']}"
        by_weight[label, task][method["penalty"]].append(trace)
    for (label, task), weights in by_weight.items():
        if len(weights) > 1:
            traces |= {f"{label}{task}, λ={weight:g}": some for weight, some in sorted(weights.items())}
    return dict(sorted(traces.items(), key=lambda item: statistics.median(run.error for run in item[1])))


def _method(record: Record) -> str:
    return method_label(record["method"], record["variant"])


def build_trace_table(traces: Traces, protocol: str, suite: str) -> Table:
    """Return the table of errors of the selected steps: median, minimum and maximum over the runs of a method, and the median penalty."""
    title = f"max |R^T R - I| after training ({suite}, {protocol})"
    table = Table("orthogonality", title, ["method", "runs", "median", "smallest", "largest", "penalty"], has_methods=True)
    for label, runs in traces.items():
        errors, penalties = [run.error for run in runs], [run.penalty for run in runs if run.penalty is not None]
        penalty = f"{statistics.median(penalties):.1e}" if penalties else "-"
        table.sources[len(table.rows), 1] = [run.key for run in runs]
        table.rows.append(
            [label, str(len(runs)), *(f"{value:.1e}" for value in (statistics.median(errors), min(errors), max(errors))), penalty]
        )
    table.notes = [
        "at the selected step; penalty: its median, unweighted (qGOFT: squared products of the two columns of a block, summed over all blocks)",
        "R is the map that each layer applies to its input, with scales (PSOFT: to its principal subspace); below 1e-5 it is rounding",
    ]
    if any(", λ=" in label for label in traces):
        table.notes.append(
            "rows with a λ are of one task, or of one training of all; the row without has the runs of all tasks and weights"
        )
    without = sum(not run.points for label, runs in traces.items() for run in runs if ", λ=" not in label)
    if without:
        table.notes.append(f"of {without} runs history.jsonl has no curve: they are not in the figure")
    if len(readable_traces(traces)) < len(_drawn(traces)):
        table.notes.append("the figure has one row of each method, the one with the most runs")
    return table


def draw_traces(traces: Traces, directory: Path, name: str = "orthogonality") -> list[Path]:
    """Draw the error over the training from history.jsonl: median of the runs and their range. If there are many rows, only the largest row
    of each method. Return the files.
    """
    readable = readable_traces(traces)
    return save_figure(_figure(readable), directory / name) if readable else []


def _drawn(traces: Traces) -> Traces:
    """Return the traces with a curve."""
    drawn = {label: [run for run in runs if run.points] for label, runs in traces.items()}
    return {label: runs for label, runs in drawn.items() if runs}


def readable_traces(traces: Traces) -> Traces:
    """Return the traces of the figure: at most MOST_LINES, otherwise the row of each method with the most runs."""
    traces = _drawn(traces)
    if len(traces) <= MOST_LINES:
        return traces
    of_method: dict[str, str] = {}
    for label in traces:
        method = label.partition(",")[0].partition("@")[0]
        of_method[method] = max(of_method.get(method, label), label, key=lambda name: len(traces[name]))
    return {label: runs for label, runs in traces.items() if label in of_method.values()}


def _figure(traces: Traces) -> Any:
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    ends = []
    for number, (label, runs) in enumerate(traces.items()):
        by_share: dict[float, list[float]] = defaultdict(list)
        for run in runs:
            for share, error in run.points:
                by_share[share].append(max(error, 1e-9))
        shares = sorted(by_share)
        middle = [statistics.median(by_share[share]) for share in shares]
        colour, line = COLOURS[number % len(COLOURS)], ("-", "--", ":")[number // len(COLOURS) % 3]
        axis.plot(shares, middle, marker="o", ms=3, lw=1.4, color=colour, ls=line)
        axis.fill_between(shares, [min(by_share[s]) for s in shares], [max(by_share[s]) for s in shares], color=colour, alpha=0.1, lw=0)
        ends.append([middle[-1], display_label(label), colour])
    axis.set_yscale("log")
    axis.axhline(ROUNDING, color="0.5", lw=0.8, ls=":")
    axis.text(0.005, ROUNDING * 1.15, "rounding", color="0.4", fontsize=8, transform=axis.get_yaxis_transform())
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the training")
    axis.set_ylabel("max |R$^T$R - I|")
    axis.spines[["top", "right"]].set_visible(False)
    _label_ends(axis, ends)
    return figure


def _label_ends(axis: Any, ends: list[list[Any]]) -> None:
    """Label the ends of the lines, shifted if labels would overlap."""
    figure = axis.figure
    figure.canvas.draw()
    room = 11  # points between two lines of text
    places = sorted((axis.transData.transform((1, value))[1] * 72 / figure.dpi, value, label, color) for value, label, color in ends)
    last = float("-inf")
    for place, value, label, color in places:
        last = max(place, last + room)
        axis.annotate(label, (1, value), xytext=(8, last - place), textcoords="offset points", color=color, fontsize=8, va="center")
