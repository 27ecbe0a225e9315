"""Where attacked images go: class to class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import confusion_matrix

from jax_advtrain.evaluation.classwise.per_class import wilson


class Edge(NamedTuple):
    """Images of one class that are taken for another.

    Attributes:
      source, target: class numbers.
      count: how many. share: of the source's images that got a class (NaN is none). low, high: its 95% Wilson interval.
      reverse: share of the target's images that are taken for the source; NaN where it has none.
      p_value: that both directions are alike (Fisher); NaN where the target has no images.
    """

    source: int
    target: int
    count: int
    share: float
    low: float
    high: float
    reverse: float
    p_value: float


class Grouped(NamedTuple):
    """The flow between super-classes.

    Attributes:
      matrix: (G, G) counts.
      inside: share of the fooled images that stay inside their super-class; NaN where none is fooled.
      expected: what it would be if a fooled image went to every other class alike.
    """

    matrix: np.ndarray
    inside: float
    expected: float


def confusion(labels: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts, int64 (K, K): row = true class, column = predicted class; a prediction of -1 (NaN) is in no column."""
    if not len(labels):
        return np.zeros((num_classes, num_classes), np.int64)
    return confusion_matrix(labels, prediction, labels=np.arange(num_classes))


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Rows that sum to 1, float64 (K, K); the row of a class without samples is all 0."""
    sums = counts.sum(axis=1, keepdims=True)
    return counts / np.where(sums > 0, sums, 1)


def strongest_edges(counts: np.ndarray, limit: int = 20) -> list[Edge]:
    """The edges off the diagonal with the largest shares, the largest first; a tie goes to the larger count."""
    n, shares = counts.sum(axis=1), row_shares(counts)
    off = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    sources, targets = np.nonzero(off)
    order = np.lexsort((-off[sources, targets], -shares[sources, targets]))[:limit]
    edges = []
    for i, j in zip(sources[order].tolist(), targets[order].tolist(), strict=True):
        low, high = wilson(counts[i, j : j + 1], n[i : i + 1])
        table = [[counts[i, j], n[i] - counts[i, j]], [counts[j, i], n[j] - counts[j, i]]]
        both = (float(shares[j, i]), _fisher(table)) if n[j] else (np.nan, np.nan)
        edges.append(Edge(i, j, int(counts[i, j]), float(shares[i, j]), float(low[0]), float(high[0]), *both))
    return edges


def _fisher(table: Sequence[Sequence[int]]) -> float:
    return float(stats.fisher_exact(table)[1])  # pyright: ignore[reportArgumentType]


def symmetry(counts: np.ndarray) -> float:
    """How symmetric the flow is, in [0, 1]: the part of the off-diagonal shares that has its match in the other
    direction, sum of min(F_ij, F_ji) / sum of F_ij over i != j. NaN where nothing flows."""
    shares = row_shares(counts)
    np.fill_diagonal(shares, 0)
    return float(np.minimum(shares, shares.T).sum() / shares.sum()) if shares.any() else float("nan")


def grouped(counts: np.ndarray, groups: Sequence[int]) -> Grouped:
    """Sums the flow over super-classes.

    Args:
      counts: (K, K).
      groups: (K,) number of the super-class of each class, 0..G-1.
    """
    of = np.asarray(groups)
    one_hot = of[:, None] == np.arange(of.max() + 1)
    off = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    same = of[:, None] == of[None, :]
    chance = (same.sum(axis=1) - 1) / max(1, len(of) - 1)
    fooled = off.sum()
    return Grouped(
        matrix=one_hot.T.astype(np.int64) @ counts @ one_hot.astype(np.int64),
        inside=float(off[same].sum() / fooled) if fooled else float("nan"),
        expected=float((off.sum(axis=1) * chance).sum() / fooled) if fooled else float("nan"),
    )
