"""Two-dimensional toys: where several models draw their boundary, and how far the margins of the samples reach."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PatchCollection
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle, RegularPolygon

from jax_advtrain.reports import style

POINT_COLOURS = (style.BLUE, style.RED, style.GREEN, style.PINK, style.ORANGE, style.SKY, style.BLACK)


def plane(points: np.ndarray, resolution: int = 200, pad: float = 0.12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grid around points (N, 2): x (R,), y (R,) and the positions float32 (R * R, 2), rows of equal y together."""
    low, high = points.min(axis=0) - pad, points.max(axis=0) + pad
    x, y = (np.linspace(low[axis], high[axis], resolution) for axis in (0, 1))
    return x, y, np.stack([mesh.ravel() for mesh in np.meshgrid(x, y)], axis=1).astype(np.float32)


def decision_regions(
    panels: Sequence[Mapping[str, Any]],
    points: np.ndarray,
    labels: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    path: str | os.PathLike,
    *,
    norm: str = "l2",
    shown_margins: int = 30,
    title: str = "",
) -> Path:
    """Models side by side over the same training points.

    Args:
      panels: one dict a model: "name"; "scores" float (len(y), len(x), C), larger = more of that class (logits or
        probabilities; `plane`'s positions in their order); optionally "accuracy" (clean), "robust_accuracy", and
        "margins": (N,) per sample or one number (a fixed radius), pixel units.
      points: float (N, 2) in [0,1]. labels: int (N,).
      norm: margins are circles in "l2", squares in "linf", diamonds in "l1".
      shown_margins: of how many samples at most the margins are drawn, evenly spread over the array.

    Raises:
      ValueError: no panel, points or scores of another shape.
    """
    points, labels = np.asarray(points), np.asarray(labels)
    if not panels or points.ndim != 2 or points.shape[1] != 2 or len(points) != len(labels):
        raise ValueError(f"boundary: needs a panel and points (N, 2) with N labels, got {len(panels)}, {points.shape}")
    width = 0.4 + 3.7 * len(panels)
    aspect = (y[-1] - y[0]) / (x[-1] - x[0])
    figure, grid = style.new_figure(width, 1.3 + 3.4 * aspect, 1, len(panels), sharex=True, sharey=True)
    for axes, panel in zip(grid[0], panels, strict=True):
        scores = np.asarray(panel["scores"], np.float64)
        if scores.ndim != 3 or scores.shape[:2] != (len(y), len(x)):
            raise ValueError(f"boundary: scores of {panel['name']!r} are {scores.shape}, not ({len(y)}, {len(x)}, C)")
        _regions(axes, x, y, scores)
        if panel.get("margins") is not None:
            _margins(axes, points, labels, np.broadcast_to(panel["margins"], len(points)), norm, shown_margins)
        colours = [POINT_COLOURS[int(label) % len(POINT_COLOURS)] for label in labels]
        axes.scatter(*points.T, s=9, c=colours, edgecolors="white", linewidths=0.4, zorder=4)
        style.dress(axes, x="feature 1 (pixel units, [0,1])", title=_heading(panel))
        axes.grid(False)
        axes.set_aspect("equal")
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(y[0], y[-1])
    grid[0, 0].set_ylabel("feature 2 (pixel units, [0,1])", fontsize=9)
    told = [title] if title else []
    if any(panel.get("margins") is not None for panel in panels):
        shape = {"l2": "circles", "l1": "diamonds"}.get(norm, "squares")
        some = f", {shown_margins} of {len(points)} samples" if len(points) > shown_margins else ""
        told.append(f"{shape}: {style.NORM_NAMES.get(norm, norm)} margin or training radius{some}")
    figure.suptitle("\n".join(told), fontsize=9, x=0.01, ha="left", color=style.BLACK)
    return style.save(figure, path)


def _heading(panel: Mapping[str, Any]) -> str:
    told = [f"clean {panel['accuracy']:.1%}"] if panel.get("accuracy") is not None else []
    told += [f"robust {panel['robust_accuracy']:.1%}"] if panel.get("robust_accuracy") is not None else []
    return "\n".join([str(panel["name"]), ", ".join(told)] if told else [str(panel["name"])])


def _regions(axes: Axes, x, y, scores: np.ndarray) -> None:
    classes = scores.shape[-1]
    colours = ListedColormap([POINT_COLOURS[label % len(POINT_COLOURS)] for label in range(classes)])
    axes.pcolormesh(x, y, scores.argmax(axis=-1), cmap=colours, vmin=-0.5, vmax=classes - 0.5, alpha=0.16, linewidth=0,
                    shading="nearest", rasterized=True, zorder=1)  # fmt: skip
    for label in range(classes - 1 if classes == 2 else classes):
        others = np.delete(scores, label, axis=-1)
        lead = scores[..., label] - others.max(axis=-1) if others.size else np.ones(scores.shape[:2])
        if lead.min() < 0 < lead.max():
            axes.contour(x, y, lead, levels=[0.0], colors=[style.BLACK], linewidths=1.6, zorder=3)


def _margins(axes: Axes, points, labels, margins, norm: str, shown: int) -> None:
    chosen = np.unique(np.linspace(0, len(points) - 1, min(shown, len(points))).round().astype(int))
    look: dict[str, Any] = dict(facecolor="none", linewidth=0.7, alpha=0.8, zorder=2)
    colours = [POINT_COLOURS[int(label) % len(POINT_COLOURS)] for label in labels[chosen]]
    width = 2 * margins[chosen]
    if norm == "l2":
        axes.add_collection(
            EllipseCollection(width, width, np.zeros(len(chosen)), units="xy", offsets=points[chosen],
                              transOffset=axes.transData, edgecolor=colours, **look)
        )  # fmt: skip
    elif norm == "l1":
        diamonds = [RegularPolygon(tuple(p), 4, radius=w / 2) for p, w in zip(points[chosen], width, strict=True)]
        axes.add_collection(PatchCollection(diamonds, edgecolor=colours, **look))
    else:
        squares = [Rectangle(tuple(p - w / 2), w, w) for p, w in zip(points[chosen], width, strict=True)]
        axes.add_collection(PatchCollection(squares, edgecolor=colours, **look))
