"""How a training went: loss and accuracies per epoch."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_advtrain.reports import style

# (part of the line, key, label, colour, line); a method without attack has no attacked accuracy.
ACCURACIES = (
    ("train", "clean_accuracy", "train, clean", style.SKY, "--"),
    ("train", "attacked_accuracy", "train, attacked", style.ORANGE, "--"),
    ("validation", "clean_accuracy", "validation, clean", style.BLUE, "-"),
    ("validation", "robust_accuracy", "validation, robust", style.RED, "-"),
)
# Of segmentation the accuracies are shares of slices, and what is reported is Dice.
DICE = (
    *ACCURACIES[:2],
    ("validation", "clean_dice", "validation, Dice clean", style.BLUE, "-"),
    ("validation", "robust_dice", "validation, Dice robust", style.RED, "-"),
)


def _series(epochs: Sequence[Mapping[str, Any]], part: str, key: str) -> tuple[list[int], list[float]]:
    points = [(line["epoch"], (line.get(part) or {}).get(key)) for line in epochs]
    kept = [(epoch, value) for epoch, value in points if value is not None]
    return [epoch for epoch, _ in kept], [value for _, value in kept]


def training_curves(epochs: Sequence[Mapping[str, Any]], path: str | os.PathLike, *, title: str = "") -> Path:
    """Loss above, accuracies (of segmentation Dice too) below; the epoch of the best validation robust accuracy is
    ringed.

    Args:
      epochs: lines of metrics.jsonl, in order; what a line lacks is left out (a method without attack, a validation
        every k epochs).
    """
    figure, grid = style.new_figure(7.4, 5.4 if epochs else 3.0, 2 if epochs else 1, sharex=True)
    if not epochs:
        style.say_empty(grid[0, 0], "no epoch has ended yet")
        return style.save(figure, path)
    loss, accuracy = grid[:, 0]
    marker = dict(marker="o", markersize=3.5 if len(epochs) <= 25 else 0, linewidth=1.6)
    loss.plot(*_series(epochs, "train", "loss"), color=style.BLACK, **marker)
    style.dress(loss, y="training loss (mean per sample)", title=title or "Training")
    loss.set_ylim(bottom=0)
    is_dense = any("robust_dice" in (line.get("validation") or {}) for line in epochs)
    for part, key, label, colour, line in DICE if is_dense else ACCURACIES:
        numbers, values = _series(epochs, part, key)
        if numbers:
            accuracy.plot(numbers, values, color=colour, linestyle=line, label=label, **marker)
        if key in ("robust_accuracy", "robust_dice") and numbers:
            best = max(values)
            at = numbers[values.index(best)]
            accuracy.plot(
                at, best, "o", markersize=11, markerfacecolor="none", linestyle="none",
                markeredgecolor=colour, markeredgewidth=1.5, label=f"best: {best:.1%}, epoch {at}",
            )  # fmt: skip
    accuracy.set_ylim(0, 1.02)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    style.dress(accuracy, x="epoch", y="slices right, and Dice" if is_dense else "accuracy")
    style.whole_epochs(accuracy, [line["epoch"] for line in epochs])
    style.legend(accuracy, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return style.save(figure, path)
