"""GAIRAT (Zhang et al., ICLR 2021, arXiv 2010.01736): samples near the boundary weigh more.

    min_w  sum_i w_i CE(f(x'_i), y_i) / sum_i w_i,   x' = PGD from a random start
    w_i = (1 + tanh(lambda + 5 (1 - 2 kappa_i / K))) / 2

kappa_i counts the right ones among the first K of PGD's K + 1 iterates: 0 = wrong from the start, K = never wrong
before the last step. For a burn-in all weigh alike. The sum goes over the whole batch, on all devices.

Beware of its robustness under PGD on cross entropy alone: the authors' model loses most of its gain under AutoAttack.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_advtrain.attacks.protocol import check_count
from jax_advtrain.defenses.base import AtRadius, own_loss
from jax_advtrain.defenses.madry import loss_at
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows, attack_logits_fn


class Counted(NamedTuple):
    """Attacked images, and how many iterates were right."""

    images: Float[Array, "batch *image"]
    kappa: Int[Array, "batch"]


@dataclasses.dataclass(frozen=True)
class Gairat(AtRadius):
    """PGD-AT whose samples are weighted by the number of steps that it takes to cross the boundary.

    Attributes:
      shift: lambda of the weights; -1 in the authors' code, 0 in the paper's formula. Smaller = only the nearest weigh.
      burn_in_epochs: epochs at the start in which all samples weigh alike (the authors: 60 of 100).
      others: as in `AtRadius`.
    """

    num_steps: int = 10
    alpha: float = 2.5
    shift: float = -1.0
    burn_in_epochs: int = 10

    def __post_init__(self):
        super().__post_init__()
        check_count("burn_in_epochs", self.burn_in_epochs, least=0)

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> Counted:
        attack = self._attack(model.task, own_loss(model.task, "ce"))
        logits_fn = attack_logits_fn(model, self.attack_bn)
        state = attack.init(batch.keys, logits_fn, batch.images, batch.labels, epsilon=self._radius(batch))
        state = jax.lax.fori_loop(0, attack.num_steps, lambda _, state: attack.step(logits_fn, state), state)
        return Counted(state.iterate, attack.num_steps - state.hits)

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: Counted, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        found = loss_at(model, batch_stats, batch, crafted.images, rows)
        weights = geometry_weight(crafted.kappa.astype(found.losses.dtype), self.num_steps, self.shift)
        weights = jnp.where(batch.epoch < self.burn_in_epochs, 1, weights)
        return found._replace(weights=weights, metrics={**found.metrics, "steps_to_boundary": crafted.kappa})


def geometry_weight(kappa: Float[Array, "batch"], num_steps: int, shift: jax.typing.ArrayLike) -> Float[Array, "batch"]:
    """(1 + tanh(a)) / 2 of a = shift + 5 (1 - 2 kappa / num_steps), as the sigmoid of 2a: small weights keep digits."""
    return jax.nn.sigmoid(2 * (shift + 5 * (1 - 2 * kappa / num_steps)))
