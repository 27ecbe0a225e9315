"""Which samples are the first so many: where they lie class by class, not those of the first classes."""

import numpy as np
from jaxtyping import Int


def first_positions(labels: Int[np.ndarray, "samples"], count: int) -> Int[np.ndarray, "count"]:
    """Positions of `count` samples, rising: the first ones; where the labels lie class by class, as those of a folder
    of images do, the first ones of every class, each in its share.

    Published figures on "the first 1,000" are on sets whose order is random; there this is the first 1,000. Of the same
    set without a class, so many as it had of the others are the same samples, if both or neither lie class by class.

    Args:
      count: taken as the number of samples where it is larger.
    """
    if not lies_by_class(labels):
        return np.arange(min(count, len(labels)))
    # As if the samples of each class were spread evenly over the set: how far into its own class a sample is.
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    within = np.empty(len(labels))
    for k, size in enumerate(counts):
        within[inverse == k] = (np.arange(size) + 0.5) / size
    return np.sort(np.lexsort((labels, within))[:count])


def lies_by_class(labels: Int[np.ndarray, "samples"]) -> bool:
    """Whether the label changes less than half as often from sample to sample as in a random order."""
    counts = np.unique(labels, return_counts=True)[1] / max(len(labels), 1)
    changes = int(np.count_nonzero(labels[1:] != labels[:-1]))
    return changes < 0.5 * (len(labels) - 1) * float(1 - np.sum(counts**2))
