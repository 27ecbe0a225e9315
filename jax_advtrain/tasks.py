"""What is asked of a model: how it is trained, and when it is right.

Attacks, margins and the training loop take these functions as arguments, so that one boundary search and one loop
serve every task.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_advtrain.attacks import losses


def classified(outputs: jax.Array) -> dict[str, jax.Array]:
    """What an evaluation keeps of a classifier's outputs: the class, and its softmax probability; of NaN -1 and 0."""
    prediction = losses.predict(outputs)
    confidence = jnp.max(jax.nn.softmax(losses.class_logits(outputs)), axis=-1)
    return {"prediction": prediction, "confidence": jnp.where(prediction < 0, 0, confidence)}


class Task(NamedTuple):
    """The functions of a task; all but `reported` take (outputs, labels) and give one value a sample.

    Attributes:
      name: what the task is called.
      loss: what training descends.
      is_right: whether the model does what is asked.
      score: how wrong it is; orders attacked images.
      takes_part: on the clean image, whether the sample's margin moves and its attacked image is trained on.
      reported: outputs -> what an evaluation keeps of them: "prediction" (batch, *dense) and "confidence" (batch,).
      is_dense: whether labels are one a pixel.
    """

    name: str
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    is_right: Callable[[jax.Array, jax.Array], jax.Array]
    score: Callable[[jax.Array, jax.Array], jax.Array]
    takes_part: Callable[[jax.Array, jax.Array], jax.Array]
    reported: Callable[[jax.Array], dict[str, jax.Array]] = classified
    is_dense: bool = False


CLASSIFICATION = Task(
    "classification", losses.cross_entropy, losses.is_right, losses.classification_margin, losses.is_right
)
BINARY = Task("binary", losses.binary_cross_entropy, losses.is_right, losses.classification_margin, losses.is_right)


def answer(outputs: Any) -> jax.Array:
    """What a network answers: its outputs; under deep supervision (a tuple in training) those of full resolution."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def for_outputs(num_outputs: int) -> Task:
    """Classification for two or more logits, one-logit binary classification for one."""
    return BINARY if num_outputs == 1 else CLASSIFICATION


def smoothed(task: Task, smoothing: float) -> Task:
    """The task with label smoothing in its training loss; it is right, and attacked, as before.

    The loss is that of targets (1 - smoothing) one-hot + smoothing / classes (Szegedy et al. 2016).

    Raises:
      ValueError: smoothing outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing is {smoothing}; give a number from 0, and below 1")
    return task._replace(loss=partial(_smoothed, smoothing, task.loss)) if smoothing else task


def _smoothed(smoothing: float, loss: Callable, outputs: jax.Array, labels: jax.Array) -> jax.Array:
    uniform = -jnp.mean(jax.nn.log_softmax(losses.class_logits(outputs), axis=-1), axis=-1)
    return (1 - smoothing) * loss(outputs, labels) + smoothing * uniform
