"""The last layer's weight vector of each class, and whether its length goes with the class's robustness."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

NO_HEAD = "the network has no dense last layer with one weight vector a class"
ONE_LOGIT = "a network with one logit has one weight vector for both classes"


class NormRelation(NamedTuple):
    """Norm of each class's weight vector against its accuracy, over the classes that have samples.

    Attributes:
      norms: (K,).
      pearson, pearson_p, spearman, spearman_p: coefficients with two-sided p values; NaN with fewer than 3 classes, or
        where norms or accuracies are all alike.
    """

    norms: np.ndarray
    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float


def find_kernel(
    logits_of: Callable[[Any], jax.Array], params: Mapping[str, Any], num_classes: int
) -> np.ndarray | None:
    """The last dense layer's kernel (features, num_classes), or None where there is no such layer.

    Told by what it does, not by its name: a kernel whose column k enters logit k and no other. A layer whose length
    does not count, as in a cosine classifier, is none.

    Args:
      logits_of: from params to logits (B, num_classes) of a few images; `params` are nested dicts of arrays.
    """
    leaves, structure = jax.tree.flatten(params)
    before = np.asarray(logits_of(params))
    if before.ndim != 2 or before.shape[1] != num_classes:
        return None
    for place, leaf in enumerate(leaves):
        if np.ndim(leaf) != 2 or leaf.shape[1] != num_classes:
            continue
        grown = [*leaves[:place], jnp.asarray(leaf).at[:, 0].multiply(1.5), *leaves[place + 1 :]]
        moved = np.abs(np.asarray(logits_of(jax.tree.unflatten(structure, grown))) - before).max(axis=0)
        noise = 1e-5 * max(1.0, float(np.abs(before).max()))
        if moved[0] > noise and (moved[1:] <= noise).all():
            return np.asarray(leaf)
    return None


def norm_relation(kernel: np.ndarray, accuracy: np.ndarray) -> NormRelation:
    """Correlates the columns' L2 norms with the classes' accuracies (K,), NaN where a class has no samples."""
    norms = np.linalg.norm(np.asarray(kernel, np.float64), axis=0)
    there = np.isfinite(accuracy)
    x, y = norms[there], accuracy[there]
    if there.sum() < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return NormRelation(norms, *[float("nan")] * 4)
    found: list[float] = []
    for correlation in (stats.pearsonr, stats.spearmanr):
        coefficient, p_value = correlation(x, y)  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]
        found += [float(coefficient), float(p_value)]  # pyright: ignore[reportArgumentType]
    return NormRelation(norms, *found)
