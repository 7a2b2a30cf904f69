"""Forms of figures in Vega-Lite: values and runs on hover, and a legend that shows one row (several with shift)."""

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
Values = Sequence[Mapping[str, Any]]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # names the version; nothing is loaded
WIDTH, HEIGHT = 340, 230
# Okabe and Ito (2008), without their yellow, which is not visible in thin lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def points(
    values: Values, x: str, y: str, titles: tuple[str, str], tooltip: Sequence[str], *, log_x: bool = False, front: Values = ()
) -> Spec:
    """Return a scatter plot with one colour a row.

    Args:
        values: with the fields `row`, x, y and those of the tooltip.
        front: points of a step line behind the others.
    """
    scale: Spec = {"type": "log"} if log_x else {"zero": False}
    across = _field(x, titles[0], scale) | ({"axis": {"format": "~s", "tickCount": 6}} if log_x else {})
    place = {"x": across, "y": _field(y, titles[1], {"zero": False})}
    steps = {"data": {"values": list(front)}, "mark": {"type": "line", "interpolate": "step-after", "color": "#aaa"}}
    marks = _by_row(values, {**place, "tooltip": _tooltip(tooltip)}, {"type": "point", "filled": True, "size": 70, "opacity": 1})
    return _spec({"layer": [*([{**steps, "encoding": place}] if front else []), marks]})


def paths(values: Values, x: str, y: str, order: str, titles: tuple[str, str], tooltip: Sequence[str], front: Values) -> Spec:
    """Return a line a row through its points by `order`, of which the last is filled, and a step line through the front.

    Args:
        values: with the fields `row`, x, y, order and those of the tooltip.
        front: points with x and y by x.
    """
    place = {"x": _field(x, titles[0], {"zero": False}), "y": _field(y, titles[1], {"zero": False})}
    steps = {
        "data": {"values": list(front)},
        "mark": {"type": "line", "interpolate": "step-before", "color": "#999", "strokeDash": [4, 3]},
        "encoding": place,
    }
    by_order = {**place, "order": {"field": order, "type": "quantitative"}, "tooltip": _tooltip(tooltip)}
    last = max(value[order] for value in values)
    ends = _by_row(
        [value for value in values if value[order] == last],
        by_order,
        {"type": "point", "filled": True, "size": 80, "opacity": 1},
        selects=False,
    )
    drawn = _by_row(values, by_order, {"type": "line", "strokeWidth": 1.2, "point": {"filled": False, "fill": "white", "size": 18}})
    return _spec({"height": 320, "layer": [*([steps] if front else []), drawn, ends]})


def panels(values: Values, titles: Mapping[str, str], y: str, y_title: str, tooltip: Sequence[str]) -> Spec:
    """Return a scatter plot per measure, with one colour a row.

    Args:
        values: with the fields `row`, `measure` (its title), `value` and y.
        titles: measures in their order.
    """
    known = {value["measure"] for value in values}
    rows = list(dict.fromkeys(value["row"] for value in values))
    drawn = []
    for number, title in enumerate(title for title in titles.values() if title in known):
        place = {
            "x": _field("value", title, {"zero": False}),
            "y": _field(y, y_title if number % 2 == 0 else "", {"zero": False}),
            "tooltip": _tooltip(tooltip),
        }
        some = [value for value in values if value["measure"] == title]
        mark = {"type": "point", "filled": True, "size": 60, "opacity": 1}
        drawn.append({"width": 220, "height": 170, "layer": [_by_row(some, place, mark, selects=number == 0, rows=rows)]})
    return {"$schema": SCHEMA, "concat": drawn, "columns": 2}


def by_task(values: Values, titles: tuple[str, str], tooltip: Sequence[str]) -> Spec:
    """Return a panel per task with the score of every run by row, and a tick at the mean of a row.

    Args:
        values: with the fields row, task and score.
    """
    rows = list(dict.fromkeys(value["row"] for value in values))
    across = {"field": "row", "type": "nominal", "title": titles[0] or None, "sort": rows, "axis": {"labelAngle": -30}}
    up = _field("score", titles[1], {"zero": False})
    runs = {"mark": {"type": "point", "color": COLOURS[0]}, "encoding": {"x": across, "y": up, "tooltip": _tooltip(tooltip)}}
    means = {
        "mark": {"type": "tick", "color": COLOURS[1], "thickness": 2, "opacity": 1},
        "encoding": {"x": across, "y": {**up, "aggregate": "mean"}},
    }
    return {
        "$schema": SCHEMA,
        "data": {"values": list(values)},
        "facet": {"field": "task", "type": "nominal", "title": None, "sort": None},
        "columns": 4,
        "spec": {"width": 130, "height": 170, "layer": [means, runs]},
        "resolve": {"scale": {"y": "independent"}},
    }


def lines(
    values: Values,
    x: str,
    y: str,
    titles: tuple[str, str],
    tooltip: Sequence[str],
    *,
    log_x: bool = False,
    log_y: bool = False,
    ordinal_x: bool = False,
    interval: tuple[str, str] | None = None,
    is_band: bool = False,
    rule: tuple[float, str] | None = None,
) -> Spec:
    """Return one line with points a row.

    Args:
        interval: fields of the lower and upper end of the interval of a point, drawn as a bar, or with `is_band` as a band around the line.
        rule: value of y with a dotted line, and its label.
    """
    horizontal = (
        {"field": x, "type": "ordinal", "title": titles[0], "sort": None, "axis": {"labelAngle": 0}}
        if ordinal_x
        else _field(x, titles[0], {"type": "log", "nice": False} if log_x else {})
    )
    vertical = _field(y, titles[1], {"type": "log"} if log_y else {"zero": False})
    place = {"x": horizontal, "y": vertical, "tooltip": _tooltip(tooltip)}
    layers = [_by_row(values, place, {"type": "line", "point": True})]
    if interval is not None:
        mark: Spec = {"type": "area", "opacity": 1, "fillOpacity": 0.12} if is_band else {"type": "rule"}
        ends = {"y": {**vertical, "field": interval[0]}, "y2": {"field": interval[1]}}
        layers.append(_by_row(values, {**place, **ends}, mark, selects=False))
    if rule is not None:
        level: Spec = {"data": {"values": [{y: rule[0], "label": rule[1]}]}, "encoding": {"y": _field(y, titles[1], {})}}
        text = {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "color": "gray"}
        layers += [
            {**level, "mark": {"type": "rule", "strokeDash": [2, 3], "color": "gray"}},
            {**level, "mark": text, "encoding": {**level["encoding"], "text": {"field": "label"}, "x": {"value": 0}}},
        ]
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
        values: with the fields row, result, questions and order.
    """
    colour = {
        "field": "result",
        "title": None,
        "sort": None,
        "scale": {"domain": ["won", "tie", "lost"], "range": [COLOURS[0], "#bbb", COLOURS[1]]},
    }
    encoding = {
        "x": {"field": "questions", "type": "quantitative", "stack": "normalize", "title": titles[0], "axis": {"format": "%"}},
        "y": {"field": "row", "type": "nominal", "title": titles[1] or None, "sort": None},
        "color": colour,
        "order": {"field": "order", "type": "quantitative"},
        "tooltip": _tooltip(["row", "result", "questions"]),
    }
    return _spec({"data": {"values": list(values)}, "mark": "bar", "encoding": encoding, "height": {"step": 26}})


def ratios_by_row(values: Values, panels: Mapping[str, tuple[str, str, str]], tooltip: Sequence[str]) -> Spec:
    """Return a panel per ratio with its interval a row, on a logarithmic axis with a line at 1.

    Args:
        values: with the fields row, series and those of the panels; null for an unknown ratio.
        panels: title -> fields of the ratio and of the ends of its interval.
    """
    select = {"name": "shown", "select": {"type": "point", "fields": ["series"]}, "bind": "legend"}
    series = list(dict.fromkeys(value["series"] for value in values))
    shared: Spec = {
        "y": {"field": "row", "type": "nominal", "title": None, "sort": list(dict.fromkeys(value["row"] for value in values))},
        "yOffset": {"field": "series", "sort": series},
        "color": {
            "field": "series",
            "title": None,
            "scale": {"domain": series, "range": list(COLOURS)},
            "legend": {"orient": "bottom", "columns": 2, "labelLimit": 400},
        },
        "tooltip": _tooltip(tooltip),
    }
    drawn: list[Spec] = []
    for number, (title, (middle, low, high)) in enumerate(panels.items()):
        ratio = {"type": "quantitative", "scale": {"type": "log", "nice": False}, "title": title}
        place = shared if number == 0 else {**shared, "y": {**shared["y"], "axis": {"labels": False, "ticks": False}}}
        only = [{"filter": {"param": "shown"}}, {"filter": f"isValid(datum['{middle}'])"}]
        one = {"data": {"values": [{}]}, "mark": {"type": "rule", "strokeDash": [4, 4], "color": "gray"}, "encoding": {"x": {"datum": 1}}}
        ends = {"x": {**ratio, "field": low}, "x2": {"field": high}}
        dots: Spec = {
            "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
            "encoding": {**place, "x": {**ratio, "field": middle}},
        }
        layers: list[Spec] = [one, {"mark": "rule", "encoding": {**place, **ends}, "transform": only}, {**dots, "transform": only}]
        if number == 0:
            layers[-1]["params"] = [select]
        drawn.append({"width": 250, "height": {"step": 9}, "layer": layers})
    return {"$schema": SCHEMA, "data": {"values": list(values)}, "hconcat": drawn}


def _spec(content: Spec) -> Spec:
    return {"$schema": SCHEMA, "width": WIDTH, "height": HEIGHT, **content}


def _field(name: str, title: str, scale: Spec) -> Spec:
    return {"field": name, "type": "quantitative", "title": title, "scale": scale}


def _tooltip(fields: Sequence[str]) -> list[Spec]:
    return [{"field": field, "title": field} for field in fields]


def _by_row(values: Values, encoding: Spec, mark: Spec, *, selects: bool = True, rows: Sequence[str] = ()) -> Spec:
    """Return a layer with a colour a row; the legend filters the rows.

    Args:
        rows: all rows, if `values` lacks some.
    """
    rows = rows or list(dict.fromkeys(value["row"] for value in values))
    colours = {"range": list(COLOURS)} if len(rows) <= len(COLOURS) else {"scheme": "tableau20"}
    colour = {"field": "row", "title": None, "scale": {"domain": list(rows), **colours}, "legend": {"symbolLimit": 0}}
    layer: Spec = {"data": {"values": list(values)}, "mark": mark, "encoding": {**encoding, "color": colour}}
    layer["transform"] = [{"filter": {"param": "shown"}}]
    if selects:
        layer["params"] = [{"name": "shown", "select": {"type": "point", "fields": ["row"]}, "bind": "legend"}]
    return layer
