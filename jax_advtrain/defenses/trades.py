"""TRADES (Zhang et al., ICML 2019, arXiv 1901.08573): clean loss plus how far the prediction can be pushed.

    min_w  mean [ CE(f(x), y) + beta KL(f(x) || f(x')) ],   x' = argmax KL(f(x) || f(x')) in the ball of radius epsilon

x' by projected ascent from x plus Gaussian noise (at x itself the divergence has no gradient); the clean prediction is
a constant there, and not in the loss. beta is the paper's 1 / lambda. Of segmentation CE is the task's loss, and KL the
mean over pixels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_advtrain import attacks
from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.defenses.awp import Perturbed
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows, attack_logits_fn
from jax_advtrain.tasks import answer


@dataclasses.dataclass(frozen=True)
class Trades(Perturbed):
    """The trade-off of clean loss and divergence under attack.

    Attributes:
      num_steps, alpha: 10 steps of epsilon / 4; the authors take 10 of 0.23 epsilon (CIFAR-10), 40 of 0.03 (MNIST).
      beta: weight of the divergence: 6 in the authors' CIFAR-10 runs, 1 in those of MNIST.
      sigma: deviation of the Gaussian noise that the ascent starts with, in pixel units.
      others: as in `AtRadius` and `Perturbed`.
    """

    num_steps: int = 10
    alpha: float = 2.5
    beta: float = 6.0
    sigma: float = 0.001

    def __post_init__(self):
        super().__post_init__()
        check_number("beta", self.beta)
        check_number("sigma", self.sigma, positive=True)

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> jax.Array:
        clean = attack_logits_fn(model, self.attack_bn)(batch.images)
        start = self._near_start(batch, self.sigma)
        return self._ascended(model, batch, attacks.divergence_from(clean), start)

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: jax.Array, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        clean, attacked, batch_stats, metrics = clean_and_attacked(model, batch_stats, batch, crafted)
        divergence = attacks.kl_divergence(answer(attacked), answer(clean))
        losses = model.task.loss(clean, batch.labels) + self.beta * divergence
        return DefenseLoss(losses, rows, batch_stats, {**metrics, "divergence": divergence})


def clean_and_attacked(
    model: Model, batch_stats: Any, batch: Batch, images: jax.Array
) -> tuple[jax.Array, jax.Array, Any, dict[str, Float[Array, "batch"]]]:
    """Outputs on the clean and on the attacked images, the averages moved by both, and the two accuracies."""
    clean, batch_stats = model.forward(batch_stats, batch.images, batch.valid)
    attacked, batch_stats = model.forward(batch_stats, images, batch.valid)
    metrics = {
        "clean_accuracy": model.task.is_right(clean, batch.labels).astype(jnp.float32),
        "attacked_accuracy": model.task.is_right(attacked, batch.labels).astype(jnp.float32),
    }
    return clean, attacked, batch_stats, metrics
