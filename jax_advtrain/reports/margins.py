"""IMA's margins while training: their histogram over epochs, their mean and change, the equilibrium."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patheffects import Normal, Stroke

from jax_advtrain.reports import style

NO_MARGINS = "no margins: this method keeps none"
EQUILIBRIUM_SHARE = 0.05  # of delta: what the mean |change| must stay under


def _with_margins(epochs: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, list[Mapping[str, Any]]]:
    kept = [line for line in epochs if line.get("margins")]
    return np.array([line["epoch"] for line in kept], int), [line["margins"] for line in kept]


def margin_histogram(
    epochs: Sequence[Mapping[str, Any]], path: str | os.PathLike, *, norm: str = "linf", title: str = ""
) -> Path:
    """Share of samples by margin (rows) and epoch (columns), mean and median over it, the last epoch beside it.

    Args:
      epochs: lines of metrics.jsonl; `margins.histogram` counts between `margins.bin_edges` (pixel units).
    """
    numbers, margins = _with_margins(epochs)
    figure, grid = style.new_figure(8.4, 4.4, 1, 2, sharey=True, width_ratios=[4, 1])
    main, last = grid[0]
    if not margins:
        style.say_empty(main, NO_MARGINS)
        last.set_axis_off()
        return style.save(figure, path)
    shares = [np.asarray(m["histogram"]) / max(1, np.sum(m["histogram"])) for m in margins]
    # At the start nearly all samples share one bin: scaled to that, the distribution that follows would be invisible.
    filled = np.concatenate([share[share > 0] for share in shares] + [np.ones(1)])
    scale = PowerNorm(0.6, vmin=0, vmax=float(np.quantile(filled, 0.97)))
    sides = _column_edges(numbers)
    columns = itertools.groupby(range(len(margins)), key=lambda i: tuple(margins[i]["bin_edges"]))
    for edges, group in columns:
        at = list(group)
        image = main.pcolormesh(
            sides[at[0] : at[-1] + 2], edges, np.stack([shares[i] for i in at], axis=1), cmap=style.DENSITY, norm=scale
        )
    halo = [Stroke(linewidth=3.5, foreground="white"), Normal()]
    look = dict(marker="o", markersize=5 if len(numbers) == 1 else 0, path_effects=halo)
    median = [m["quantiles"]["0.5"] for m in margins]
    main.plot(numbers, median, color=style.RED, linewidth=1.6, linestyle=(0, (4, 2)), label="median", **look)
    main.plot(numbers, [m["mean"] for m in margins], color=style.BLACK, linewidth=2, label="mean", **look)
    style.dress(main, x="epoch", y=style.radius_label(norm, "margin"), title=title or "Margins over epochs")
    main.grid(False)
    style.whole_epochs(main, numbers.tolist())
    bar = figure.colorbar(image, ax=main, pad=0.01, aspect=30, format=lambda value, _: f"{value:.0%}", extend="max")
    bar.ax.tick_params(labelsize=8)
    bar.set_label("share of samples in a bin", fontsize=8)
    style.legend(main, loc="lower right", frameon=True, facecolor="white", edgecolor="none", framealpha=0.8)
    edges = np.asarray(margins[-1]["bin_edges"])
    last.barh(edges[:-1], shares[-1], height=np.diff(edges), align="edge", color=style.BLUE, linewidth=0)
    style.dress(last, x="share of samples", title=f"epoch {numbers[-1]}")
    last.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    last.locator_params(axis="x", nbins=3)
    return style.save(figure, path)


def _column_edges(epochs: np.ndarray) -> np.ndarray:
    middles = (epochs[1:] + epochs[:-1]) / 2
    return np.concatenate([[epochs[0] - 0.5], middles, [epochs[-1] + 0.5]])


def margin_trend(
    epochs: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    delta: float,
    norm: str = "linf",
    ceiling: float | None = None,
    title: str = "",
) -> Path:
    """Three panels over epochs: margin with quantile bands, change against the threshold, what samples do.

    Args:
      epochs: lines of metrics.jsonl.
      delta: margin step, > 0, pixel units; changes are drawn as shares of it, the threshold at 5%.
      ceiling: eps_max, drawn if given.

    Raises:
      ValueError: delta not above 0.
    """
    if not delta > 0:
        raise ValueError(f"margin trend: delta must be above 0, got {delta}")
    numbers, margins = _with_margins(epochs)
    figure, grid = style.new_figure(
        7.4, 7.2 if margins else 3.0, 3 if margins else 1, sharex=True, height_ratios=[3, 2, 2] if margins else [1]
    )
    if not margins:
        style.say_empty(grid[0, 0], NO_MARGINS)
        return style.save(figure, path)
    level, change, shares = grid[:, 0]
    _level(level, numbers, margins, ceiling)
    style.dress(level, y=style.radius_label(norm, "margin"), title=title or "Margins on the way to equilibrium")
    _change(change, numbers, margins, delta)
    style.dress(change, y="change per epoch\n(share of delta)", title="")
    _shares(shares, numbers, margins)
    style.dress(shares, x="epoch", y="share of samples")
    style.whole_epochs(shares, numbers.tolist())
    arrived = [epoch for epoch, m in zip(numbers, margins, strict=True) if m.get("equilibrium")]
    for axes in (level, change) if arrived else ():
        axes.axvline(arrived[0], color=style.GREEN, linewidth=1.5, zorder=1, label=f"equilibrium, epoch {arrived[0]}")
    for axes in grid[:, 0]:
        style.legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return style.save(figure, path)


def _marker(numbers: np.ndarray) -> dict[str, Any]:
    return dict(marker="o", markersize=3.5 if len(numbers) <= 25 else 0)


def _level(axes: Axes, numbers, margins, ceiling) -> None:
    def quantile(name):
        return [m["quantiles"][name] for m in margins]

    # A band of one epoch has no width: there a bar stands for it.
    for low, high, alpha in (("0.05", "0.95", 0.18), ("0.25", "0.75", 0.35)):
        label = f"{float(low):.0%} to {float(high):.0%}"
        if len(numbers) == 1:
            axes.vlines(
                numbers, quantile(low), quantile(high), color=style.BLUE, alpha=alpha, linewidth=12, label=label
            )
        else:
            axes.fill_between(
                numbers, quantile(low), quantile(high), color=style.BLUE, alpha=alpha, linewidth=0, label=label
            )
    axes.plot(numbers, quantile("0.5"), color=style.BLUE, linewidth=1.2, linestyle="--", label="median")
    axes.plot(numbers, [m["mean"] for m in margins], color=style.BLACK, linewidth=2, label="mean", **_marker(numbers))
    if ceiling is not None:
        axes.axhline(ceiling, color=style.RED, linewidth=1, linestyle=":", label="ceiling")
    axes.set_ylim(bottom=0)


def _change(axes: Axes, numbers, margins, delta) -> None:
    axes.axhspan(-EQUILIBRIUM_SHARE, EQUILIBRIUM_SHARE, color=style.GREEN, alpha=0.15, linewidth=0)
    axes.axhline(EQUILIBRIUM_SHARE, color=style.GREEN, linewidth=1, linestyle="--", label="threshold: 5% of delta")
    # The broad line lies below: while all margins expand the two are one.
    for key, label, colour, width in (
        ("abs_change", "mean |change|", style.ORANGE, 3.6),
        ("growth", "growth of the mean", style.BLACK, 1.3),
    ):
        values = np.array([m[key] for m in margins]) / delta
        marker: dict[str, Any] = _marker(numbers)
        if len(numbers) == 1:
            marker |= dict(markersize=2 * width)
        axes.plot(numbers, values, color=colour, linewidth=width, label=label, **marker)
    # Linear inside the threshold, where the sign matters; decades outside.
    axes.set_yscale("symlog", linthresh=EQUILIBRIUM_SHARE, linscale=0.7)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -EQUILIBRIUM_SHARE), max(high, 1.0))
    axes.set_yticks([tick for tick in (-1, -0.1, -0.05, 0, 0.05, 0.1, 1) if low <= tick <= max(high, 1.0)])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.minorticks_off()


def _shares(axes: Axes, numbers, margins) -> None:
    for name, colour in (("expanding", style.BLUE), ("shrinking", style.RED), ("unchanged", style.GREY)):
        axes.plot(numbers, [m[name] for m in margins], color=colour, linewidth=1.6, label=name, **_marker(numbers))
    axes.plot(
        numbers, [m["at_ceiling"] for m in margins], color=style.BLACK, linewidth=1.2, linestyle=":",
        label="at the ceiling", **_marker(numbers),
    )  # fmt: skip
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
