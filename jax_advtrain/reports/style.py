"""One look for all figures: colours that the colour-blind tell apart, labels with units, whole files.

Figures are made through matplotlib's object API on the Agg canvas: no pyplot, no global state, no display.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jax_advtrain.evaluation.results import write_atomically

# Okabe & Ito, "Color Universal Design" (2008).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#222222"
GREY = "#8C8C8C"
DENSITY = "Blues"  # white = none; one hue, so that lightness alone tells, the same to all eyes
DPI = 120
NORM_NAMES = {"linf": "L-inf", "l2": "L2", "l1": "L1"}


def radius_label(norm: str, what: str = "epsilon") -> str:
    """Axis label of a radius: 'L2 epsilon (pixel units, [0,1])'."""
    return f"{NORM_NAMES.get(norm, norm)} {what} (pixel units, [0,1])"


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **grid) -> tuple[Figure, np.ndarray]:
    """A figure of width x height inches and its axes, always (rows, columns); `grid` goes to `Figure.subplots`."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def dress(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Labels, light grid, no frame above and to the right."""
    axes.set_xlabel(x, fontsize=9, color=BLACK)
    axes.set_ylabel(y, fontsize=9, color=BLACK)
    axes.set_title(title, fontsize=10, color=BLACK, loc="left")
    axes.tick_params(labelsize=8, color=GREY, labelcolor=BLACK)
    axes.grid(True, color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def legend(owner: Axes | Figure, **placing) -> None:
    """A frameless legend in small type, if there is anything to name."""
    axes = owner.axes if isinstance(owner, Figure) else [owner]
    entries = {label: handle for each in axes for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    if entries:
        look = dict(fontsize=8, frameon=False) | placing
        owner.legend(list(entries.values()), list(entries), **look).set_zorder(10)


def whole_epochs(axes: Axes, epochs: Sequence[int]) -> None:
    """The x axis counts epochs: whole numbers, half an epoch of air at either end."""
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def say_empty(axes: Axes, text: str) -> None:
    """Says in the middle of an axes why nothing is drawn there."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=GREY)


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes the figure as PNG, whole or not at all; returns the path."""
    return write_atomically(path, lambda file: figure.savefig(file, format="png", metadata={"Software": None}))
