"""Figures of the papers and of this suite, from rows of tables: flexibility, lambda, win rates, score against parameters, training curves."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.ticker import NullFormatter

from qgoft.records import RunFiles, curve_of
from qgoft.report.figures import COLOURS, COLUMN, paper_style, save_figure, style_of
from qgoft.report.items import Item
from qgoft.report.names import display_label
from qgoft.report.row import Row, averages_of, scores_of
from qgoft.report.table import Table


def draw_flexibility(item: Item, rows: Sequence[Row], stem: Path) -> list[Path]:
    """Draw figure 4 (a) of GOFT: one panel per task, one point per method, with the standard deviation over seeds."""
    with paper_style():
        figure, axes = plt.subplots(1, len(item.columns), figsize=(COLUMN, 1.9), squeeze=False)
        for axis, column in zip(axes[0], item.columns, strict=True):
            for place, row in enumerate(rows):
                values = scores_of(row, column)
                if values:
                    style = style_of(place)
                    axis.errorbar(
                        place, statistics.fmean(values), yerr=_spread(values), fmt=style["marker"], color=style["color"], capsize=2
                    )
            axis.set_xticks(range(len(rows)), [display_label(row.label) for row in rows], rotation=20, ha="right")
            axis.set_xlim(-0.5, len(rows) - 0.5)
            axis.set_title(column.title)
        axes[0][0].set_ylabel("score")
        figure.tight_layout()
        return save_figure(figure, stem)


def draw_lambda(item: Item, rows: Sequence[Row], stem: Path) -> list[Path]:
    """Draw figure 4 (b) of GOFT: score against lambda on a logarithmic axis, with lambda 0 separate on the left."""
    known = sorted((row for row in rows if row.penalty is not None and row.records), key=lambda row: row.penalty or 0)
    with paper_style():
        figure, axis = plt.subplots(figsize=(COLUMN, 2.2))
        for number, column in enumerate(item.columns):
            points = [(place, scores_of(row, column)) for place, row in enumerate(known)]
            places, values = [place for place, v in points if v], [v for _, v in points if v]
            means, spreads = [statistics.fmean(v) for v in values], [_spread(v) for v in values]
            axis.errorbar(places, means, yerr=spreads, label=column.title, capsize=2, **style_of(number))
        axis.set_xticks(range(len(known)), [f"{row.penalty:g}" for row in known])
        axis.set_xlabel("λ")
        axis.set_ylabel("score")
        axis.legend(ncol=len(item.columns), loc="upper center", bbox_to_anchor=(0.5, 1.2))
        return save_figure(figure, stem)


def draw_wins(table: Table, stem: Path) -> list[Path]:
    """Draw figure 3 of GOFT: won, tied and lost questions against each method, as shares of a bar."""
    with paper_style():
        figure, axis = plt.subplots(figsize=(COLUMN, 0.32 * len(table.rows) + 0.7))
        for place, (_, *cells) in enumerate(table.rows):
            counts = [int(cell) for cell in cells[:3]]
            left = 0.0
            for count, colour in zip(counts, (COLOURS[0], "0.8", COLOURS[1]), strict=True):
                share = 100 * count / sum(counts)
                axis.barh(place, share, left=left, color=colour, height=0.7)
                if share > 6:
                    axis.text(
                        left + share / 2,
                        place,
                        str(count),
                        ha="center",
                        va="center",
                        color="black" if colour == "0.8" else "white",
                        fontsize=7,
                    )
                left += share
        axis.set_yticks(range(len(table.rows)), [display_label(row[0]) for row in table.rows])
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        axis.set_xlabel("won (blue), tied (grey), lost (red), % of the questions")
        return save_figure(figure, stem)


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


def draw_pareto(item: Item, rows: Sequence[Row], stem: Path) -> list[Path]:
    """Draw the average against trainable parameters, with the Pareto front."""
    points = pareto_points(item, rows)
    if not points:
        return []
    best = pareto_front(points)
    with paper_style():
        figure, axis = plt.subplots(figsize=(COLUMN, 2.6))
        left = min(point.params for point in points if point.params > 0) / 3
        edge = [(max(point.params, left), point.score) for point in best]
        axis.step([x for x, _ in edge], [y for _, y in edge], where="post", color="0.75", lw=1, zorder=0)
        for number, point in enumerate(sorted(points, key=lambda point: -point.score)):
            style = style_of(number)
            axis.plot(
                max(point.params, left), point.score, ls="", label=point.label, **style, mfc=style["color"] if point in best else "none"
            )
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(
            "trainable parameters, head excluded" + (" (none: at the left edge)" if any(point.params == 0 for point in points) else "")
        )
        axis.set_ylabel("average")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="filled: on the front")
        return save_figure(figure, stem)


def loss_curves(rows: Sequence[Row], task: str, files: Mapping[str, RunFiles]) -> dict[str, list[tuple[int, float]]]:
    """Return the training loss of every row on one task: the median of its seeds at each logged step."""
    curves = {}
    for row in rows:
        losses: dict[int, list[float]] = defaultdict(list)
        for record in row.records.get(task, []):
            for step, loss in curve_of(files, record["key"], "loss"):
                losses[step].append(loss)
        if losses and not row.label.startswith("random"):
            steps = sorted(losses)
            smooth = _smooth([statistics.median(losses[step]) for step in steps])
            curves[display_label(row.label)] = list(zip(steps, smooth, strict=True))
    return curves


def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]], title: str, stem: Path) -> list[Path]:
    """Draw training losses as small multiples: a panel per row, with the curves of all others in grey."""
    if not curves:
        return []
    columns = min(4, len(curves))
    thin = [points[:: max(1, len(points) // 16)] for points in curves.values()]  # as many points in every panel would make large files
    lines = -(-len(curves) // columns)
    with paper_style():
        height = 1.1 * lines + 0.7
        figure, axes = plt.subplots(lines, columns, figsize=(2 * COLUMN, height), squeeze=False, sharex=True, sharey=True)
        figure.subplots_adjust(left=0.08, right=0.99, bottom=0.42 / height, top=1 - 0.42 / height, wspace=0.08, hspace=0.35)
        for place, axis in enumerate(axes.flat):
            axis.set_visible(place < len(curves))
        for axis, (label, points) in zip(axes.flat, curves.items(), strict=False):
            axis.add_collection(LineCollection(thin, colors="0.88", linewidths=0.6, zorder=0))
            axis.plot(*zip(*points, strict=True), color=COLOURS[0], lw=1)
            axis.set_title(label)
        figure.supxlabel("step", fontsize=8, y=0.02)
        figure.supylabel("training loss, 5 points averaged", fontsize=8, x=0.01)
        figure.suptitle(title, fontsize=8, y=0.99, va="top")
        return save_figure(figure, stem, is_tight=False)


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    return [statistics.fmean(values[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(values))]


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
