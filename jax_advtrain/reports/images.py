"""What the attack did to the pictures: clean, attacked, amplified difference, one sample a column."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jax_advtrain.reports import style


def amplification(difference: np.ndarray) -> float:
    """Factor, of 1, 2, 5 x 10^k and at least 1, that stretches the largest |difference| to at most the full scale."""
    largest = float(np.abs(difference).max(initial=0.0))
    if largest == 0:
        return 1.0
    steps = [m * 10.0**k for k in range(7) for m in (1, 2, 5)]
    return max(step for step in steps if step * largest <= 1 or step == 1)


def attack_grid(
    clean: np.ndarray,
    attacked: np.ndarray,
    path: str | os.PathLike,
    *,
    labels: Sequence[int],
    clean_predictions: Sequence[int],
    attacked_predictions: Sequence[int],
    clean_confidence: Sequence[float],
    attacked_confidence: Sequence[float],
    class_names: Sequence[str] = (),
    title: str = "",
    limit: int = 8,
) -> Path:
    """Draws the first `limit` samples, at least one.

    Args:
      clean, attacked: float (N, H, W, C) in [0,1], C = 1 (grey) or 3 (colour).
      labels, *_predictions: int (N,). *_confidence: (N,) probability of what is predicted, in [0,1].
      class_names: by label; the numbers themselves where empty.

    Raises:
      ValueError: no sample, other shapes, other channel counts.
    """
    clean, attacked = np.asarray(clean, np.float32)[:limit], np.asarray(attacked, np.float32)[:limit]
    if clean.shape != attacked.shape or clean.ndim != 4 or clean.shape[-1] not in (1, 3) or len(clean) == 0:
        raise ValueError(
            f"image grid: clean {clean.shape} and attacked {attacked.shape} must both be (N, H, W, C), N >= 1, C 1 or 3"
        )
    difference = attacked - clean
    factor = amplification(difference)

    def name(label):
        return "NaN" if label < 0 else str(class_names[int(label)]) if len(class_names) else str(int(label))

    columns = len(clean)
    figure, grid = style.new_figure(max(4.2, 1.3 + 1.15 * columns), 4.7, 3, columns)
    for i in range(columns):
        above = dict(xy=(0.5, 1), xycoords="axes fraction", xytext=(0, 15), textcoords="offset points", ha="center")
        grid[0, i].annotate(f"true: {name(labels[i])}", fontsize=8, color=style.BLACK, **above)
        told = ((clean_predictions[i], clean_confidence[i]), (attacked_predictions[i], attacked_confidence[i]))
        for axes, image, (prediction, confidence) in zip(grid[:2, i], (clean, attacked), told, strict=True):
            _picture(axes, image[i])
            colour = style.BLUE if int(prediction) == int(labels[i]) else style.RED
            axes.set_title(f"{name(prediction)} ({confidence:.0%})", fontsize=8, pad=3, color=colour)
        if clean.shape[-1] == 1:
            grid[2, i].imshow(difference[i, ..., 0], cmap="RdBu_r", vmin=-1 / factor, vmax=1 / factor,
                              interpolation="nearest")  # fmt: skip
        else:
            _picture(grid[2, i], 0.5 + 0.5 * factor * difference[i])
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("#C8C8C8")
    zero = "white" if clean.shape[-1] == 1 else "mid-grey"
    for axes, text in zip(
        grid[:, 0], ("clean", "attacked", f"difference\n\u00d7 {factor:g}\n({zero} = none)"), strict=True
    ):
        axes.set_ylabel(text, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)
    note = "prediction (confidence); blue: right, red: wrong"
    figure.suptitle(f"{title}\n{note}" if title else note, fontsize=9, x=0.01, ha="left")
    return style.save(figure, path)


def _picture(axes, image: np.ndarray) -> None:
    grey = image.shape[-1] == 1
    axes.imshow(np.clip(image[..., 0] if grey else image, 0, 1), cmap="gray" if grey else None, vmin=0, vmax=1,
                interpolation="nearest")  # fmt: skip
