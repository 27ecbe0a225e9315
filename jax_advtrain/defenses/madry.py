"""PGD adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083).

min_w  mean CE(f(x'), y),   x' = PGD in the ball of radius epsilon, from a random start
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_advtrain.attacks.losses import as_loss
from jax_advtrain.defenses.awp import Perturbed
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows


@dataclasses.dataclass(frozen=True)
class Madry(Perturbed):
    """Training loss at the PGD point of one radius for all samples, from a random start.

    Attributes:
      attack_loss: name of the loss that is ascended; "task": what training descends, as segmentation needs.
      others: as in `AtRadius` and `Perturbed`.
    """

    attack_loss: str = "ce"

    def __post_init__(self):
        super().__post_init__()
        if self.attack_loss != "task":
            as_loss(self.attack_loss)

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> jax.Array:
        return self._ascended(model, batch, model.task.loss if self.attack_loss == "task" else self.attack_loss)

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: jax.Array, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        return loss_at(model, batch_stats, batch, crafted, rows)


def loss_at(model: Model, batch_stats: Any, batch: Batch, images: jax.Array, rows: Rows) -> DefenseLoss:
    """The task's loss at attacked images, and nothing else."""
    outputs, batch_stats = model.forward(batch_stats, images, batch.valid)
    right = model.task.is_right(outputs, batch.labels)
    metrics = {"attacked_accuracy": right.astype(jnp.float32)}
    return DefenseLoss(model.task.loss(outputs, batch.labels), rows, batch_stats, metrics)
