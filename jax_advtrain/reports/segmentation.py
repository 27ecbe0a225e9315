"""What attacks do to segmentations: Dice against radius for each class, and what is predicted before and after."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap

from jax_advtrain.evaluation.results import CLEAN, WORST_OF, Record, radii, records_of
from jax_advtrain.reports import style

CLASS_COLOURS = (style.ORANGE, style.SKY, style.GREEN, style.PINK, style.YELLOW, style.RED, style.BLUE)


def dice_vs_radius(results: Mapping[str, Any], path: str | os.PathLike, *, title: str = "") -> Path:
    """One row a foreground class and their mean below, one column a norm: the worst case thick with its interval, every
    attack thin.

    Args:
      results: as `read_results` gives it, of a segmentation. Only the first split in it is drawn.
    """
    records = [record for record in records_of(results) if record.segmentation is not None]
    records = [record for record in records if record.split == records[0].split]
    names = [one["class"] for one in _dice(records[0])["per_class"]]
    norms = list(dict.fromkeys(norm for norm, _ in radii(records))) or [None]
    rows = [*names, "mean"] if len(names) > 1 else names
    size = (max(5.2, 4.0 * len(norms)), 1.2 + 2.2 * len(rows))
    figure, grid = style.new_figure(*size, len(rows), len(norms), sharey=True, sharex="col")
    attacks = list(dict.fromkeys(r.attack for r in records if r.attack not in (CLEAN, WORST_OF)))
    colours = dict(zip(attacks, itertools.cycle((style.SKY, style.ORANGE, style.BLUE, style.PINK)), strict=False))
    for (row, name), (column, norm) in itertools.product(enumerate(rows), enumerate(norms)):
        axes = grid[row, column]
        for attack in (*attacks, WORST_OF):
            here = [r for r in records if r.attack == CLEAN or (r.attack, r.norm) == (attack, norm)]
            points = sorted((r.epsilon, _entry(r, name)) for r in here if _entry(r, name)["value"] is not None)
            if len(here) < 2 or not points:
                continue
            x, entries = [epsilon for epsilon, _ in points], [entry for _, entry in points]
            y = [entry["value"] for entry in entries]
            if attack != WORST_OF:
                axes.plot(x, y, color=colours[attack], linewidth=1.2, marker="o", markersize=3, label=attack)
                continue
            axes.plot(x, y, color=style.BLACK, linewidth=2.4, marker="o", markersize=4, label="worst of all, by slice")
            if all(entry["low"] is not None for entry in entries):
                low, high = ([entry[side] for entry in entries] for side in ("low", "high"))
                axes.fill_between(x, low, high, color=style.GREY, alpha=0.3, linewidth=0, label="95% interval")
        style.dress(axes, title=style.NORM_NAMES.get(norm, "") if norm and not row else "")
        if norm and row == len(rows) - 1:
            axes.set_xlabel(style.radius_label(norm), fontsize=9)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        if not column:
            axes.set_ylabel(f"Dice, {name}", fontsize=9)
    cases = (records[0].segmentation or {})["cases"]
    told = f"mean over {cases} {records[0].split} cases"
    figure.suptitle(f"{title}\n{told}" if title else told, fontsize=10, x=0.01, ha="left")
    style.legend(figure, loc="outside right upper")
    return style.save(figure, path)


def _dice(record: Record) -> Mapping[str, Any]:
    return (record.segmentation or {})["dice"]


def _entry(record: Record, name: str) -> Mapping[str, Any]:
    dice = _dice(record)
    return dice["mean"] if name == "mean" else next(one for one in dice["per_class"] if one["class"] == name)


def overlays(
    clean: np.ndarray,
    attacked: np.ndarray,
    path: str | os.PathLike,
    *,
    truth: np.ndarray,
    clean_prediction: np.ndarray,
    attacked_prediction: np.ndarray,
    class_names: Sequence[str],
    names: Sequence[str] = (),
    title: str = "",
) -> Path:
    """One column an image: the image, and over it the truth, the prediction, and the prediction on the attacked image.

    Args:
      clean, attacked: float (N, H, W) in [0, 1].
      truth, clean_prediction, attacked_prediction: int (N, H, W), 0 = background.
      class_names: of labels 0, 1, ...
      names: what each column is called.

    Raises:
      ValueError: no image, other shapes.
    """
    shapes = {array.shape for array in (clean, attacked, truth, clean_prediction, attacked_prediction)}
    if len(shapes) > 1 or clean.ndim != 3 or not len(clean):
        raise ValueError(f"overlays: images and labels of shapes {sorted(shapes)}; all must be one (N, H, W), N >= 1")
    rows = (
        ("image", clean, None),
        ("truth", clean, truth),
        ("prediction", clean, clean_prediction),
        ("prediction,\nattacked", attacked, attacked_prediction),
    )
    columns = len(clean)
    figure, grid = style.new_figure(max(4.2, 1.3 + 1.25 * columns), 1.0 + 1.3 * len(rows), len(rows), columns)
    colours = [CLASS_COLOURS[k % len(CLASS_COLOURS)] for k in range(len(class_names) - 1)]
    look = ListedColormap(colours or [style.ORANGE])
    for (row, (what, image, labels)), column in itertools.product(enumerate(rows), range(columns)):
        axes = grid[row, column]
        axes.imshow(np.clip(image[column], 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if labels is not None:
            shown = np.ma.masked_equal(labels[column], 0)
            axes.imshow(shown, cmap=look, vmin=0.5, vmax=len(class_names) - 0.5, alpha=0.55, interpolation="nearest")
        if not column:
            axes.set_ylabel(what, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)
        if not row and len(names):
            axes.set_title(str(names[column]), fontsize=7, pad=3)
        axes.set_xticks([])
        axes.set_yticks([])
    handles = [
        figure.axes[0].plot([], [], "s", color=colour, label=name, markersize=7)[0]
        for colour, name in zip(colours, class_names[1:], strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, len(handles)), fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return style.save(figure, path)
