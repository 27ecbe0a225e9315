"""Vega-Lite specifications of the page's charts, as plain dicts.

A colour is the name of a CSS variable, "var(--blue)": page.js fills in what it is in the scheme of the moment. Legends
are HTML beside the chart, so that they wrap on a phone.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

# In the order of reports/style.py's colours (Okabe & Ito), in each scheme light or dark enough to be read.
COLOURS = ("blue", "green", "orange", "pink", "sky", "ink", "red")
_SOLID = (1, 0)
_DASHES = (_SOLID, (6, 3), (2, 3), (8, 3, 2, 3))
_LEAST_TOP = 0.1  # of a heat map: a share of a few per cent is never dark
MOST_POINTS = 400  # of a line; beyond that every so many-th is drawn, and the last


class Series(NamedTuple):
    """A line: its name, points (x, y), and how it looks; a band around it, (low, high) of each point, or none."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dash: tuple[int, ...] = _SOLID
    width: float = 1.8
    band: Sequence[tuple[float, float]] = ()

    @property
    def dashes(self) -> str:
        """As SVG's stroke-dasharray."""
        return "none" if self.dash == _SOLID else " ".join(map(str, self.dash))


def look(number: int) -> dict[str, Any]:
    """Colour and dash of the so many-th line: told apart by colour, then by dash."""
    return {"colour": COLOURS[number % len(COLOURS)], "dash": _DASHES[number // len(COLOURS) % len(_DASHES)]}


def thinned(items: Sequence[Any], most: int = MOST_POINTS) -> list[Any]:
    """At most so many, evenly over all of them, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _frame(height: int, **layers: Any) -> dict[str, Any]:
    """Fills the element that it stands in, whose height the page sets beforehand (`usermeta.height`, pixels): nothing
    moves when the chart is drawn."""
    filled = {"width": "container", "height": "container", "autosize": {"type": "fit", "contains": "padding"}}
    return {**filled, "usermeta": {"height": height}, **layers}


def _number(name: str, title: str, **more: Any) -> dict[str, Any]:
    return {"field": name, "type": "quantitative", "title": title, **more}


def lines(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    percent: bool = False,
    whole: bool = False,
    height: int = 240,
    domain: tuple[float, float] | None = None,
    rules: Sequence[float] = (),
) -> dict[str, Any]:
    """Lines over a shared x; hovering anywhere shows the values of all of them at the nearest x.

    Args:
      percent: y is a share. whole: x counts (epochs). domain: of y; None = from 0 to the largest. rules: horizontal
        lines.
    """
    keys = [f"s{place}" for place in range(len(series))]  # names may hold dots, which Vega reads as paths
    rows, bands = [], []
    for place, one in enumerate(series):
        known = [(at, value) for at, value in one.points if value is not None and math.isfinite(value)]
        rows += [{"x": at, "y": value, "k": keys[place]} for at, value in thinned(known)]
        if one.band:
            ends = [(at, *both) for (at, _), both in zip(one.points, one.band, strict=True)]
            bands += [{"x": at, "low": low, "high": high, "k": keys[place]} for at, low, high in thinned(ends)]
    across = [row["x"] for row in rows] or [0.0, 1.0]
    top = max([row["y"] for row in rows] + [row["high"] for row in bands] + list(rules), default=1.0) or 1.0
    x_axis = {"tickCount": 8, **({"format": "d", "tickMinStep": 1} if whole else {"format": "~g"})}
    x_scale = {"domain": [min(across) if whole else 0, max(across)], "nice": False, "zero": False}
    y_scale = {"domain": list(domain) if domain else [0, top], "nice": not domain}
    up = _number("y", y, axis={"format": "%" if percent else "~g", "tickCount": 6}, scale=y_scale)

    def by_line(values: Sequence[Any]) -> dict[str, Any]:
        return {"field": "k", "type": "nominal", "legend": None, "scale": {"domain": keys, "range": list(values)}}

    colour = by_line([f"var(--{one.colour})" for one in series])
    dash = by_line([list(one.dash) for one in series])
    point = {
        "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
        "encoding": {"y": up, "color": colour},
    }
    drawn: list[dict[str, Any]] = [_rule(value, y) for value in rules]
    if bands:
        between = {"y": _number("low", y), "y2": {"field": "high"}, "color": colour}
        area = {"type": "area", "opacity": 0.18}
        drawn.append({"data": {"values": bands}, "mark": area, "encoding": between})
    for width in sorted({one.width for one in series}):  # the broadest last, so that they lie on top
        of_width = [key for key, one in zip(keys, series, strict=True) if one.width == width]
        drawn.append(
            {
                "transform": [{"filter": {"field": "k", "oneOf": of_width}}],
                "mark": {"type": "line", "strokeWidth": width},
                "encoding": {"y": up, "color": colour, "strokeDash": dash},
            }
        )
    drawn.append({**point, "transform": [{"filter": {"param": "hover", "empty": False}}]})
    if len(set(across)) == 1:  # a line of one point is not seen
        drawn.append(point)
    drawn.append(_hovered(keys, series, x, whole=whole, percent=percent))
    encoding = {"x": _number("x", x, scale=x_scale, axis=x_axis)}
    return _frame(height, data={"values": rows}, encoding=encoding, layer=drawn)


def _rule(value: float, y: str) -> dict[str, Any]:
    """A horizontal line."""
    return {
        "data": {"values": [{"value": value}]},
        "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--faint)"},
        "encoding": {"y": _number("value", y), "x": None},
    }


def _hovered(keys: Sequence[str], series: Sequence[Series], x: str, *, whole: bool, percent: bool) -> dict[str, Any]:
    """The upright line at the x nearest to the pointer, which knows the values of all lines there."""
    told = [_number("x", x, format="d" if whole else ".4~g")]
    of_lines = zip(keys, series, strict=True)
    told += [_number(key, one.name, format=".1%" if percent else ".4~g") for key, one in of_lines]
    seen = {"condition": {"value": 0.8, "param": "hover", "empty": False}, "value": 0}
    nearest = {"type": "point", "fields": ["x"], "nearest": True, "on": "pointerover", "clear": "pointerout"}
    return {
        "transform": [{"pivot": "k", "value": "y", "groupby": ["x"]}],
        "mark": {"type": "rule", "color": "var(--faint)", "tooltip": True},
        "encoding": {"opacity": seen, "tooltip": told},
        "params": [{"name": "hover", "select": nearest}],
    }


def histogram(frames: Sequence[dict[str, Any]], x: str, height: int = 240) -> dict[str, Any]:
    """Bars of one frame, the last; page.js puts the others in their place as the slider moves (data set "bins").

    Shares are drawn on a square-root scale: at the start nearly all samples share one bin, later a few per cent each.

    Args:
      frames: {"epoch", "edges": (B + 1,), "counts": (B,), "mean", "median"}.
    """
    last = frames[-1]
    total = sum(last["counts"]) or 1
    bins = [
        {"low": low, "high": high, "count": count, "share": count / total}
        for low, high, count in zip(last["edges"][:-1], last["edges"][1:], last["counts"], strict=True)
    ]
    largest = max(frame["edges"][-1] for frame in frames)
    along = {"bin": {"binned": True}, "scale": {"domain": [0, largest], "nice": False}}
    encoding = {
        "x": _number("low", x, axis={"format": "~g", "tickCount": 8}, **along),
        "x2": {"field": "high"},
        "y": _number(
            "share",
            "share of samples (square-root scale)",
            scale={"type": "sqrt", "domain": [0, 1]},
            axis={"values": [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], "format": "%"},
        ),
        "tooltip": [
            _number("low", "from", format=".4~g"),
            _number("high", "to", format=".4~g"),
            _number("share", "share", format=".2%"),
            _number("count", "samples", format="d"),
        ],
    }
    mark = {"type": "bar", "binSpacing": 0.5, "color": "var(--blue)"}
    found = _frame(height, data={"name": "bins", "values": bins}, mark=mark, encoding=encoding)
    found["usermeta"]["frames"] = list(frames)
    return found


def heat_map(rows: Sequence[dict[str, Any]], names: Sequence[str], *, written: bool) -> dict[str, Any]:
    """Cells {true, predicted, share, count, own}; right answers have own = 1 and are grey.

    Args:
      names: of the classes in order, all different. written: the share stands in its cell.
    """
    size = len(names)
    short = written and size * max(map(len, names)) <= 40  # all names beside each other
    cells = max(160, min(34 * size, 480)) if written else max(320, min(11 * size, 660))
    axis = {"labelOverlap": True, "labelLimit": 110, "domain": False, "ticks": False, "grid": False}
    order = {"type": "nominal", "sort": list(names), "scale": {"domain": list(names)}}
    places = {
        "x": {"field": "predicted", "title": "taken for", **order, "axis": {**axis, "labelAngle": 0 if short else -90}},
        "y": {"field": "true", "title": "true class", **order, "axis": axis},
    }
    told = [
        {"field": "true", "title": "true class"},
        {"field": "predicted", "title": "taken for"},
        _number("share", "share of the class", format=".1%"),
        _number("count", "samples", format="d"),
    ]
    top = max([row["share"] for row in rows if not row["own"]] + [_LEAST_TOP])
    scale = {"type": "sqrt", "domain": [0, top], "range": ["var(--heat-low)", "var(--heat-high)"]}
    own = {"condition": {"test": "datum.own", "value": "var(--own)"}}
    dark = f"!datum.own && datum.share > {0.35 * top!r}"
    drawn: list[dict[str, Any]] = [
        {
            "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 1 if size <= 40 else 0},
            "encoding": {"tooltip": told, "color": _number("share", "share", legend=None, scale=scale, **own)},
        }
    ]
    if written:
        ink = {"condition": {"test": dark, "value": "var(--on-heat)"}, "value": "var(--ink)"}
        drawn.append(
            {
                "transform": [{"filter": "datum.share >= 0.0005"}],
                "mark": {"type": "text", "fontSize": 11, "tooltip": True},
                "encoding": {"text": _number("share", "share", format=".0%"), "tooltip": told, "color": ink},
            }
        )
    height = cells + (40 if short else 110)
    return _frame(height, data={"values": list(rows)}, encoding=places, layer=drawn)


def scatter(rows: Sequence[dict[str, float]], *, x: str, y: str, height: int = 320) -> dict[str, Any]:
    """Points {x, y} and the line on which both are equal."""
    top = max((max(row["x"], row["y"]) for row in rows), default=1.0) or 1.0
    look = {"axis": {"format": "~g"}, "scale": {"domain": [0, top], "nice": True}}
    places = {name: _number(name, title, **look) for name, title in (("x", x), ("y", y))}
    told = [_number(name, title, format=".4~g") for name, title in (("x", x), ("y", y))]
    return _frame(
        height,
        layer=[
            {
                "data": {"values": [{"x": 0, "y": 0}, {"x": top, "y": top}]},
                "mark": {"type": "line", "strokeDash": [4, 3], "color": "var(--faint)"},
                "encoding": places,
            },
            {
                "data": {"values": thinned(rows, 1500)},
                "mark": {"type": "point", "filled": True, "size": 18, "opacity": 0.5, "color": "var(--blue)"},
                "encoding": {**places, "tooltip": told},
            },
        ],
    )
