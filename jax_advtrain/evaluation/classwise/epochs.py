"""Per-class accuracies of every epoch, from a run's log: when the discrepancy appears, and whether it stays."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.evaluation.classwise.consistency import spearman
from jax_advtrain.evaluation.classwise.per_class import SIGNIFICANT, spread, table_of_counts

_COUNTED = ("clean", "robust")
NO_LOG = "the log of epochs holds no per-class accuracies, so there are no curves over training"


class Epochs(NamedTuple):
    """One row an epoch that was validated class by class.

    Attributes:
      epochs: (E,) their numbers, from 1.
      n, n_robust: (K,) validation samples of each class, all and attacked.
      clean, robust: (E, K) accuracies; NaN for classes without samples.
      discrepancy_clean, discrepancy_robust: (E,) best - worst class.
      p_clean, p_robust: (E,) how often equally accurate classes would show that discrepancy.
      appears: the first epoch from which on the robust discrepancy is never again within noise; None where it is at
        the end.
      same_ranking: (E,) Spearman of the robust accuracies with those of the last epoch.
    """

    epochs: np.ndarray
    n: np.ndarray
    n_robust: np.ndarray
    clean: np.ndarray
    robust: np.ndarray
    discrepancy_clean: np.ndarray
    discrepancy_robust: np.ndarray
    p_clean: np.ndarray
    p_robust: np.ndarray
    appears: int | None
    same_ranking: np.ndarray


def from_log(lines: Sequence[Mapping[str, Any]], *, resamples: int = 1000, seed: int = 0) -> Epochs | None:
    """Reads lines of metrics.jsonl whose validation.per_class holds {clean, robust: {n, correct}}, counts with one
    entry a class; None where no line has any."""
    logged = [
        (line["epoch"], line["validation"]["per_class"])
        for line in lines
        if (line.get("validation") or {}).get("per_class")
    ]
    if not logged:
        return None
    tables = [
        [table_of_counts(np.asarray(counts[what]["n"]), np.asarray(counts[what]["correct"])) for what in _COUNTED]
        for _, counts in logged
    ]
    spreads = [[spread(table, resamples=resamples, seed=seed) for table in pair] for pair in tables]
    numbers = np.array([epoch for epoch, _ in logged])
    robust = np.stack([pair[1].accuracy for pair in tables])
    p_robust = np.array([pair[1].p_value for pair in spreads])
    noisy = np.flatnonzero(~(p_robust < SIGNIFICANT))
    start = noisy[-1] + 1 if noisy.size else 0
    there = np.isfinite(robust).all(axis=0)
    return Epochs(
        epochs=numbers,
        n=tables[-1][0].n,
        n_robust=tables[-1][1].n,
        clean=np.stack([pair[0].accuracy for pair in tables]),
        robust=robust,
        discrepancy_clean=np.array([pair[0].discrepancy for pair in spreads]),
        discrepancy_robust=np.array([pair[1].discrepancy for pair in spreads]),
        p_clean=np.array([pair[0].p_value for pair in spreads]),
        p_robust=p_robust,
        appears=int(numbers[start]) if start < len(numbers) else None,
        same_ranking=spearman(robust[:, there])[-1],
    )
