"""Accuracy of every class, how sure it is, and how far the classes lie apart. Numpy arrays in, numbers out.

A class without samples has accuracy NaN and the interval [0, 1]: nothing is known of it, and it takes part in nothing.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval
SIGNIFICANT = 0.05  # p values below it are no noise


class ClassTable(NamedTuple):
    """One row a class; every array has shape (K,).

    Attributes:
      n, correct: samples of the class, and those that are right.
      accuracy: correct / n; NaN where n is 0.
      low, high: 95% Wilson interval of the accuracy; 0 and 1 where n is 0.
    """

    n: np.ndarray
    correct: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Spread(NamedTuple):
    """How far the classes that have samples lie apart; all NaN (classes -1) where none has.

    Attributes:
      mean: over the classes, each counting alike.
      best, worst: accuracies; best_class, worst_class: their numbers (the first of a tie).
      discrepancy: best - worst.
      deviation: standard deviation over the classes (divided by their number).
      variation: deviation / mean; NaN where the mean is 0.
      chance: what the discrepancy would exceed in 5% of all cases if all classes were equally accurate. A discrepancy
        below it may be sampling noise alone: best - worst of finite samples is never 0.
      p_value: how often equally accurate classes would lie at least this far apart, all of them together: Monte Carlo
        on the chi-squared statistic, which holds with few samples a class too.
      worst_shares: (K,) in which share of bootstrap resamples each class is the worst; ties share.
      low, high: 95% bootstrap interval of the discrepancy. It inherits the upward pull of best - worst.
    """

    mean: float
    best: float
    best_class: int
    worst: float
    worst_class: int
    discrepancy: float
    deviation: float
    variation: float
    chance: float
    p_value: float
    worst_shares: np.ndarray
    low: float
    high: float


def wilson(correct: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% Wilson score intervals of correct / n, float64, the shape of `n`; [0, 1] where n is 0.

    References:
      Wilson 1927; Brown, Cai, DasGupta, Interval estimation for a binomial proportion, 2001.
    """
    low, high = np.zeros(np.shape(n)), np.ones(np.shape(n))
    for place in np.argwhere(np.asarray(n) > 0):
        at = tuple(place)
        low[at], high[at] = _wilson(int(correct[at]), int(n[at]))
    return low, high


@functools.cache  # SciPy searches a p value besides, a millisecond each; a thousand classes share a few counts
def _wilson(correct: int, n: int) -> tuple[float, float]:
    found = stats.binomtest(correct, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def class_table(labels: np.ndarray, right: np.ndarray, num_classes: int) -> ClassTable:
    """Counts `right` (bool (N,)) by label (int (N,), in [0, num_classes)).

    Raises:
      ValueError: shapes that differ, labels outside the classes.
    """
    labels, right = np.asarray(labels), np.asarray(right)
    if labels.shape != right.shape or labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape} and right {right.shape}; give one of each a sample")
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}; give them in [0, {num_classes})")
    n = np.bincount(labels, minlength=num_classes)
    return table_of_counts(n, np.bincount(labels[right], minlength=num_classes))


def table_of_counts(n: np.ndarray, correct: np.ndarray) -> ClassTable:
    """The table of counts (K,), such as those that a results.json or a log keeps.

    Raises:
      ValueError: shapes that differ, more right than there are.
    """
    n, correct = np.asarray(n), np.asarray(correct)
    if n.shape != correct.shape or n.ndim != 1 or (correct > n).any() or (correct < 0).any():
        raise ValueError(f"counts of shape {n.shape} and {correct.shape} must be (K,), with 0 <= correct <= n")
    with np.errstate(invalid="ignore"):
        accuracy = correct / np.where(n > 0, n, np.nan)
    return ClassTable(n, correct, accuracy, *wilson(correct, n))


def spread(table: ClassTable, *, resamples: int = 2000, seed: int = 0) -> Spread:
    """How far the classes lie apart, and whether that is more than noise; see `Spread`."""
    there = np.flatnonzero(table.n > 0)
    if not there.size:
        unknown = dict.fromkeys(Spread._fields, np.nan)
        return Spread(**{**unknown, "best_class": -1, "worst_class": -1, "worst_shares": np.zeros(len(table.n))})
    n, accuracy = table.n[there], table.accuracy[there]
    rng = np.random.default_rng(seed)
    pooled = table.correct.sum() / n.sum()
    equal = rng.binomial(n, pooled, (resamples, len(n)))
    # To resample the right and wrong ones of a class is to draw from a binomial distribution.
    drawn = rng.binomial(n, accuracy, (resamples, len(n))) / n
    observed = _chi_squared(table.correct[there], n)
    discrepancy, mean = float(np.ptp(accuracy)), float(accuracy.mean())
    is_worst = drawn == drawn.min(axis=1, keepdims=True)
    worst_shares = np.zeros(len(table.n))
    worst_shares[there] = (is_worst / is_worst.sum(axis=1, keepdims=True)).mean(axis=0)
    low, high = np.quantile(np.ptp(drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Spread(
        mean=mean,
        best=float(accuracy.max()),
        best_class=int(there[accuracy.argmax()]),
        worst=float(accuracy.min()),
        worst_class=int(there[accuracy.argmin()]),
        discrepancy=discrepancy,
        deviation=float(accuracy.std()),
        variation=float(accuracy.std() / mean) if mean else np.nan,
        chance=float(np.quantile(np.ptp(equal / n, axis=1), LEVEL)),
        p_value=float((1 + (_chi_squared(equal, n) >= observed - 1e-9).sum()) / (resamples + 1)),
        worst_shares=worst_shares,
        low=float(low),
        high=float(high),
    )


def _chi_squared(correct: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Of (..., K) counts against one accuracy for all classes; 0 where all or none are right."""
    pooled = correct.sum(axis=-1, keepdims=True) / n.sum()
    spread_of_one = np.maximum(pooled * (1 - pooled), 1e-12) / n
    return ((correct / n - pooled) ** 2 / spread_of_one).sum(axis=-1)


def weakness(table: ClassTable) -> np.ndarray:
    """p values (K,) that a class is no less accurate than all others together; NaN where there is nothing to compare.

    One-sided Fisher tests, adjusted for their number (Benjamini & Hochberg 1995): of the classes called weak at a p
    value below 0.05, about one in 20 is expected to be none.
    """
    found = np.full(len(table.n), np.nan)
    total, right = int(table.n.sum()), int(table.correct.sum())
    there = np.flatnonzero((table.n > 0) & (table.n < total))
    for k in there:
        n, correct = int(table.n[k]), int(table.correct[k])
        others = [right - correct, total - n - (right - correct)]
        found[k] = stats.fisher_exact([[correct, n - correct], others], alternative="less")[1]
    if there.size:
        found[there] = stats.false_discovery_control(np.clip(found[there], 0, 1))
    return found
