"""IMA's margins against distances to the boundary: a point a training sample."""

import os
from pathlib import Path

import numpy as np

from jax_advtrain.evaluation.equilibrium import Agreement
from jax_advtrain.reports import style


def margins_against_distances(
    margin: np.ndarray,
    distance: np.ndarray,
    clean_right: np.ndarray,
    found: np.ndarray,
    path: str | os.PathLike,
    *,
    agreement: Agreement,
    ceiling: float | None,
    norm: str = "linf",
    title: str = "",
) -> Path:
    """Scatter plot; on the dashed line both are equal, right of the dotted one margins cannot grow.

    Args:
      margin, distance: float (N,), pixel units. clean_right, found: bool (N,); other samples are not drawn.
      agreement: what stands beside it. ceiling: of the margins, or None.
    """
    figure, grid = style.new_figure(5.6, 5.0)
    axes, used = grid[0, 0], clean_right & found
    if not used.any():
        style.say_empty(axes, "nothing to compare: no sample is right when clean and was fooled")
        return style.save(figure, path)
    below = used if ceiling is None else used & (margin < ceiling - 1e-6)
    for which, colour, label in ((below, style.BLUE, "below the ceiling"), (used & ~below, style.ORANGE, "at it")):
        if which.any():
            axes.scatter(margin[which], distance[which], s=9, color=colour, alpha=0.4, linewidths=0,
                         label=f"{label}: {which.sum():,}")  # fmt: skip
    top = 1.05 * float(max(margin[used].max(), distance[used].max()))
    axes.plot([0, top], [0, top], color=style.BLACK, linewidth=1, linestyle="--", label="equal")
    if ceiling is not None:
        axes.axvline(ceiling, color=style.GREY, linewidth=1, linestyle=":", label="ceiling")
    axes.set_xlim(0, 1.05 * max(float(margin[used].max()), ceiling or 0.0))
    axes.set_ylim(0, top)
    known = [(agreement.spearman, "rank correlation"), (agreement.spearman_below, "below the ceiling")]
    said = ", ".join(f"{what} {value:.2f}" for value, what in known if value is not None)
    style.dress(
        axes, x=style.radius_label(norm, "margin"), y=style.radius_label(norm, "distance found"), title=said or title
    )
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    style.legend(axes, loc="upper left", frameon=True, facecolor="white", edgecolor="none", framealpha=0.8)
    return style.save(figure, path)
