"""Standard training: cross entropy on clean images."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jax_advtrain.defenses.base import Method
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows


@dataclasses.dataclass(frozen=True)
class Standard(Method):
    """No attack at all; what every defense is compared with."""

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> None:
        return None

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: None, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        outputs, batch_stats = model.forward(batch_stats, batch.images, batch.valid)
        right = model.task.is_right(outputs, batch.labels)
        metrics = {"clean_accuracy": right.astype(jnp.float32)}
        return DefenseLoss(model.task.loss(outputs, batch.labels), rows, batch_stats, metrics)
