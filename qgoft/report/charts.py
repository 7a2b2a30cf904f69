"""Figures of the papers and of this suite, from rows of tables: flexibility, lambda, win rates, score against parameters, training curves."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

from qgoft.records import read_curve
from qgoft.report.figures import COLOURS, COLUMN, paper_style, save_figure, style_of
from qgoft.report.items import Item
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
            axis.set_xticks(range(len(rows)), [row.label for row in rows], rotation=20, ha="right")
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
        axis.set_yticks(range(len(table.rows)), [row[0] for row in table.rows])
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        axis.set_xlabel("won (blue), tied (grey), lost (red), % of the questions")
        return save_figure(figure, stem)


def draw_pareto(item: Item, rows: Sequence[Row], stem: Path) -> list[Path]:
    """Draw the average against trainable parameters, with the Pareto front."""
    points = []
    for row in rows:
        average = averages_of(row, item)
        if row.is_ranked and average and average[-1] is not None:
            points.append((row.all()[0]["params"]["trainable"] or 0, average[-1], row.label))
    if len(points) < 2:
        return []
    best = [p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q[:2] != p[:2] for q in points)]
    with paper_style():
        figure, axis = plt.subplots(figsize=(COLUMN, 2.6))
        smallest = min(count for count, _, _ in points if count > 0)
        placed = sorted((max(count, smallest / 3), score, label) for count, score, label in points)
        edge = sorted((max(count, smallest / 3), score) for count, score, _ in best)
        axis.step([x for x, _ in edge], [y for _, y in edge], where="post", color="0.75", lw=1, zorder=0)
        for x, y, _ in placed:
            axis.plot(x, y, "o", color=COLOURS[0 if any((x, y) == e for e in edge) else 5], ms=4)
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("trainable parameters, head excluded" + (" (none: at the left edge)" if any(c == 0 for c, _, _ in points) else ""))
        axis.set_ylabel("average")
        _label_points(axis, placed)
        return save_figure(figure, stem)


def _label_points(axis: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Label points, shifted vertically if labels would overlap."""
    figure = axis.figure
    figure.canvas.draw()
    taken: list[tuple[float, float]] = []
    scale = 72 / figure.dpi
    for x, y, label in sorted(points, key=lambda point: -point[1]):
        at = axis.transData.transform((x, y)) * scale
        place = at[1]
        while any(abs(place - other) < 7 and abs(at[0] - column) < 42 for column, other in taken):
            place -= 2
        taken.append((at[0], place))
        offset = {"xytext": (4, place - at[1]), "textcoords": "offset points"}
        # A white box behind the text: a stroke around the letters would make the file ten times as large.
        paper = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"}
        axis.annotate(label, (x, y), **offset, fontsize=5.5, va="center", bbox=paper, zorder=1)


def draw_curves(rows: Sequence[Row], task: str, title: str, directories: Mapping[str, Path], stem: Path) -> list[Path]:
    """Draw the training loss of every row on one task: the median of its seeds at each logged step."""
    drawn = []
    for row in rows:
        losses: dict[int, list[float]] = defaultdict(list)
        for record in row.records.get(task, []):
            for step, loss in read_curve(directories.get(record["key"]), "loss"):
                losses[step].append(loss)
        if losses and not row.label.startswith("random"):
            drawn.append((row.label, [(step, statistics.median(values)) for step, values in sorted(losses.items())]))
    if not drawn:
        return []
    with paper_style():
        figure, axis = plt.subplots(figsize=(COLUMN, 2.4))
        for number, (label, points) in enumerate(drawn):
            style = style_of(number)
            steps, values = [step for step, _ in points], _smooth([loss for _, loss in points])
            axis.plot(steps, values, color=style["color"], ls=("-", "--", ":")[number // len(COLOURS) % 3], lw=0.9, label=label)
        axis.set_xlabel("step")
        axis.set_ylabel("training loss, 5 points averaged")
        axis.set_title(title)
        axis.legend(ncol=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return save_figure(figure, stem)


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    return [statistics.fmean(values[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(values))]


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
