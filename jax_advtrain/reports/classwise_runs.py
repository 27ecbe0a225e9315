"""Several runs class by class: methods beside each other, and homing."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_advtrain.reports import style
from jax_advtrain.reports.classwise import MOST_NAMED, by_accuracy

_COLOURS = (style.BLUE, style.RED, style.GREEN, style.ORANGE, style.PINK, style.SKY, style.BLACK, style.YELLOW)


def methods(content: Mapping[str, Any], path: str | os.PathLike, *, title: str = "") -> Path:
    """Robust accuracy of each class under each method: the mean over its seeds, every seed as a small mark."""
    names, groups = content["class_names"], content["groups"]
    means = [[one["mean"] for one in group["per_class"]] for group in groups]
    order = by_accuracy([None if None in column else float(np.mean(column)) for column in zip(*means, strict=True)])
    figure, grid = style.new_figure(float(np.clip(0.5 * len(order), 7, 14)), 4.6)
    axes, x = grid[0, 0], np.arange(len(order))
    size = 6 if len(order) <= 30 else 3
    shifts = np.linspace(-0.25, 0.25, len(groups)) if len(groups) > 1 else [0.0]
    for place, (group, shift) in enumerate(zip(groups, shifts, strict=True)):
        colour = _COLOURS[place % len(_COLOURS)]
        seeds = np.array([group["per_class"][k]["seeds"] for k in order], float)
        label = f"{group['name']} ({len(group['runs'])})"
        if len(order) > MOST_NAMED:
            parts = np.array_split(x, 50)
            line = [seeds[part].mean() for part in parts]
            axes.plot([part.mean() for part in parts], line, color=colour, label=f"{label}, mean of neighbouring ranks")
            continue
        axes.plot(x + shift, seeds.mean(axis=1), "o", color=colour, markersize=size, label=label)
        if seeds.shape[1] > 1:
            low, high = seeds.min(axis=1), seeds.max(axis=1)
            axes.vlines(x + shift, low, high, color=colour, linewidth=1.2)
            for column in seeds.T:
                axes.plot(x + shift, column, "_", color=colour, markersize=size)
    if len(order) <= MOST_NAMED:
        upright = len(order) <= 12 and max((len(names[k]) for k in order), default=0) <= 6
        axes.set_xticks(x, [names[k] for k in order], rotation=0 if upright else 90)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    radius = style.radius_label(content["norm"], f"{content['epsilon']:.4g}")
    style.dress(axes, y="robust accuracy", title=title or f"Worst case, {radius}; in brackets the seeds")
    axes.set_xlabel("class, the weakest of all methods' mean first", fontsize=9)
    if len(order) > 30:
        axes.tick_params(axis="x", labelsize=6)
    style.legend(figure, loc="outside lower center", ncols=4)
    return style.save(figure, path)


def homing(content: Mapping[str, Any], path: str | os.PathLike, *, title: str = "") -> Path:
    """For each class left out: which share of the images attacked into it still can be, beside the others'."""
    classes = [one for one in content["classes"] if one["attacked_into"]]
    figure, grid = style.new_figure(float(np.clip(2.5 + 0.7 * len(classes), 5.6, 14)), 4.4)
    axes = grid[0, 0]
    if not classes:
        style.say_empty(axes, "no image was attacked into a class that was left out")
        return style.save(figure, path)
    x = np.arange(len(classes))
    share = np.array([one["share"] for one in classes])
    errors = np.maximum(0, [share - [one["low"] for one in classes], [one["high"] for one in classes] - share])
    axes.bar(x - 0.2, share, 0.4, yerr=errors, color=style.RED, error_kw=dict(elinewidth=1.2),
             label="attacked into the class")  # fmt: skip
    axes.bar(
        x + 0.2,
        [one["others_share"] or 0 for one in classes],
        0.4,
        color=style.SKY,
        label="attacked into another class",
    )
    upright = max(len(one["left_out"]) for one in classes) <= 8 and len(classes) <= 12
    axes.set_xticks(
        x, [f"{one['left_out']}\n({one['attacked_into']})" for one in classes], rotation=0 if upright else 90
    )
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    style.dress(axes, y="fooled without the class", title=title or "Homing: trained without a class")
    axes.set_xlabel("class left out (images that were attacked into it)", fontsize=9)
    axes.set_xlim(-0.8, len(classes) - 0.2)
    style.legend(figure, loc="outside lower center", ncols=2)
    return style.save(figure, path)
