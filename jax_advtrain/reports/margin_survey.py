"""Estimated margins of a split: their histogram, those beyond the search marked, and accuracy(radius) read off."""

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from jax_advtrain.reports import style


def accuracy_from_margins(margins: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Share of samples whose margin exceeds each radius: float64 (R,). Censored margins lie at the largest radius.

    A sample of margin 0 (wrong on the clean image) counts at no radius; at the largest radius only what is larger
    or censored would count, so read the curve below it.
    """
    return (np.asarray(margins)[None, :] > np.asarray(radii, np.float64)[:, None]).mean(axis=1)


def margin_survey(
    margins: np.ndarray,
    censored: np.ndarray,
    path: str | os.PathLike,
    *,
    largest_radius: float,
    norm: str = "linf",
    title: str = "",
) -> Path:
    """Histogram left, accuracy(radius) right.

    Args:
      margins: float (N,), N >= 1, pixel units, in [0, largest_radius]; 0 = wrong on the clean image.
      censored: bool (N,): never hit within the largest radius, so that the margin is larger than it.
      largest_radius: > 0.

    Raises:
      ValueError: no sample, shapes that differ, a margin outside the range, or not finite.
    """
    margins, censored = np.asarray(margins, np.float64), np.asarray(censored, bool)
    if margins.ndim != 1 or margins.shape != censored.shape or margins.size == 0:
        raise ValueError(f"margin survey: margins {margins.shape} and censored {censored.shape} must be (N,), N >= 1")
    slack = 1e-5 * largest_radius  # margins come in float32
    if not (largest_radius > 0 and (margins >= 0).all() and (margins <= largest_radius + slack).all()):
        raise ValueError(f"margin survey: margins must lie in [0, {largest_radius}], the largest radius, above 0")
    figure, grid = style.new_figure(9.2, 4.2, 1, 2)
    _histogram(grid[0, 0], margins, censored, largest_radius)
    style.dress(
        grid[0, 0], x=style.radius_label(norm, "margin"), y="share of samples", title=title or "Estimated margins"
    )
    _curve(grid[0, 1], margins, censored, largest_radius)
    style.dress(grid[0, 1], x=style.radius_label(norm), y="accuracy", title="Accuracy read off the margins")
    for axes in grid[0]:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        style.legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return style.save(figure, path)


def _histogram(axes: Axes, margins, censored, largest_radius) -> None:
    n, bins = margins.size, 40
    width = largest_radius / bins
    wrong = (margins == 0) & ~censored
    found = margins[~wrong & ~censored]
    counts, edges = np.histogram(np.minimum(found, largest_radius), bins=bins, range=(0, largest_radius))
    axes.bar(edges[:-1], counts / n, width, align="edge", color=style.BLUE, label=f"estimated: {found.size:,}")
    # Beside the range, not in it: neither has a margin within.
    axes.bar(-1.5 * width, wrong.mean(), width, color=style.RED, label=f"wrong when clean (margin 0): {wrong.sum():,}")
    if censored.any():
        axes.bar(
            largest_radius + 1.5 * width, censored.mean(), width, color="white", edgecolor=style.ORANGE, hatch="////",
            linewidth=1.2, label=f"never hit (margin > {largest_radius:g}): {censored.sum():,}",
        )  # fmt: skip
    if found.size:
        axes.axvline(np.median(found), color=style.BLACK, linewidth=1, linestyle="--",
                     label=f"median of the estimated: {np.median(found):.3g}")  # fmt: skip
    axes.margins(x=0.02)


def _curve(axes: Axes, margins, censored, largest_radius) -> None:
    radii = np.linspace(0, largest_radius, 201)
    accuracy = accuracy_from_margins(np.where(censored, np.inf, margins), radii)
    axes.plot(radii, accuracy, color=style.BLACK, linewidth=2.4)
    axes.plot(0, accuracy[0], "D", color=style.GREY, markersize=6, clip_on=False, zorder=5,
              label=f"clean: {accuracy[0]:.1%}")  # fmt: skip
    if censored.any():
        axes.axhline(censored.mean(), color=style.ORANGE, linewidth=1.2, linestyle=":",
                     label=f"never hit: {censored.mean():.1%}")  # fmt: skip
    axes.set_xlim(0, largest_radius)
    axes.set_ylim(0, 1.02)
