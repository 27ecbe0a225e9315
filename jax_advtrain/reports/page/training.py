"""The sections of a training: its curves, and margins that grow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_advtrain.reports.page import charts, verdict
from jax_advtrain.reports.page.charts import Series
from jax_advtrain.reports.style import radius_label
from jax_advtrain.reports.training import ACCURACIES

MOST_FRAMES = 200  # epochs that the slider stops at


def section(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Loss, accuracies, and their table; None where no epoch has ended.

    Args:
      epochs: lines of metrics.jsonl.
    """
    if not epochs:
        return None
    colours = dict(zip((name for _, _, name, _, _ in ACCURACIES), ("sky", "orange", "blue", "red"), strict=True))
    found = []
    for part, key, name, _, line in ACCURACIES:
        points = [(one["epoch"], (one.get(part) or {}).get(key)) for one in epochs]
        points = [(epoch, value) for epoch, value in points if value is not None]
        if points:
            found.append(Series(name, points, colours[name], (6, 3) if line == "--" else (1, 0)))
    loss = Series("training loss", [(one["epoch"], one["train"]["loss"]) for one in epochs], "ink")
    monitored = [one for one in epochs if (one.get("validation") or {}).get("robust_accuracy") is not None]
    by = "robust_dice" if any("robust_dice" in one["validation"] for one in monitored) else "robust_accuracy"
    best = max(monitored, key=lambda one: one["validation"].get(by, 0.0), default=None)
    told = {} if best is None else best["validation"]
    where = verdict.radius(told["norm"], told["epsilon"]) if "epsilon" in told else ""
    dice = _dice(epochs)
    return {
        "dice": charts.lines(dice, x="epoch", y="Dice", whole=True, domain=(0, 1)) if dice else None,
        "dice_legend": dice,
        "loss": charts.lines([loss], x="epoch", y="loss, mean per sample", whole=True),
        "accuracy": charts.lines(found, x="epoch", y="accuracy", percent=True, whole=True, domain=(0, 1)),
        "legend": found,
        "where": where,
        "best": best,
        "seconds": sum(one["seconds"] for one in epochs),
        "speed": float(np.median([one["samples_per_second"] for one in epochs])),
        "rows": [_row(one) for one in charts.thinned(epochs, 200)],
        "columns": ["epoch", "loss", *(one.name for one in found)],
        "series": found,
    }


def _dice(epochs: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Of segmentation the Dice on validation, clean and under the monitor's attacks; else nothing."""
    found = []
    for key, name, colour in (("clean_dice", "clean", "blue"), ("robust_dice", "attacked", "red")):
        points = [(one["epoch"], (one.get("validation") or {}).get(key)) for one in epochs]
        points = [(epoch, value) for epoch, value in points if value is not None]
        found += [Series(name, points, colour)] if points else []
    return found


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: (one.get(part) or {}).get(key) for part, key, name, _, _ in ACCURACIES}
    return {"epoch": one["epoch"], "loss": one["train"]["loss"], **values}


def margins(epochs: Sequence[Mapping[str, Any]], norm: str, ceiling: float | None) -> dict[str, Any] | None:
    """The histogram's frames, one an epoch, and the margins' course; None where the method keeps none."""
    kept = [one for one in epochs if one.get("margins")]
    if not kept:
        return None
    shown = charts.thinned(kept, MOST_FRAMES)
    frames = [
        {
            "epoch": one["epoch"],
            "edges": [float(f"{edge:.6g}") for edge in one["margins"]["bin_edges"]],
            "counts": one["margins"]["histogram"],
            "mean": one["margins"]["mean"],
            "median": one["margins"]["quantiles"]["0.5"],
        }
        for one in shown
    ]
    epochs_kept = [one["epoch"] for one in kept]

    def quantile(name: str) -> list[float]:
        return [one["margins"]["quantiles"][name] for one in kept]

    means = [one["margins"]["mean"] for one in kept]
    half = list(zip(quantile("0.25"), quantile("0.75"), strict=True))
    medians = list(zip(epochs_kept, quantile("0.5"), strict=True))
    series = [
        Series("mean", list(zip(epochs_kept, means, strict=True)), "ink", width=2.2),
        Series("median; band: 25% to 75% of the samples", medians, "blue", (6, 3), band=half),
    ]
    rules = [ceiling] if ceiling is not None else []
    label = radius_label(norm, "margin")
    arrived = next((one["epoch"] for one in kept if one["margins"].get("equilibrium")), None)
    return {
        "histogram": charts.histogram(frames, label),
        "course": charts.lines(series, x="epoch", y=label, whole=True, rules=rules),
        "legend": series,
        "ceiling": ceiling,
        "equilibrium": arrived,
        "last": kept[-1]["margins"],
        "last_epoch": kept[-1]["epoch"],
        "rows": [{"epoch": one["epoch"], **one["margins"]} for one in shown],
    }
