"""What the model believes of attacked images, class by class, and what a temperature in the attack does to that."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jax_advtrain.attacks import winners_by_class
from jax_advtrain.evaluation.classwise.per_class import class_table
from jax_advtrain.evaluation.classwise.significance import mcnemar


class Confidence(NamedTuple):
    """One row a class; NaN for classes without samples.

    Attributes:
      distribution: (K, K) mean predicted distribution of each class's images.
      variance: (K,) variance of that distribution over its K outputs. It is 0 for a uniform one and (K - 1) / K^2 for
        one that is sure; small for regularised models, where Temperature-PGD gains most (Tian et al. 2021).
      image_variance: (K,) the same of each image's distribution, then the mean: images that are each sure of another
        class have a high one, although their mean distribution is flat.
      on_truth: (K,) mean probability of the true class.
    """

    distribution: np.ndarray
    variance: np.ndarray
    image_variance: np.ndarray
    on_truth: np.ndarray


def class_confidence(labels: np.ndarray, probabilities: np.ndarray, num_classes: int) -> Confidence:
    """Means over the samples of each class.

    Args:
      labels: int (N,).
      probabilities: float (N, K), the softmax of the logits.
    """
    distribution = np.full((num_classes, num_classes), np.nan)
    image_variance = np.full(num_classes, np.nan)
    variances = probabilities.var(axis=1)
    for k in range(num_classes):
        here = labels == k
        if here.any():
            distribution[k] = probabilities[here].mean(axis=0, dtype=np.float64)
            image_variance[k] = variances[here].mean(dtype=np.float64)
    return Confidence(distribution, distribution.var(axis=1), image_variance, np.diag(distribution).copy())


class Temperatures(NamedTuple):
    """The same attack at several temperatures of its loss; rows: temperatures.

    Attributes:
      temperatures: (T,).
      accuracy: (T, K) robust accuracy of each class at each temperature; NaN for classes without samples.
      worst: (K,) of the per-sample strongest temperature.
      winners: (T, K) fooled samples of each class that each temperature won: the largest logit margin.
      p_values: (T,) McNemar's against temperature 1, over all samples; NaN where 1 is not among them.
    """

    temperatures: np.ndarray
    accuracy: np.ndarray
    worst: np.ndarray
    winners: np.ndarray
    p_values: np.ndarray


class _Strongest(NamedTuple):
    """What `winners_by_class` reads of an attack's result."""

    winner: np.ndarray
    is_right: np.ndarray


def temperature_table(
    labels: np.ndarray, found: Mapping[float, tuple[np.ndarray, np.ndarray]], num_classes: int
) -> Temperatures:
    """The sweep, from what the attack left at each temperature.

    Args:
      labels: int (N,).
      found: {temperature: (right (bool (N,)), score (float (N,)), the logit margin max_{j != y} z_j - z_y)}.
    """
    right = np.stack([one for one, _ in found.values()])
    score = np.stack([np.nan_to_num(one, nan=float(np.finfo(np.float32).min)) for _, one in found.values()])
    # A wrong sample beats a right one, then the larger margin; argmax keeps the earlier of a tie.
    winner = np.argmax(np.where(right.all(axis=0) | ~right, score, -np.inf), axis=0)
    # The class wants attack results; these two fields are what it reads.
    strongest: object = _Strongest(winner, np.asarray(right.all(axis=0)))
    winners = winners_by_class(strongest, labels, num_classes, len(found))  # pyright: ignore[reportArgumentType]
    plain = found.get(1.0)
    return Temperatures(
        temperatures=np.array(list(found), np.float64),
        accuracy=np.stack([class_table(labels, one, num_classes).accuracy for one in right]),
        worst=class_table(labels, np.asarray(right.all(axis=0)), num_classes).accuracy,
        winners=np.asarray(winners),
        p_values=np.array([np.nan if plain is None else mcnemar(one, plain[0]) for one in right]),
    )
