"""Class weights from held-out robust error: a class that is worse than the others weighs more.

    s_k <- smoothing s_k + (1 - smoothing) (1 - robust accuracy_k)
    w_k = 1 + strength (s_k / mean(s) - 1)

and what is descended is sum(w l) / sum(w) over the batch. The weights have mean 1 over the classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain.defenses.base import check_share
from jax_advtrain.defenses.classwise import Classwise, Factors
from jax_advtrain.defenses.protocol import HeldOut


@dataclasses.dataclass(frozen=True)
class Reweight(Classwise):
    """Combines with every method; a class that no held-out sample has shown weighs 1.

    Attributes:
      smoothing: share of the error of before that stays, from 0 to 1; a class's first error counts whole.
      strength: from 0, all classes alike, to 1, weights proportional to the errors. No weight is below 1 - strength.
    """

    smoothing: float = 0.5
    strength: float = 0.5

    def __post_init__(self):
        check_share("smoothing", self.smoothing)
        check_share("strength", self.strength)

    def init_remedy(self, num_classes: int) -> dict[str, jax.Array]:
        return {"weight": jnp.ones(num_classes), "error": jnp.zeros(num_classes), "seen": jnp.zeros(num_classes)}

    def factors(self, remedy: dict[str, jax.Array]) -> Factors:
        return Factors(weight=remedy["weight"])

    def updated(self, remedy: dict[str, np.ndarray], held_out: HeldOut) -> dict[str, np.ndarray]:
        accuracy, before, seen = held_out.robust_accuracy, remedy["error"], remedy["seen"] > 0
        known = ~np.isnan(accuracy)
        now = 1 - np.where(known, accuracy, 0)
        smoothed = np.where(seen, self.smoothing * before + (1 - self.smoothing) * now, now)
        error, seen = np.where(known, smoothed, before), seen | known
        weight, mean = np.ones(len(error)), error[seen].mean() if seen.any() else 0.0
        if mean > 0:
            weight[seen] = 1 + self.strength * (error[seen] / mean - 1)
        return {"weight": weight, "error": error, "seen": seen.astype(float)}
