"""Figures of the page in Vega-Lite: values and runs on hover, and a legend that shows one row (several with shift)."""

from collections.abc import Mapping, Sequence
from typing import Any

from qgoft.report.figures import COLOURS

Spec = dict[str, Any]
Values = Sequence[Mapping[str, Any]]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # names the version; nothing is loaded
WIDTH, HEIGHT = 340, 230


def points(
    values: Values, x: str, y: str, titles: tuple[str, str], tooltip: Sequence[str], *, log_x: bool = False, front: Values = ()
) -> Spec:
    """Return a scatter plot with one colour a row.

    Args:
        values: with the fields `row`, x, y and those of the tooltip.
        front: points of a step line behind the others.
    """
    scale: Spec = {"type": "log"} if log_x else {"zero": False}
    place = {"x": _field(x, titles[0], scale), "y": _field(y, titles[1], {"zero": False})}
    steps = {"data": {"values": list(front)}, "mark": {"type": "line", "interpolate": "step-after", "color": "gray", "opacity": 0.6}}
    marks = _by_row(values, {**place, "tooltip": _tooltip(tooltip)}, {"type": "point", "filled": True, "size": 70})
    return _spec({"layer": [*([{**steps, "encoding": place}] if front else []), marks]})


def by_task(values: Values, titles: tuple[str, str], tooltip: Sequence[str]) -> Spec:
    """Return a panel per task with the score of every run by row.

    Args:
        values: with the fields row, task and score.
    """
    rows = list(dict.fromkeys(value["row"] for value in values))
    encoding = {
        "x": {"field": "row", "type": "nominal", "title": titles[0] or None, "sort": rows, "axis": {"labelAngle": -30}},
        "y": _field("score", titles[1], {"zero": False}),
        "tooltip": _tooltip(tooltip),
    }
    panel = {"width": 130, "height": 170, "mark": {"type": "point", "color": COLOURS[0]}, "encoding": encoding}
    facet = {"field": "task", "type": "nominal", "title": None, "sort": None}
    return {
        "$schema": SCHEMA,
        "data": {"values": list(values)},
        "facet": facet,
        "columns": 4,
        "spec": panel,
        "resolve": {"scale": {"y": "independent"}},
    }


def lines(
    values: Values,
    x: str,
    y: str,
    titles: tuple[str, str],
    tooltip: Sequence[str],
    *,
    log_y: bool = False,
    ordinal_x: bool = False,
    band: tuple[str, str] | None = None,
) -> Spec:
    """Return one line with points a row.

    Args:
        band: fields of the lower and upper end of the band around a line.
    """
    horizontal = (
        {"field": x, "type": "ordinal", "title": titles[0], "sort": None, "axis": {"labelAngle": 0}}
        if ordinal_x
        else _field(x, titles[0], {})
    )
    vertical = _field(y, titles[1], {"type": "log"} if log_y else {"zero": False})
    place = {"x": horizontal, "y": vertical, "tooltip": _tooltip(tooltip)}
    layers = [_by_row(values, place, {"type": "line", "point": True})]
    if band is not None:
        low, high = band
        layers.append(
            _by_row(
                values, {**place, "y": {**vertical, "field": low}, "y2": {"field": high}}, {"type": "area", "opacity": 0.12}, selects=False
            )
        )
    return _spec({"layer": layers})


def small_multiples(values: Values, x: str, y: str, titles: tuple[str, str], tooltip: Sequence[str]) -> Spec:
    """Return a panel a row, with equal axes."""
    encoding = {"x": _field(x, titles[0], {}), "y": _field(y, titles[1], {"zero": False}), "tooltip": _tooltip(tooltip)}
    panel = {"width": 150, "height": 90, "mark": {"type": "line", "point": {"size": 8}, "color": COLOURS[0]}, "encoding": encoding}
    facet = {"field": "row", "type": "nominal", "title": None, "sort": None}
    return {"$schema": SCHEMA, "data": {"values": list(values)}, "facet": facet, "columns": 4, "spec": panel}


def shares(values: Values, titles: tuple[str, str]) -> Spec:
    """Return bars of won, tied and lost questions, as shares, one bar a row.

    Args:
        values: with the fields row, result and questions.
    """
    colour = {
        "field": "result",
        "title": None,
        "sort": None,
        "scale": {"domain": ["won", "tie", "lost"], "range": [COLOURS[0], "#bbb", COLOURS[1]]},
    }
    order = {"field": "order", "type": "quantitative"}
    encoding = {
        "x": {"field": "questions", "type": "quantitative", "stack": "normalize", "title": titles[0], "axis": {"format": "%"}},
        "y": {"field": "row", "type": "nominal", "title": titles[1] or None, "sort": None},
        "color": colour,
        "order": order,
        "tooltip": _tooltip(["row", "result", "questions"]),
    }
    return _spec({"data": {"values": list(values)}, "mark": "bar", "encoding": encoding, "height": {"step": 26}})


def intervals(values: Values, titles: tuple[str, str], tooltip: Sequence[str]) -> Spec:
    """Return a ratio with its interval a row, on a logarithmic axis with a line at 1.

    Args:
        values: with the fields row, series, ratio, low and high.
    """
    vertical = {"field": "row", "type": "nominal", "title": None, "sort": None}
    colour = {"field": "series", "title": titles[1], "scale": {"range": list(COLOURS)}}
    select = {"name": "shown", "select": {"type": "point", "fields": ["series"]}, "bind": "legend"}
    offset = {"field": "series"}
    ratio = {"field": "ratio", "type": "quantitative", "scale": {"type": "log"}, "title": titles[0]}
    shared = {"y": vertical, "yOffset": offset, "color": colour, "tooltip": _tooltip(tooltip)}
    only = [{"filter": {"param": "shown"}}]
    rules = {"mark": "rule", "encoding": {**shared, "x": {**ratio, "field": "low"}, "x2": {"field": "high"}}, "transform": only}
    dots = {
        "mark": {"type": "point", "filled": True, "size": 50},
        "encoding": {**shared, "x": ratio},
        "transform": only,
        "params": [select],
    }
    one = {"data": {"values": [{}]}, "mark": {"type": "rule", "strokeDash": [4, 4], "color": "gray"}, "encoding": {"x": {"datum": 1}}}
    return _spec({"data": {"values": list(values)}, "layer": [one, rules, dots], "height": {"step": 34}})


def _spec(content: Spec) -> Spec:
    return {"$schema": SCHEMA, "width": WIDTH, "height": HEIGHT, **content}


def _field(name: str, title: str, scale: Spec) -> Spec:
    return {"field": name, "type": "quantitative", "title": title, "scale": scale}


def _tooltip(fields: Sequence[str]) -> list[Spec]:
    return [{"field": field, "title": field} for field in fields]


def _by_row(values: Values, encoding: Spec, mark: Spec, *, selects: bool = True) -> Spec:
    """Return a layer with a colour a row; the legend filters the rows."""
    rows = list(dict.fromkeys(value["row"] for value in values))
    colours = {"range": list(COLOURS)} if len(rows) <= len(COLOURS) else {"scheme": "tableau20"}
    colour = {"field": "row", "title": None, "scale": {"domain": rows, **colours}, "legend": {"symbolLimit": 0}}
    layer: Spec = {"data": {"values": list(values)}, "mark": mark, "encoding": {**encoding, "color": colour}}
    layer["transform"] = [{"filter": {"param": "shown"}}]
    if selects:
        layer["params"] = [{"name": "shown", "select": {"type": "point", "fields": ["row"]}, "bind": "legend"}]
    return layer
