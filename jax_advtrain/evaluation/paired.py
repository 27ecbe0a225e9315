"""Is the difference between two methods, on the same samples, more than noise? Of samples, and of seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

SIGNIFICANCE = 0.05


class Paired(NamedTuple):
    """How much more often the first method is right than the second, sample by sample.

    Attributes:
      difference: of the mean accuracies, in [-1, 1].
      low, high: 95% interval, by bootstrap over the samples.
      p_value: that both are right alike often: McNemar's exact test where each has one seed, else random signs.
      p_seeds: that both have the same mean accuracy over seeds (Welch), None where either has one seed.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_seeds: float | None


def compare_pairs(first: np.ndarray, second: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> Paired:
    """Tests two methods on the same samples.

    Args:
      first, second: bool (seeds, N), which of the same N samples each trained network has right; the numbers of seeds
        may differ.

    Raises:
      ValueError: other samples in one than in the other, or none.

    References:
      McNemar 1947; Dietterich, Approximate statistical tests for comparing supervised classification learning
      algorithms, 1998.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not first.size * second.size:
        raise ValueError(f"paired test: {first.shape} and {second.shape} must be (seeds, N) of the same N >= 1 samples")
    rng = np.random.default_rng(seed)
    each = first.mean(axis=0) - second.mean(axis=0)
    # Few values occur: to draw how often each does is to draw the samples.
    values, counts = np.unique(each.round(12), return_counts=True)
    draws = rng.multinomial(each.size, counts / each.size, size=resamples) @ values / each.size
    low, high = np.quantile(draws, [0.025, 0.975])
    if len(first) == len(second) == 1:
        p_value = _mcnemar(first[0], second[0])
    else:
        flipped = sum(
            abs(value) * (2 * rng.binomial(count, 0.5, resamples) - count)
            for value, count in zip(values, counts, strict=True)
        )
        p_value = float((1 + (np.abs(flipped) >= abs(each.sum()) - 1e-9).sum()) / (resamples + 1))
    return Paired(float(each.mean()), float(low), float(high), p_value, _between_seeds(first, second))


def _mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def _between_seeds(first: np.ndarray, second: np.ndarray) -> float | None:
    one, other = first.mean(axis=1), second.mean(axis=1)
    if len(one) < 2 or len(other) < 2:
        return None
    if max(np.ptp(one), np.ptp(other)) < 1e-12:  # seeds that all agree leave no variance to test against
        return float(abs(one[0] - other[0]) < 1e-12)
    return float(stats.ttest_ind(one, other, equal_var=False)[1])  # pyright: ignore[reportArgumentType]


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979): that any test below 0.05 errs has a chance of at most 0.05."""
    order = np.argsort(p_values)
    factors = len(order) - np.arange(len(order))
    rising = np.maximum.accumulate(np.minimum(1.0, np.asarray(p_values, np.float64)[order] * factors))
    adjusted = np.empty(len(order))
    adjusted[order] = rising
    return adjusted.tolist()


def within_noise(adjusted: float, p_seeds: float | None) -> bool:
    """Whether a difference may be chance: of the samples, or of the seeds where there are several on both sides."""
    return adjusted >= SIGNIFICANCE or (p_seeds is not None and p_seeds >= SIGNIFICANCE)
