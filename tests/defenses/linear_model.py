"""A linear network and its attacks in plain numpy, float64: a second writing for the methods to be compared with."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain import tasks
from jax_advtrain.attacks import norms
from jax_advtrain.defenses import Batch, Model

IMAGE, CLASSES, COUNT = (4, 4, 1), 3, 12
_RNG = np.random.default_rng(7)
WEIGHTS, BIAS = _RNG.normal(size=(16, CLASSES)), 0.3 * _RNG.normal(size=CLASSES)
IMAGES = _RNG.uniform(0.3, 0.7, (COUNT, *IMAGE))
PREDICTED = np.argmax(IMAGES.reshape(COUNT, -1) @ WEIGHTS + BIAS, axis=1)
# Most are right, the first three are not.
LABELS = np.where(np.arange(COUNT) < 3, (PREDICTED + 1) % CLASSES, PREDICTED)


def batch(epoch: int = 0, unit_start: np.ndarray | None = None) -> Batch:
    """All images; under `jax.enable_x64`, as everything here."""
    return Batch(
        images=jnp.asarray(IMAGES),
        labels=jnp.asarray(LABELS, jnp.int32),
        keys=jax.random.split(jax.random.key(1), COUNT),
        valid=jnp.ones(COUNT, bool),
        epoch=jnp.int32(epoch),
        unit_start=None if unit_start is None else jnp.asarray(unit_start),
    )


def model(scale: float = 1.0) -> Model:
    """The network; `scale` multiplies its logits."""

    def outputs(images):
        return scale * (images.reshape(len(images), -1) @ jnp.asarray(WEIGHTS) + jnp.asarray(BIAS))

    return Model(tasks.CLASSIFICATION, outputs, outputs, lambda stats, images, mask: (outputs(images), stats))


def logits(images) -> np.ndarray:
    return np.asarray(images).reshape(len(images), -1) @ WEIGHTS + BIAS


def softmax(z) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(images) -> np.ndarray:
    return -np.log(softmax(logits(images))[np.arange(len(images)), LABELS])


def right(images) -> np.ndarray:
    return np.argmax(logits(images), axis=1) == LABELS


def slope(images) -> np.ndarray:
    """Gradient of the cross entropy with respect to each image."""
    return ((softmax(logits(images)) - np.eye(CLASSES)[LABELS]) @ WEIGHTS.T).reshape(images.shape)


def length(noise, norm) -> np.ndarray:
    flat = np.asarray(noise).reshape(len(noise), -1)
    return np.abs(flat).max(axis=1) if norm == "linf" else np.sqrt((flat**2).sum(axis=1))


def over_images(values) -> np.ndarray:
    return np.broadcast_to(values, (COUNT,)).reshape(-1, 1, 1, 1)


def in_ball(noise, radius, norm) -> np.ndarray:
    if norm == "linf":
        return np.clip(noise, -over_images(radius), over_images(radius))
    size = length(noise, norm)
    return noise * over_images(np.minimum(1, radius / np.maximum(size, 1e-300)))


def direction(gradient, norm) -> np.ndarray:
    return np.sign(gradient) if norm == "linf" else gradient / over_images(length(gradient, norm))


def random_in_ball(norm) -> np.ndarray:
    """The draws of the unit ball that methods make from the batch's keys."""
    return np.asarray(norms.uniform_in_ball(batch().keys, jnp.asarray(IMAGES), norm))


def ascent(start, radius, step, num_steps, norm) -> list[np.ndarray]:
    """All iterates of projected ascent on the cross entropy, the start included."""
    found = [start]
    for _ in range(num_steps):
        moved = found[-1] + over_images(step) * direction(slope(found[-1]), norm)
        found.append(np.clip(IMAGES + in_ball(moved - IMAGES, radius, norm), 0, 1))
    return found
