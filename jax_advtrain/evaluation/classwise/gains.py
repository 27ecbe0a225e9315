"""What a stronger attack gains over a weaker one, and on which classes."""

import itertools
from typing import NamedTuple

import numpy as np

from jax_advtrain.evaluation.classwise.per_class import LEVEL, class_table
from jax_advtrain.evaluation.classwise.resampling import resampled_accuracies
from jax_advtrain.evaluation.classwise.significance import mcnemar


class Gain(NamedTuple):
    """Robust accuracy under the weaker attack minus that under the stronger one.

    Attributes:
      weaker, stronger: names of the attacks.
      per_class: (K,), NaN for classes without samples; below 0 where the "stronger" attack is weaker.
      mean: over the classes.
      p_value: McNemar's, over all samples, that both attacks are alike.
      weaker_half: class numbers of the half that is less accurate under the WEAKER attack. (Halves by the stronger
        attack would find its own gain in them.) Of an odd number of classes the middle one counts half.
      share: part of the whole gain that falls on the weaker half; NaN where the mean gain is not above 0.
      share_low, share_high: 95% bootstrap interval of it, the halves held fixed, over the resamples that gain anything.
    """

    weaker: str
    stronger: str
    per_class: np.ndarray
    mean: float
    p_value: float
    weaker_half: tuple[int, ...]
    share: float
    share_low: float
    share_high: float


def gain(
    weaker: tuple[str, np.ndarray],
    stronger: tuple[str, np.ndarray],
    labels: np.ndarray,
    num_classes: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Gain:
    """The gain from one attack, (name, right (bool (N,))), to another on the same samples; see `Gain`."""
    both = np.stack([weaker[1], stronger[1]])
    accuracy = np.stack([class_table(labels, right, num_classes).accuracy for right in both])
    there = np.flatnonzero(np.isfinite(accuracy[0]))
    per_class = accuracy[0] - accuracy[1]
    order = there[np.argsort(accuracy[0, there], kind="stable")]
    in_half = np.zeros(num_classes)
    in_half[order[: len(order) // 2]] = 1
    if len(order) % 2:
        in_half[order[len(order) // 2]] = 0.5
    drawn = resampled_accuracies(labels, both, num_classes, resamples=resamples, seed=seed)
    draws = (drawn[:, 0] - drawn[:, 1])[:, there]
    totals = draws.sum(axis=1)
    shares = (draws @ in_half[there])[totals > 1e-12] / totals[totals > 1e-12]
    total = per_class[there].sum()
    has_share = total > 1e-12
    quantiles = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(shares, quantiles) if has_share and shares.size else (np.nan, np.nan)
    return Gain(
        weaker=weaker[0],
        stronger=stronger[0],
        per_class=per_class,
        mean=float(total / len(there)) if there.size else np.nan,
        p_value=mcnemar(*both),
        weaker_half=tuple(order[: len(order) // 2].tolist()),
        share=float((per_class[there] @ in_half[there]) / total) if has_share else np.nan,
        share_low=float(low),
        share_high=float(high),
    )


def chain_gains(
    right: dict[str, np.ndarray], labels: np.ndarray, num_classes: int, *, resamples: int = 1000, seed: int = 0
) -> list[Gain]:
    """Gains along attacks from weak to strong: each over the one before it, and the last over the first."""
    named = list(right.items())
    pairs = list(itertools.pairwise(named))
    if len(named) > 2:
        pairs.append((named[0], named[-1]))
    return [gain(*pair, labels, num_classes, resamples=resamples, seed=seed) for pair in pairs]
