"""Class by class: accuracies with intervals, what stronger attacks and temperatures gain, weight norms, epochs.

All figures come from the content of classwise.json, so that they can be drawn again. Up to MOST_NAMED classes each has
its name; beyond that the classes lie by rank, and the outermost are named.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jax_advtrain.evaluation.records import CLEAN, WORST_OF
from jax_advtrain.reports import style

MOST_NAMED = 120
_OUTERMOST = 5  # classes that are named at either end where not all are
_BINS = 50  # of ranks, where there are more classes than names


def accuracies(facts: Mapping[str, Any], path: str | os.PathLike, *, title: str = "") -> Path:
    """Clean and worst-case robust accuracy with 95% Wilson intervals, the weakest class first."""
    tables = {one["attack"]: one["per_class"] for one in facts["accuracy"]}
    clean, worst, names = tables[CLEAN], tables[WORST_OF], facts["class_names"]
    order = by_accuracy([row["accuracy"] for row in worst])
    figure, axes = _wide(len(order))
    mean = next(one["spread"]["mean"] for one in facts["accuracy"] if one["attack"] == WORST_OF)
    for rows, colour, label, shift in ((clean, style.BLUE, "clean", 0.12), (worst, style.RED, "worst case", -0.12)):
        x = np.arange(len(order))
        y, low, high = (np.array([rows[k][what] for k in order], float) for what in ("accuracy", "low", "high"))
        if len(order) <= MOST_NAMED:
            size = 5 if len(order) <= 30 else 3
            errors = np.maximum(0, [y - low, high - y])  # rounding must not turn an end around
            axes.errorbar(x + shift, y, errors, fmt="o", color=colour, markersize=size, elinewidth=1.2, label=label)
        elif rows is worst:
            axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0, label="95% interval")
            axes.plot(x, y, color=colour, linewidth=1.8, label=label)
        else:
            axes.plot(*_by_rank(y, _BINS), color=colour, linewidth=1.8, label=f"{label}, mean of neighbouring ranks")
    if mean is not None:
        axes.axhline(mean, color=style.GREY, linewidth=0.9, linestyle="--", label=f"mean of the worst case {mean:.1%}")
    axes.set_ylim(-0.02, 1.02)
    _percent(axes)
    _name_classes(axes, [names[k] for k in order], [worst[k]["accuracy"] for k in order])
    radius = style.radius_label(facts["norm"], f"{facts['epsilon']:.4g}")
    style.dress(axes, y="accuracy (95% interval)", title=title or f"Classes under attack, {radius}")
    _redo_small_ticks(axes, len(order))
    style.legend(figure, loc="outside lower center", ncols=4)
    return style.save(figure, path)


def by_accuracy(accuracy: Sequence[float | None]) -> list[int]:
    """Class numbers from weak to strong; those without samples are left out."""
    return sorted((k for k, value in enumerate(accuracy) if value is not None), key=lambda k: accuracy[k])  # pyright: ignore[reportArgumentType, reportCallIssue]


def gains(facts: Mapping[str, Any], path: str | os.PathLike, *, title: str = "") -> Path:
    """What each stronger attack gains over the weaker one before it, per class, the weakest class first."""
    found = facts["gains"]
    if not found:
        figure, grid = style.new_figure(6, 2.5)
        style.say_empty(grid[0, 0], "one attack alone: nothing to compare")
        return style.save(figure, path)
    first = next(one for one in facts["accuracy"] if one["attack"] == found[0]["weaker"])
    order = by_accuracy([row["accuracy"] for row in first["per_class"]])
    figure, grid = style.new_figure(_width(len(order)), 1.2 + 1.6 * len(found), len(found), 1, sharex=True, sharey=True)
    names = facts["class_names"]
    for axes, one in zip(grid[:, 0], found, strict=True):
        values = np.array([one["per_class"][k] for k in order], float)
        half = set(one["weaker_half"])
        is_weak = np.array([k in half for k in order], float)
        x, height, width = np.arange(len(order)), values, 0.8
        if len(order) > MOST_NAMED:
            (x, height), is_weak, width = _by_rank(values, _BINS), _by_rank(is_weak, _BINS)[1], len(order) / _BINS
        colours = [style.RED if weak > 0.5 else style.SKY for weak in is_weak]
        axes.bar(x, 100 * height, width, color=colours)
        axes.axhline(0, color=style.BLACK, linewidth=0.8)
        share = "" if one["share"] is None else f"; {one['share']:.0%} on the weaker half"
        noise = ", within noise" if one["p_value"] >= 0.05 else share
        what = f"{one['stronger']} over {one['weaker']}: {100 * (one['mean'] or 0):+.1f} points{noise}"
        style.dress(axes, y="points" if len(order) <= MOST_NAMED else "points (mean)", title=what)
    if len(order) <= MOST_NAMED:
        _name_classes(grid[-1, 0], [names[k] for k in order], [])
    _redo_small_ticks(grid[-1, 0], len(order))
    grid[0, 0].bar([0], [0], color=style.RED, label="half that is weaker under the weaker attack")
    grid[0, 0].bar([0], [0], color=style.SKY, label="other half")
    figure.suptitle(title or "Where a stronger attack gains", fontsize=11, x=0.01, ha="left")
    style.legend(figure, loc="outside lower center", ncols=2)
    return style.save(figure, path)


def weight_norms(facts: Mapping[str, Any], path: str | os.PathLike, *, title: str = "") -> Path:
    """Norm of each class's last weights against its worst-case accuracy."""
    figure, grid = style.new_figure(5.6, 4.2)
    axes, found = grid[0, 0], facts["weight_norm"]
    if found["why_not"] is not None:
        style.say_empty(axes, found["why_not"].replace(" with ", "\nwith "))
        return style.save(figure, path)
    worst = next(one["per_class"] for one in facts["accuracy"] if one["attack"] == WORST_OF)
    there = by_accuracy([row["accuracy"] for row in worst])
    x, y = [found["norms"][k] for k in there], [worst[k]["accuracy"] for k in there]
    axes.plot(x, y, "o", color=style.BLUE, markersize=5 if len(there) <= 30 else 2.5)
    if len(there) <= 30:
        for place, at in enumerate(np.argsort(x, kind="stable")):
            # Neighbours on either side of their points, so that names of like norms do not meet.
            look = dict(xytext=(0, 6 if place % 2 else -6), va="bottom" if place % 2 else "top", ha="center")
            name = facts["class_names"][there[at]]
            axes.annotate(name, (x[at], y[at]), textcoords="offset points", fontsize=7, **look)
    told = "" if found["spearman"] is None else (
        f"Spearman {found['spearman']:.2f} (p {found['spearman_p']:.2g}), "
        f"Pearson {found['pearson']:.2f} (p {found['pearson_p']:.2g})"
    )  # fmt: skip
    axes.margins(0.12)
    style.dress(axes, x="norm of the class's weight vector, last layer", y="robust accuracy", title=title or told)
    if title:
        axes.set_title(f"{title}\n{told}", fontsize=9, loc="left")
    _percent(axes)
    return style.save(figure, path)


def epochs(facts: Mapping[str, Any], path: str | os.PathLike, *, title: str = "") -> Path:
    """Robust and clean accuracy of each class over training; beyond ten classes the weakest and the strongest few."""
    found = facts["epochs"]
    if found["why_not"] is not None:
        figure, grid = style.new_figure(6, 2.5)
        style.say_empty(grid[0, 0], found["why_not"].replace(", so ", ",\nso "))
        return style.save(figure, path)
    figure, grid = style.new_figure(7.6, 8.2, 3, 1, sharex=True)
    names, numbers = facts["class_names"], found["epochs"]
    last = by_accuracy(found["robust"][-1])
    shown = last if len(last) <= 10 else [*last[:4], *last[-4:]]
    look = dict(marker="o", markersize=3) if len(numbers) <= 25 else {}
    for axes, what in zip(grid[:2, 0], ("clean", "robust"), strict=True):
        values = np.array(found[what], float)
        if len(last) > 10:
            band = np.quantile(values[:, last], [0.1, 0.25, 0.75, 0.9], axis=1)
            axes.fill_between(numbers, band[0], band[3], color="#E8E8E8", linewidth=0, label="80% of the classes")
            axes.fill_between(numbers, band[1], band[2], color="#D0D0D0", linewidth=0, label="50% of the classes")
        for place, k in enumerate(shown):
            colour = _COLOURS[place % len(_COLOURS)]
            line = "-" if place < len(_COLOURS) else "--"
            axes.plot(numbers, values[:, k], line, color=colour, linewidth=1.5, label=names[k], **look)
        style.dress(axes, y=f"{what} accuracy", title=title if what == "clean" else "")
        axes.set_ylim(-0.02, 1.02)
        _percent(axes)
    for what, colour in (("clean", style.BLUE), ("robust", style.RED)):
        values, p_values = np.array(found[f"discrepancy_{what}"], float), np.array(found[f"p_{what}"], float)
        grid[2, 0].plot(numbers, values, color=colour, linewidth=1.6, label=f"{what}: best - worst")
        noise = ~(p_values < 0.05)
        grid[2, 0].plot(np.array(numbers)[noise], values[noise], "o", markerfacecolor="white", color=colour,
                        label=f"{what}: within noise")  # fmt: skip
    style.dress(grid[2, 0], x="epoch", y="discrepancy")
    _percent(grid[2, 0])
    grid[2, 0].set_ylim(bottom=0)
    style.whole_epochs(grid[2, 0], numbers)
    style.legend(grid[0, 0], loc="upper left", bbox_to_anchor=(1, 1))
    style.legend(grid[2, 0], loc="upper left", bbox_to_anchor=(1, 1))
    return style.save(figure, path)


_COLOURS = (
    *(style.RED, style.ORANGE, style.PINK, style.BLACK, style.GREY),
    *(style.YELLOW, style.SKY, style.BLUE, style.GREEN),
)


def _by_rank(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Middle rank and mean value of so many runs of neighbouring ranks."""
    parts = np.array_split(np.arange(len(values)), bins)
    return np.array([part.mean() for part in parts]), np.array([values[part].mean() for part in parts])


def _width(classes: int) -> float:
    return float(np.clip(0.45 * classes, 7.0, 14.0))


def _wide(classes: int):
    figure, grid = style.new_figure(_width(classes), 4.6)
    return figure, grid[0, 0]


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _name_classes(axes: Axes, names: Sequence[str], accuracy: Sequence[float]) -> None:
    """Every class below the axis; or, of many, ranks, with the outermost written into the figure."""
    axes.set_xlim(-0.8, len(names) - 0.2)
    if len(names) <= MOST_NAMED:
        upright = len(names) <= 12 and max(map(len, names), default=0) <= 6
        axes.set_xticks(range(len(names)), names, rotation=0 if upright else 90)
        return
    axes.set_xlabel(f"rank of {len(names)} classes, the weakest first", fontsize=9)
    few = "\n".join(f"{name} {value:.0%}" for name, value in list(zip(names, accuracy, strict=True))[:_OUTERMOST])
    many = "\n".join(f"{name} {value:.0%}" for name, value in list(zip(names, accuracy, strict=True))[-_OUTERMOST:])
    box = dict(facecolor="white", edgecolor="none", alpha=0.75, pad=1)
    look = dict(transform=axes.transAxes, fontsize=7, va="top", zorder=8, bbox=box)
    axes.text(0.02, 0.97, f"weakest:\n{few}", **look)  # pyright: ignore[reportArgumentType]
    axes.text(0.98, 0.35, f"strongest:\n{many}", ha="right", **look)  # pyright: ignore[reportArgumentType]


def _redo_small_ticks(axes: Axes, classes: int) -> None:
    """`style.dress` sets one tick size; a hundred names need a smaller one. `dress` also clears the label of ranks."""
    if classes > 30:
        axes.tick_params(axis="x", labelsize=6 if classes <= MOST_NAMED else 8)
    if classes > MOST_NAMED:
        axes.set_xlabel(f"rank of {classes} classes, the weakest first", fontsize=9)
