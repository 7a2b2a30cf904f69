"""Orthogonality error of each method: from the records of finished runs and their histories."""

import statistics
from collections import defaultdict
from dataclasses import dataclass

from qgoft.config.settings import method_label
from qgoft.records import RecordSet, curve_of
from qgoft.report.items import Record, group_by_training
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
