"""Is a difference between two attacks or two runs on the same samples more than noise?"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from jax_advtrain.evaluation.classwise.per_class import LEVEL


class Difference(NamedTuple):
    """Mean of first - second over samples.

    Attributes:
      value: in [-1, 1]; NaN where there is no sample.
      low, high: 95% interval by bootstrap over samples.
      p_value: that both are alike: McNemar's exact test where both sides are right or wrong; where they are shares of
        seeds, a test by random signs (Monte Carlo). NaN where there is no sample.
    """

    value: float
    low: float
    high: float
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact p value that two classifiers, right (bool (N,)) on the same samples, err alike; 1 where none differs.

    References:
      McNemar 1947; Dietterich, Approximate statistical tests for comparing supervised classification learning
      algorithms, 1998.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    total = only_first + only_second
    return float(stats.binomtest(only_first, total).pvalue) if total else 1.0


def paired_difference(first: np.ndarray, second: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Difference:
    """`first` - `second`, sample by sample.

    Args:
      first, second: bool (N,), or float (N,), the share of a method's seeds that are right.
    """
    if not len(first):
        return Difference(*[float("nan")] * 4)
    rng = np.random.default_rng(seed)
    each = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    # Only a few values occur: resampling counts of each is resampling the samples.
    values, counts = np.unique(each, return_counts=True)
    draws = rng.multinomial(each.size, counts / each.size, size=resamples) @ values / each.size
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if first.dtype == bool and second.dtype == bool:
        p_value = mcnemar(first, second)
    else:
        signed = sum(
            abs(value) * (2 * rng.binomial(count, 0.5, resamples) - count)
            for value, count in zip(values, counts, strict=True)
        )
        as_large = np.abs(signed) >= abs(each.sum()) - 1e-9
        p_value = float((1 + as_large.sum()) / (resamples + 1))
    return Difference(float(each.mean()), float(low), float(high), p_value)


def adjusted(p_values: np.ndarray) -> np.ndarray:
    """p values adjusted for their number (Benjamini & Hochberg 1995); NaN stays NaN."""
    found = np.array(p_values, np.float64)
    there = np.isfinite(found)
    if there.any():
        found[there] = stats.false_discovery_control(found[there])
    return found


def between_seeds(first: np.ndarray, second: np.ndarray) -> float:
    """p value that two methods, one number a seed (R,), (S,), have the same mean (Welch); NaN below two seeds each.

    Seeds that all agree leave nothing to test against: 1 where the means agree too, else 0.
    """
    if len(first) < 2 or len(second) < 2:
        return float("nan")
    if max(np.ptp(first), np.ptp(second)) < 1e-12:
        return float(abs(first[0] - second[0]) < 1e-12)
    return float(stats.ttest_ind(first, second, equal_var=False)[1])  # pyright: ignore[reportArgumentType]
