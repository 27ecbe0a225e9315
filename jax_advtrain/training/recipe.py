"""What shapes the training program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from jax_advtrain.defenses import Defense
from jax_advtrain.tasks import Task

Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Recipe(NamedTuple):
    """What shapes the training program; all of it static.

    Attributes:
      graphdef: of the network.
      task, defense, optimizer: what is asked, how a batch becomes a loss, how the weights move.
      num_shards: virtual shards of the data; the number of devices divides it.
      seed: of all randomness in training.
      augment: (key a sample, images, labels) -> (images, labels), on device.
      ema_decay: None, or the decay of the averaged weights.
      accumulate: in how many parts a step works through its batch; divides the rows of each shard.
    """

    graphdef: Any
    task: Task
    defense: Defense
    optimizer: optax.GradientTransformation
    num_shards: int
    seed: int
    augment: Augment | None = None
    ema_decay: float | None = None
    accumulate: int = 1
