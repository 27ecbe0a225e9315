"""Bootstrap over samples, class by class, the same draw for all attacks and runs: what they share is not noise between
them."""

import numpy as np


def resampled_accuracies(
    labels: np.ndarray, right: np.ndarray, num_classes: int, *, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Per-class accuracies of resampled sets: float64 (resamples, A, K), NaN for classes without samples.

    Every class keeps its number of samples.

    Args:
      labels: int (N,).
      right: bool, or shares in [0, 1], (A, N): one row an attack or run, the same samples in all.
    """
    rng = np.random.default_rng(seed)
    right = np.asarray(right, np.float64)
    found = np.full((resamples, len(right), num_classes), np.nan)
    for k in range(num_classes):
        here = np.flatnonzero(labels == k)
        if here.size:
            counts = rng.multinomial(here.size, np.full(here.size, 1 / here.size), size=resamples)
            found[:, :, k] = counts @ right[:, here].T / here.size
    return found
