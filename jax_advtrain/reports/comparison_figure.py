"""Methods beside each other: the worst case against the radius, and robustness against clean accuracy."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from jax_advtrain.evaluation.comparison import ACCURACY, AREA
from jax_advtrain.evaluation.results import CLEAN, WORST_OF
from jax_advtrain.reports import style

_COLOURS = (style.BLUE, style.RED, style.GREEN, style.ORANGE, style.PINK, style.SKY, style.BLACK)
_MARKERS, _LINES = "osD^vPX", ("-", "--", ":")


def comparison_figure(compared: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """A panel a norm, of accuracy against radius; a last one of clean accuracy against the area under the curve.

    Bands and bars are the deviation over seeds.

    Args:
      compared: as `evaluation.comparison.compare_methods` gives it.
    """
    rows, names = compared["rows"], list(compared["methods"])
    worst = [row for row in rows if (row["what"], row["attack"]) == (ACCURACY, WORST_OF)]
    clean = next(row for row in rows if (row["what"], row["attack"]) == (ACCURACY, CLEAN))
    areas = [row for row in rows if row["what"] == AREA]
    norms = list(dict.fromkeys(str(row["norm"]) for row in worst))
    panels = len(norms) + bool(areas)
    figure, grid = style.new_figure(max(5.2, 3.9 * panels + 1.6), 4.2, 1, max(1, panels))
    looks = {name: _look(number) for number, name in enumerate(names)}
    for axes, norm in zip(grid[0], norms, strict=False):
        for name in names:
            points = [(0.0, clean["values"][name])]
            points += sorted(
                ((row["epsilon"], row["values"][name]) for row in worst if row["norm"] == norm), key=lambda at: at[0]
            )
            _curve(axes, [(at, value) for at, value in points if value is not None], name, looks[name])
        style.dress(axes, x=style.radius_label(norm), y="accuracy, worst case", title=style.NORM_NAMES[norm])
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if areas:
        _against(grid[0, -1], clean, areas[0], names, looks)
    if not panels:
        style.say_empty(grid[0, 0], "no attack was run")
    main, *_ = compared["samples"]
    figure.suptitle(f"{compared['data']['name']}, {main:,} {compared['data']['split']} samples", fontsize=11, x=0.01,
                    ha="left")  # fmt: skip
    style.legend(figure, loc="outside right upper", handlelength=3.2)
    if areas:
        _name_points(figure, grid[0, -1], clean["values"], areas[0]["values"])
    return style.save(figure, path)


def _look(number: int) -> dict[str, Any]:
    """Told apart by colour, then by line."""
    colours = len(_COLOURS)
    line = _LINES[number // colours % len(_LINES)]
    hollow = {"markerfacecolor": "white"} if number // colours % 2 else {}
    return dict(color=_COLOURS[number % colours], marker=_MARKERS[number % len(_MARKERS)], linestyle=line, **hollow)


def _curve(axes: Axes, points: list[tuple[float, Any]], name: str, look: Mapping[str, Any]) -> None:
    radii = [at for at, _ in points]
    mean = np.array([value["mean"] for _, value in points])
    spread = np.array([value["deviation"] or 0.0 for _, value in points])
    axes.plot(radii, mean, linewidth=1.6, markersize=4, label=name, **look)
    if spread.any():
        axes.fill_between(radii, mean - spread, mean + spread, color=look["color"], alpha=0.18, linewidth=0)


def _against(axes: Axes, clean: Mapping[str, Any], area: Mapping[str, Any], names: list[str], looks) -> None:
    for name in names:
        one, other = clean["values"][name], area["values"][name]
        if one is not None and other is not None:
            look = {**looks[name], "linestyle": "none"}
            axes.errorbar(one["mean"], other["mean"], xerr=one["deviation"], yerr=other["deviation"], markersize=7,
                          elinewidth=1, capsize=2, **look)  # fmt: skip
    norm = style.NORM_NAMES.get(area["norm"], area["norm"])
    style.dress(axes, x="clean accuracy", y=f"area under {norm} accuracy(radius)", title="Robust against clean")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    axes.margins(0.18)


def _name_points(figure: Figure, axes: Axes, x: Mapping[str, Any], y: Mapping[str, Any]) -> None:
    """Each point's name on that side of it where it meets no other; names without room are left to the legend."""
    points = {name: (x[name]["mean"], y[name]["mean"]) for name in x if x[name] is not None and y[name] is not None}
    figure.draw_without_rendering()  # the layout must stand before names can be measured
    half = 5 * figure.dpi / 72
    boxes = [Bbox([at - half, at + half]) for at in axes.transData.transform(list(points.values()))] if points else []
    for (name, at), own in zip(points.items(), boxes[:], strict=True):
        for right, up in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 3), (0, -3)):
            text = axes.annotate(name, at, xytext=(5 * right, 2 * up), textcoords="offset points", fontsize=7)
            text.set(ha=("center", "left", "right")[right], va="bottom" if up > 0 else "top")
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in boxes if other is not own):
                boxes.append(box)
                break
            text.remove()
