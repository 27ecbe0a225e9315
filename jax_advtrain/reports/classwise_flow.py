"""Heat maps of the class-wise analysis: where attacked images go, what the model believes of them, rank correlations.

Ten classes are written out cell by cell; a hundred lie ordered by super-class, with its borders; of more, neighbouring
rows and columns share a cell (the largest counts), and the strongest edges stand beside by name.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from jax_advtrain.reports import style

MOST_WRITTEN, MOST_NAMED, _MOST_CELLS = 20, 120, 125
_EDGES_NAMED = 16
_OWN = "#D9D9D9"  # the diagonal: it would outshine all else


def flow(
    facts: Mapping[str, Any],
    shares: np.ndarray,
    path: str | os.PathLike,
    *,
    attack: str,
    what: str = "share of the class's images",
    title: str = "",
) -> Path:
    """Rows: true class; columns: predicted class; the diagonal, right answers, in grey.

    Args:
      facts: content of classwise.json, for names, super-classes and the edges of `attack`.
      shares: (K, K), rows that sum to 1, or are 0 or NaN where a class has no samples.
      what: what a cell is.
    """
    shares = np.nan_to_num(np.asarray(shares, np.float64))
    names, groups = facts["class_names"], facts["superclasses"]
    many = len(names) > MOST_WRITTEN
    figure, grid = style.new_figure(
        13.2 if many else 8.2, 8.6 if many else 6.6, 1, 2 if many else 1, **({"width_ratios": (3, 1)} if many else {})
    )
    order, borders = _order(shares, groups)
    axes = grid[0, 0]
    _draw(axes, figure, shares[np.ix_(order, order)], [names[k] for k in order], what)
    if groups is not None and len(names) <= MOST_NAMED:
        _mark_groups(axes, borders, groups["names"], len(names))
    axes.set_title(title or f"Where images go: {attack}", fontsize=10, loc="left")
    if many:
        _edges(grid[0, 1], shares, names)
    return style.save(figure, path)


def groups_flow(facts: Mapping[str, Any], path: str | os.PathLike, *, attack: str, title: str = "") -> Path:
    """The flow between super-classes, row-normalised."""
    found = next(one["grouped"] for one in facts["flow"] if one["attack"] == attack)
    counts, names = np.array(found["matrix"], float), facts["superclasses"]["names"]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure, grid = style.new_figure(8.2, 6.6)
    _draw(grid[0, 0], figure, shares, names, "share of the super-class's images", hide_own=False)
    inside = "" if found["inside"] is None else (
        f"\n{found['inside']:.0%} of the fooled stay inside, {found['expected']:.0%} if drawn evenly"
    )  # fmt: skip
    grid[0, 0].set_title(f"{title or f'Super-classes: {attack}'}{inside}", fontsize=10, loc="left")
    return style.save(figure, path)


def correlations(
    names: Sequence[str], spearman: Sequence, low: Sequence, high: Sequence, path: str | os.PathLike, *, title: str = ""
) -> Path:
    """Spearman's coefficient of every pair, with its interval where the cells are large enough."""
    values = np.array(spearman, float)
    lows, highs = np.array(low, float), np.array(high, float)
    size = float(np.clip(2.6 + 0.85 * len(names), 4.6, 11))
    figure, grid = style.new_figure(size + 1.2, size)
    axes = grid[0, 0]
    image = axes.imshow(np.nan_to_num(values, nan=0), cmap="RdBu_r", vmin=-1, vmax=1)
    for i, j in np.ndindex(*values.shape):
        if np.isnan(values[i, j]):
            axes.text(j, i, "-", ha="center", va="center", fontsize=8)
            continue
        text = f"{values[i, j]:.2f}"
        if i != j and len(names) <= 10:
            text += f"\n{lows[i, j]:.2f} to {highs[i, j]:.2f}"
        colour = "white" if abs(values[i, j]) > 0.6 else style.BLACK
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    _ticks(axes, names, 8)
    axes.set_title(title or "Ranking of classes: Spearman (95% bootstrap interval)", fontsize=10, loc="left")
    figure.colorbar(image, ax=axes, shrink=0.7)
    return style.save(figure, path)


def temperatures(facts: Mapping[str, Any], path: str | os.PathLike, *, title: str = "") -> Path:
    """Robust accuracy per class at each temperature, less that at 1: below 0 = the temperature finds more."""
    found, names = facts["temperature"], facts["class_names"]
    accuracy = np.array(found["accuracy"], float)
    points = 100 * (accuracy - accuracy[found["temperatures"].index(1.0)])
    there = np.flatnonzero(np.isfinite(accuracy).all(axis=0))
    order = there[np.argsort(accuracy[found["temperatures"].index(1.0), there], kind="stable")]
    figure, grid = style.new_figure(float(np.clip(2.5 + 0.5 * len(order), 7, 14)), 2.6 + 0.45 * len(accuracy))
    axes, shown = grid[0, 0], points[:, order]
    if len(order) > MOST_NAMED:
        shown = np.stack([part.mean(axis=1) for part in np.array_split(shown, 50, axis=1)], axis=1)
    span = max(1.0, float(np.abs(shown).max(initial=0)))
    extent = (-0.5, len(order) - 0.5, len(points) - 0.5, -0.5)
    image = axes.imshow(
        shown, cmap="RdBu", vmin=-span, vmax=span, aspect="auto", interpolation="nearest", extent=extent
    )
    if len(order) <= MOST_WRITTEN:
        for t, place in np.ndindex(len(points), len(order)):
            value = points[t, order[place]]
            colour = "white" if abs(value) > 0.6 * span else style.BLACK
            axes.text(place, t, f"{value:+.1f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(
        range(len(points)),
        [f"T = {t:g}   ({m:.1%})" for t, m in zip(found["temperatures"], found["mean"], strict=True)],
        fontsize=8,
    )
    if len(order) <= MOST_NAMED:
        size = 8 if len(order) < 40 else 5.5
        axes.set_xticks(range(len(order)), [names[k] for k in order], rotation=90, fontsize=size)
    many = " (a cell is the mean of neighbouring ranks)" if len(order) > MOST_NAMED else ""
    axes.set_xlabel(f"class, the weakest at T = 1 first{many}", fontsize=9)
    axes.set_title(
        title or f"PGD-{found['num_steps']}: robust accuracy at T, points against T = 1 (mean over classes)",
        fontsize=10,
        loc="left",
    )
    figure.colorbar(image, ax=axes)
    return style.save(figure, path)


def _order(shares: np.ndarray, groups: Mapping[str, Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Classes by super-class, or where there are many and no super-classes, such that those that flow into each other
    lie side by side; and the places where a super-class ends."""
    if groups is not None:
        of = np.array(groups["groups"])
        order = np.argsort(of, kind="stable")
        return order, np.flatnonzero(np.diff(of[order])) + 1
    if len(shares) <= MOST_WRITTEN:
        return np.arange(len(shares)), np.zeros(0, int)
    mutual = shares + shares.T
    distance = mutual.max() - mutual
    np.fill_diagonal(distance, 0)
    return hierarchy.leaves_list(hierarchy.linkage(squareform(distance, checks=False), "average")), np.zeros(0, int)


def _draw(axes: Axes, figure, shares: np.ndarray, names: Sequence[str], what: str, *, hide_own: bool = True) -> None:
    size = len(names)
    own = np.eye(size, dtype=bool)
    shown = np.where(own, 0, shares) if hide_own else shares
    if size > MOST_NAMED:
        shown = _pooled(shown, int(np.ceil(size / _MOST_CELLS)))
    top = float(shown.max(initial=0)) or 1.0
    if size > MOST_WRITTEN:
        # Most of the many cells are nearly empty: on a linear scale the few strong edges are all that is seen.
        least = float(shown[shown > 0].min(initial=top))
        scale: dict[str, Any] = dict(norm=LogNorm(max(least / 2, top / 300), max(top, least)))
        shown = np.where(shown > 0, shown, np.nan)
    else:
        scale = dict(vmin=0, vmax=top)
    place: dict[str, Any] = dict(interpolation="nearest", extent=(-0.5, size - 0.5, size - 0.5, -0.5))
    image = axes.imshow(shown, cmap=style.DENSITY, **scale, **place)
    if hide_own and size <= MOST_NAMED:
        axes.imshow(np.where(own, 1.0, np.nan), cmap=ListedColormap([_OWN]), vmin=0, vmax=1, **place)
    if size <= MOST_WRITTEN:
        for i, j in np.ndindex(size, size):
            if shares[i, j] >= 0.0005:
                colour = "white" if shown[i, j] > 0.6 * top else style.BLACK
                axes.text(j, i, f"{100 * shares[i, j]:.1f}", ha="center", va="center", fontsize=7, color=colour)
    if size <= MOST_NAMED:
        _ticks(axes, names, 8 if size <= MOST_WRITTEN else 5)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    block = int(np.ceil(size / _MOST_CELLS)) if size > MOST_NAMED else 1
    cell = f"; a cell is the strongest of {block} x {block}" if block > 1 else ""
    axes.set_xlabel(f"predicted as ({size} classes{cell})", fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    unit = "percent" if size <= MOST_WRITTEN else "logarithmic"
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label(f"{what} ({unit})" if size > MOST_WRITTEN else f"{what} (cells: {unit})", fontsize=8)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    bar.ax.yaxis.set_minor_formatter(lambda *_: "")
    bar.ax.tick_params(labelsize=7)


def _pooled(values: np.ndarray, block: int) -> np.ndarray:
    """The largest value of each block x block square; the last ones may be smaller."""
    starts = np.arange(0, len(values), block)
    return np.maximum.reduceat(np.maximum.reduceat(values, starts, axis=0), starts, axis=1)


def _ticks(axes: Axes, names: Sequence[str], size: float) -> None:
    upright = len(names) <= 12 and max(map(len, names)) <= 5
    axes.set_xticks(range(len(names)), names, rotation=0 if upright else 90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=0)


def _mark_groups(axes: Axes, borders: np.ndarray, group_names: Sequence[str], size: int) -> None:
    edges = [0, *borders.tolist(), size]
    for start, end in itertools.pairwise(edges):
        low, high = start - 0.5, end - 0.5
        square = ([low, high, high, low, low], [low, low, high, high, low])
        axes.plot(*square, color=style.ORANGE, linewidth=1.8)
    if size > MOST_WRITTEN:
        for (start, end), name in zip(itertools.pairwise(edges), group_names, strict=True):
            axes.text(size, (start + end - 1) / 2, name, fontsize=6, va="center", color=style.BLACK)


def _edges(axes: Axes, shares: np.ndarray, names: Sequence[str]) -> None:
    """The strongest edges by name, the way back in a lighter bar."""
    off = np.where(np.eye(len(shares), dtype=bool), 0, shares)
    places = np.argsort(off, axis=None)[::-1][:_EDGES_NAMED]
    pairs = [divmod(int(place), len(shares)) for place in places if off.flat[place] > 0]
    if not pairs:
        style.say_empty(axes, "nothing flows")
        return
    y = np.arange(len(pairs))
    axes.barh(y - 0.2, [off[i, j] for i, j in pairs], 0.4, color=style.RED, label="this way")
    axes.barh(y + 0.2, [off[j, i] for i, j in pairs], 0.4, color=style.ORANGE, alpha=0.6, label="the other way")
    style.dress(axes, title="strongest edges")
    axes.set_yticks(y, [f"{names[i]} \N{RIGHTWARDS ARROW} {names[j]}" for i, j in pairs], fontsize=7)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    style.legend(axes, loc="lower right")
