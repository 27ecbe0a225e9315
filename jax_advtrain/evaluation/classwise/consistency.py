"""Do attacks, or runs, agree on which classes are weak: rank correlations of per-class accuracies."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jax_advtrain.evaluation.classwise.per_class import LEVEL

_WIDTH = stats.norm.ppf((1 + LEVEL) / 2)  # standard deviations of half a normal interval
_DRAWS = 200  # enough for a standard deviation; Kendall's of a pair takes half a millisecond


class Agreement(NamedTuple):
    """Rank correlations of every pair; arrays are (A, A), NaN where one of a pair has all classes alike.

    Attributes:
      names: of the attacks or runs.
      spearman, kendall: coefficients (Kendall's tau-b).
      spearman_low, ..., kendall_high: 95% intervals: 1.96 standard deviations of the bootstrap over samples to either
        side, within [-1, 1]. (Its quantiles would lie too low: the noise of few samples lowers a coefficient, and
        resampling adds that noise once more.)
    """

    names: tuple[str, ...]
    spearman: np.ndarray
    spearman_low: np.ndarray
    spearman_high: np.ndarray
    kendall: np.ndarray
    kendall_low: np.ndarray
    kendall_high: np.ndarray


def agreement(names: Sequence[str], accuracies: np.ndarray, resampled: np.ndarray) -> Agreement:
    """Correlations between the rows of `accuracies` (A, K), with intervals from `resampled` (B, A, K).

    Classes whose accuracy is NaN in any row are left out.
    """
    there = np.isfinite(accuracies).all(axis=0)
    accuracies, resampled = accuracies[:, there], resampled[:, :, there]
    if not there.any():
        return Agreement(tuple(names), *[np.full((len(names), len(names)), np.nan)] * 6)
    found: dict[str, np.ndarray] = {}
    for name, coefficient in (("spearman", spearman), ("kendall", kendall)):
        found[name] = coefficient(accuracies)
        half = _WIDTH * _deviation(np.stack([coefficient(one) for one in resampled[:_DRAWS]]))
        found[f"{name}_low"] = np.clip(found[name] - half, -1, 1)
        found[f"{name}_high"] = np.clip(found[name] + half, -1, 1)
    return Agreement(names=tuple(names), **found)


def spearman(accuracies: np.ndarray) -> np.ndarray:
    """Spearman's coefficient of every pair of rows of (A, K): float64 (A, A); NaN for a row without differences."""
    return _cosines(stats.rankdata(accuracies, axis=-1) - (accuracies.shape[-1] + 1) / 2)


def kendall(accuracies: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of every pair of rows of (A, K): float64 (A, A); NaN for a row without differences."""
    has_order = np.ptp(accuracies, axis=-1) > 0
    found = np.diag(np.where(has_order, 1.0, np.nan))
    for i, j in itertools.combinations(range(len(accuracies)), 2):
        if has_order[i] and has_order[j]:
            coefficient, _ = stats.kendalltau(accuracies[i], accuracies[j])  # pyright: ignore[reportGeneralTypeIssues]
            found[i, j] = found[j, i] = coefficient
        else:
            found[i, j] = found[j, i] = np.nan
    return found


def _cosines(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = rows @ rows.T / lengths[:, None] / lengths[None, :]
    return np.clip(np.round(found, 12), -1, 1)  # what agrees wholly is 1, not 1 - 1e-16


def _deviation(draws: np.ndarray) -> np.ndarray:
    """Over the draws in which the coefficient exists; NaN where it exists in none."""
    there = np.isfinite(draws)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, draws, 0).sum(axis=0) / count
        return np.sqrt((np.where(there, draws - mean, 0) ** 2).sum(axis=0) / count)
