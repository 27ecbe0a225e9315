"""Segmentation as a task: soft Dice and cross entropy, and when a whole image is right.

Outputs are class scores (B, *space, classes), labels (B, *space); class 0 is the background, the others are the
foreground. Everything is one number a sample, so that attacks and margins work on whole images. Which defenses know it,
`defenses.registry` says.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import losses
from jax_advtrain.tasks import Task, answer

SMOOTH = 1.0


def segmentation(threshold: float = 0.6) -> Task:
    """The task of segmentation (Ma & Liang, arXiv 2005.09147, section on medical images).

    The loss that training descends and attacks ascend is (1 - soft Dice) + cross entropy. An image is right where the
    mean foreground Dice of its prediction is at least `threshold`; one whose truth has no foreground always is: nothing
    that an attack does to it is a hit. On the clean image all others take part, however wrong they are.

    Args:
      threshold: in (0, 1]; 0.6 in the published runs.

    Raises:
      ValueError: a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give a mean foreground Dice above 0, up to 1")
    right = _Right(threshold)
    return Task("segmentation", dice_and_cross_entropy, right, one_minus_dice, has_foreground, segmented, is_dense=True)


def dice_and_cross_entropy(outputs: Any, labels: Int[Array, "batch *space"]) -> Float[Array, "batch"]:
    """(1 - soft Dice) + the mean cross entropy over pixels.

    Args:
      outputs: class scores (B, *space, classes); or a tuple of such, each at half the resolution of that before (deep
        supervision): then the mean of the losses with weights 1, 1/2, 1/4, ..., each on every other label.
    """
    if isinstance(outputs, tuple):
        weights = [0.5**number for number in range(len(outputs))]
        total = jnp.zeros(labels.shape[0])
        for number, (weight, part) in enumerate(zip(weights, outputs, strict=True)):
            step = 2**number
            total += weight * dice_and_cross_entropy(
                part, labels[(slice(None), *[slice(None, None, step)] * (labels.ndim - 1))]
            )
        return total / sum(weights)
    places = tuple(range(1, labels.ndim))
    return 1 - soft_dice(outputs, labels) + losses.cross_entropy(outputs, labels).mean(places)


def soft_dice(
    outputs: Float[Array, "batch *space classes"], labels: Int[Array, "batch *space"]
) -> Float[Array, "batch"]:
    """Mean over the foreground classes of (2 sum p t + 1) / (sum p + sum t + 1), p the softmax, t the truth."""
    return _dice(jax.nn.softmax(outputs, axis=-1), labels).mean(-1)


def dice(
    outputs: Float[Array, "batch *space classes"], labels: Int[Array, "batch *space"]
) -> Float[Array, "batch foreground"]:
    """Dice of the arg-max prediction, per foreground class, smoothed as `soft_dice`: 1 where a class is neither in the
    truth nor predicted."""
    classes = outputs.shape[-1]
    return _dice(jax.nn.one_hot(losses.predict(outputs), classes, dtype=outputs.dtype), labels)


def one_minus_dice(
    outputs: Float[Array, "batch *space classes"], labels: Int[Array, "batch *space"]
) -> Float[Array, "batch"]:
    """1 - the mean foreground Dice of the prediction; orders attacked images by how wrong they are."""
    return 1 - dice(answer(outputs), labels).mean(-1)


def segmented(outputs: Float[Array, "batch *space classes"]) -> dict[str, jax.Array]:
    """What an evaluation keeps: the class of every pixel, and the mean over pixels of its softmax probability; of NaN
    -1 and 0."""
    kind = jnp.int8 if outputs.shape[-1] <= 128 else jnp.int32
    prediction = losses.predict(outputs)
    confidence = jnp.where(prediction < 0, 0, jnp.max(jax.nn.softmax(outputs, axis=-1), axis=-1))
    return {
        "prediction": prediction.astype(kind),
        "confidence": confidence.mean(tuple(range(1, confidence.ndim))),
    }


@dataclasses.dataclass(frozen=True)
class _Right:
    """(outputs, labels) -> whether the mean foreground Dice is at least the threshold. Hashable: attacks hold it."""

    threshold: float

    def __call__(self, outputs: Any, labels: Int[Array, "batch *space"]) -> Bool[Array, "batch"]:
        outputs = answer(outputs)
        places = tuple(range(1, outputs.ndim))
        broken = jnp.any(jnp.isnan(outputs), axis=places)  # such a model is right about nothing
        right = dice(outputs, labels).mean(-1) >= self.threshold
        return (right | ~has_foreground(outputs, labels)) & ~broken


def has_foreground(outputs: Any, labels: Int[Array, "batch *space"]) -> Bool[Array, "batch"]:
    """Whether the truth has any pixel that is not background."""
    return jnp.any(labels > 0, axis=tuple(range(1, labels.ndim)))


def _dice(shares: Float[Array, "batch *space classes"], labels: Int[Array, "batch *space"]) -> jax.Array:
    if shares.shape[:-1] != labels.shape:
        raise ValueError(
            f"outputs of shape {shares.shape} for labels of shape {labels.shape}; one score a class is needed"
        )
    truth = jax.nn.one_hot(labels, shares.shape[-1], dtype=shares.dtype)
    places = tuple(range(1, labels.ndim))
    common, both = (shares * truth).sum(places), (shares + truth).sum(places)
    return ((2 * common + SMOOTH) / (both + SMOOTH))[:, 1:]
