"""PGD adversarial training (Madry et al., ICLR 2018)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_advtrain import attacks
from jax_advtrain.attacks.protocol import check_count
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows, attack_logits_fn
from jax_advtrain.tasks import CLASSIFICATION


@dataclasses.dataclass(frozen=True)
class Madry:
    """Training loss at the PGD point of one radius for all samples, from a random start.

    Attributes:
      norm: "linf", "l2" or "l1".
      epsilon: radius in pixel units of [0, 1].
      num_steps: PGD steps.
      warmup_epochs: the radius grows in equal parts, one an epoch, and is whole from this epoch on (0 and 1: from the
        first). From random weights a large radius at once may keep training at chance (MNIST at 0.3 does).
      alpha: step_size = alpha * epsilon / num_steps.
      attack_loss: name of the loss that is ascended.
      attack_bn: BatchNorm mode while attacking: "eval" or "train".
    """

    norm: str = "linf"
    epsilon: float = 0.3
    num_steps: int = 20
    alpha: float = 4.0
    attack_loss: str = "ce"
    attack_bn: str = "eval"
    warmup_epochs: int = 0

    def __post_init__(self):
        check_count("warmup_epochs", self.warmup_epochs, least=0)
        self._attack(None)

    def _attack(self, model: Model | None) -> attacks.PGD:
        task = CLASSIFICATION if model is None else model.task
        return attacks.pgd(
            norm=self.norm,
            epsilon=self.epsilon,
            num_steps=self.num_steps,
            alpha=self.alpha,
            loss=self.attack_loss,
            is_right=task.is_right,
            score=task.score,
        )

    def init_rows(self, num_slots: int) -> Rows:
        return {}

    def init_method_state(self, num_classes: int) -> Any:
        return {}

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> jax.Array:
        logits_fn = attack_logits_fn(model, self.attack_bn)
        epsilon = self.epsilon
        if self.warmup_epochs:
            epsilon = epsilon * jnp.minimum(1, (batch.epoch + 1) / self.warmup_epochs)
        return self._attack(model)(batch.keys, logits_fn, batch.images, batch.labels, epsilon=epsilon)

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: jax.Array, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        outputs, batch_stats = model.forward(batch_stats, crafted, batch.valid)
        right = model.task.is_right(outputs, batch.labels)
        metrics = {"attacked_accuracy": right.astype(jnp.float32)}
        return DefenseLoss(model.task.loss(outputs, batch.labels), rows, batch_stats, metrics)

    @property
    def margin_settings(self) -> None:
        return None
