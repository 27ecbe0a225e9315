"""Vega-Lite specifications of the page's charts, as plain dicts.

A colour is the name of a CSS variable, "var(--blue)": page.js fills in what it is in the scheme of the moment. Legends are
HTML beside the chart, so that they wrap on a phone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

# In the order of reports/style.py's colours (Okabe & Ito), in each scheme light or dark enough to be read.
COLOURS = ("blue", "red", "green", "orange", "pink", "sky", "ink")
_DASHES = ((1, 0), (6, 3), (2, 3), (8, 3, 2, 3))
MOST_POINTS = 400  # of a line; beyond that every so many-th is drawn, and the last


class Series(NamedTuple):
    """A line: its name, points (x, y), and how it looks; `low`, `high` (y at the same x) make a band around it."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dash: tuple[int, ...] = (1, 0)
    width: float = 1.8
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    @property
    def dashes(self) -> str:
        """As SVG's stroke-dasharray."""
        return "none" if self.dash == (1, 0) else " ".join(map(str, self.dash))


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


def lines(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    percent: bool = False,
    whole: bool = False,
    height: int = 240,
    domain: tuple[float, float] | None = None,
    rules: Sequence[tuple[float, str]] = (),
) -> dict[str, Any]:
    """Lines over a shared x; hovering anywhere shows the values of all of them at the nearest x.

    Args:
      percent: y is a share. whole: x counts (epochs). domain: of y. rules: horizontal lines (y, what it is).
    """
    number = ".1%" if percent else ".4~g"
    rows, bands = [], []
    for place, one in enumerate(series):
        known = [
            (at, value, *(ends or (None, None)))
            for at, value, ends in zip(*zip(*one.points, strict=True), _ends(one), strict=True)
            if value is not None
        ] if one.points else []  # fmt: skip
        for at, value, low, high in thinned(known):
            rows.append({"x": at, "y": value, "k": f"s{place}"})
            if low is not None:
                bands.append({"x": at, "low": low, "high": high, "k": f"s{place}"})
    keys = [f"s{place}" for place in range(len(series))]

    def scale(values: Sequence[Any]) -> dict[str, Any]:
        return {"domain": keys, "range": list(values)}

    colour = {
        "field": "k",
        "type": "nominal",
        "scale": scale([f"var(--{one.colour})" for one in series]),
        "legend": None,
    }
    across: dict[str, Any] = {
        "field": "x",
        "type": "quantitative",
        "title": x,
        "scale": {"nice": False, "zero": not whole},
    }
    across["axis"] = {"format": "d" if whole else "~g", "tickMinStep": 1} if whole else {"format": "~g"}
    up: dict[str, Any] = {
        "field": "y",
        "type": "quantitative",
        "title": y,
        "axis": {"format": "%" if percent else "~g"},
    }
    up["scale"] = {"domain": list(domain)} if domain else {"zero": True}
    drawn: list[dict[str, Any]] = [
        {"mark": {"type": "line", "interpolate": "linear", "clip": True},
         "encoding": {
             "y": up, "color": colour,
             "strokeDash": {"field": "k", "type": "nominal", "scale": scale([list(one.dash) for one in series]), "legend": None},
             "strokeWidth": {"field": "k", "type": "nominal", "scale": scale([one.width for one in series]), "legend": None}}},
        {"transform": [{"filter": {"param": "hover", "empty": False}}],
         "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1}, "encoding": {"y": up, "color": colour}},
    ]  # fmt: skip
    if any(len({at for at, _ in one.points}) == 1 for one in series):  # a line of one point is not seen
        drawn.append(
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                "encoding": {"y": up, "color": colour},
            }
        )
    if bands:
        drawn.insert(0, {
            "data": {"values": bands}, "mark": {"type": "area", "opacity": 0.18, "clip": True},
            "encoding": {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}, "color": colour}})  # fmt: skip
    for value, _ in rules:
        drawn.insert(0, {
            "data": {"values": [{"value": value}]}, "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--faint)"},
            "encoding": {"y": {"field": "value", "type": "quantitative"}, "x": None}})  # fmt: skip
    told = [{"field": "x", "type": "quantitative", "title": x, "format": "d" if whole else ".4~g"}]
    told += [{"field": key, "type": "quantitative", "title": one.name, "format": number}
             for key, one in zip(keys, series, strict=True)]  # fmt: skip
    drawn.append({
        "transform": [{"pivot": "k", "value": "y", "groupby": ["x"]}],
        "mark": {"type": "rule", "color": "var(--faint)", "tooltip": True},
        "encoding": {"opacity": {"condition": {"value": 0.8, "param": "hover", "empty": False}, "value": 0}, "tooltip": told},
        "params": [{"name": "hover", "select": {
            "type": "point", "fields": ["x"], "nearest": True, "on": "pointerover", "clear": "pointerout"}}]})  # fmt: skip
    return _frame(height, data={"values": rows}, encoding={"x": across}, layer=drawn)


def _ends(one: Series) -> Sequence[tuple[float, float] | None]:
    if one.low is None or one.high is None:
        return [None] * len(one.points)
    return list(zip(one.low, one.high, strict=True))


def histogram(x: str, largest: float, height: int = 240) -> dict[str, Any]:
    """Bars whose data, rows {low, high, share}, page.js puts in under the name "bins", one epoch after another.

    Shares are drawn on a square-root scale: at the start nearly all samples share one bin, later a few per cent each.
    """
    return _frame(height, data={"name": "bins", "values": []}, mark={"type": "bar", "binSpacing": 0.5, "color": "var(--blue)"},
        encoding={
            "x": {"field": "low", "bin": {"binned": True}, "type": "quantitative", "title": x,
                  "scale": {"domain": [0, largest], "nice": False}, "axis": {"format": "~g", "tickCount": 8}},
            "x2": {"field": "high"},
            "y": {"field": "share", "type": "quantitative", "title": "share of samples (square-root scale)",
                  "scale": {"type": "sqrt", "domain": [0, 1]},
                  "axis": {"values": [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], "format": "%"}},
            "tooltip": [{"field": "low", "type": "quantitative", "title": "from", "format": ".4~g"}, {"field": "high", "type": "quantitative", "title": "to", "format": ".4~g"},
                        {"field": "share", "type": "quantitative", "title": "share", "format": ".2%"},
                        {"field": "count", "type": "quantitative", "title": "samples", "format": "d"}]})  # fmt: skip


def heat_map(rows: Sequence[dict[str, Any]], names: Sequence[str], *, written: bool) -> dict[str, Any]:
    """Cells {true, predicted, share, count} of the fooled images, row by row; right answers have own = 1 and are grey.

    Args:
      names: of the classes in order, all different. written: the share stands in its cell.
    """
    size = len(names)
    labels = 40 if written and max(map(len, names)) <= 3 else 110
    height = labels + (max(160, min(34 * size, 480)) if written else max(320, min(11 * size, 660)))
    axis: dict[str, Any] = {"labelOverlap": True, "labelLimit": 110, "domain": False, "ticks": False, "grid": False}
    place = {
        "x": {"field": "predicted", "type": "nominal", "sort": list(names), "title": "taken for", "scale": {"domain": list(names)},
              "axis": {**axis, "labelAngle": 0 if written and max(map(len, names)) <= 3 else -90}},
        "y": {"field": "true", "type": "nominal", "sort": list(names), "title": "true class", "scale": {"domain": list(names)}, "axis": axis},
    }  # fmt: skip
    told = [{"field": "true", "title": "true class"}, {"field": "predicted", "title": "taken for"},
            {"field": "share", "type": "quantitative", "title": "share of the class", "format": ".1%"},
            {"field": "count", "type": "quantitative", "title": "images", "format": "d"}]  # fmt: skip
    top = max((row["share"] for row in rows if not row["own"]), default=0) or 1
    drawn: list[dict[str, Any]] = [{
        "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 1 if size <= 40 else 0},
        "encoding": {
            "tooltip": told,
            "color": {"condition": {"test": "datum.own", "value": "var(--own)"}, "field": "share", "type": "quantitative", "legend": None,
                      "scale": {"type": "sqrt", "domain": [0, top], "range": ["var(--heat-low)", "var(--heat-high)"]}}}}]  # fmt: skip
    if written:
        drawn.append({
            "transform": [{"filter": "datum.share >= 0.0005"}],
            "mark": {"type": "text", "fontSize": 11, "tooltip": True},
            "encoding": {"text": {"field": "share", "type": "quantitative", "format": ".0%"}, "tooltip": told,
                         "color": {"condition": {"test": f"!datum.own && datum.share > {0.35 * top!r}", "value": "var(--on-heat)"},
                                   "value": "var(--ink)"}}})  # fmt: skip
    frame = _frame(height, data={"values": list(rows)}, encoding=place, layer=drawn)
    return {**frame, "config": {"axis": {"grid": False}}}


def scatter(rows: Sequence[dict[str, float]], *, x: str, y: str, height: int = 320) -> dict[str, Any]:
    """Points {x, y} and the line on which both are equal."""
    top = max((max(row["x"], row["y"]) for row in rows), default=1.0) or 1.0
    numbers = {name: {"field": name, "type": "quantitative", "title": title, "axis": {"format": "~g"}, "scale": {"nice": True, "zero": True}}
               for name, title in (("x", x), ("y", y))}  # fmt: skip
    told = [
        {"field": name, "type": "quantitative", "title": title, "format": ".4~g"}
        for name, title in (("x", x), ("y", y))
    ]
    return _frame(height, layer=[
        {"data": {"values": [{"x": 0, "y": 0}, {"x": top, "y": top}]}, "mark": {"type": "line", "strokeDash": [4, 3], "color": "var(--faint)"},
         "encoding": numbers},
        {"data": {"values": thinned(rows, 1500)}, "mark": {"type": "point", "filled": True, "size": 18, "opacity": 0.5, "color": "var(--blue)"},
         "encoding": {**numbers, "tooltip": told}}])  # fmt: skip
