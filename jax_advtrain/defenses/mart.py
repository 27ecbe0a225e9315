"""MART (Wang et al., ICLR 2020): misclassified samples weigh more in what keeps predictions together.

    min_w  mean [ BCE(f(x'), y) + beta KL(f(x) || f(x')) (1 - p_y(x)) ]
    BCE(f(x'), y) = -log p_y(x') - log(1 - max_{k != y} p_k(x')),   x' = PGD on CE in the ball of radius epsilon

p is the softmax. beta is the paper's lambda. As in the authors' code the ascent starts from x plus Gaussian noise, and
the weight 1 - p_y(x) is differentiated too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_advtrain import attacks
from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.defenses.awp import Perturbed
from jax_advtrain.defenses.base import own_loss
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows
from jax_advtrain.defenses.trades import clean_and_attacked


@dataclasses.dataclass(frozen=True)
class Mart(Perturbed):
    """Boosted cross entropy under attack, and divergence weighted by how unsure the clean prediction is.

    Its loss is its own, whatever the training loss of the task: label smoothing does not reach it.

    Attributes:
      num_steps, alpha: 10 steps of epsilon / 4, the authors' for CIFAR-10.
      beta: weight of the divergence; the authors take 5 to 6.
      sigma: deviation of the Gaussian noise that the ascent starts with, in pixel units.
      others: as in `AtRadius` and `Perturbed`.
    """

    num_steps: int = 10
    alpha: float = 2.5
    beta: float = 5.0
    sigma: float = 0.001

    def __post_init__(self):
        super().__post_init__()
        check_number("beta", self.beta)
        check_number("sigma", self.sigma)

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> jax.Array:
        return self._ascended(model, batch, own_loss(model.task, "ce"), self._near_start(batch, self.sigma))

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: jax.Array, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        clean, attacked, batch_stats, metrics = clean_and_attacked(model, batch_stats, batch, crafted)
        unsure = -jnp.expm1(-attacks.cross_entropy(attacks.class_logits(clean), batch.labels))  # 1 - p_y
        divergence = attacks.kl_divergence(attacked, clean)
        losses = boosted_cross_entropy(attacked, batch.labels) + self.beta * divergence * unsure
        return DefenseLoss(losses, rows, batch_stats, {**metrics, "divergence": divergence})


def boosted_cross_entropy(
    outputs: Float[Array, "batch *classes"], labels: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """-log p_y - log(1 - max_{k != y} p_k).

    1 - p_k is summed over the other classes as logarithms; the authors add 1e-4 to it instead, which caps the second
    term at 9.2.
    """
    logits = attacks.class_logits(outputs)
    classes = jnp.arange(logits.shape[-1])
    strongest = jnp.argmax(jnp.where(classes == labels[:, None], -jnp.inf, logits), axis=-1)
    others = jnp.where(classes == strongest[:, None], -jnp.inf, logits)
    total = jax.nn.logsumexp(logits, axis=-1)
    return attacks.cross_entropy(logits, labels) + total - jax.nn.logsumexp(others, axis=-1)
