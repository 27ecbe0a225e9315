"""Fair robust learning (FRL; Xu et al., ICML 2021, arXiv 2010.06121): no class worse than the mean by more than tau.

With e_k the clean error of a class and b_k its boundary error (right on the clean image, wrong on the attacked one):

    lambda_k <- max(0, lambda_k + rate (e_k - mean(e) - tau)),   scaled down to a sum of at most `limit`
    mu_k likewise from b_k
    u_k = 1 + C lambda_k - sum(lambda),   v_k = 1 + C mu_k - sum(mu),   C classes             (re-weight)
    nu_k <- clip(nu_k + margin_rate (b_k - mean(b) - tau), 0, log(most_margin)),   eps_k = eps exp(nu_k)   (re-margin)

TRADES descends u_k CE(f(x), y) + v_k beta KL(f(x) || f(x')); the other methods, whose loss has no such parts, weigh a
class by (u_k + v_k) / 2. The authors' nu_k has no lower bound, so that a class may have to climb for long; here it has.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.defenses.base import check_share
from jax_advtrain.defenses.classwise import Classwise, Factors, filled
from jax_advtrain.defenses.protocol import HeldOut
from jax_advtrain.defenses.trades import Trades


@dataclasses.dataclass(frozen=True)
class FRL(Classwise):
    """Rates as in the authors' code; a class without held-out samples keeps its numbers.

    Of IMA the ceiling `eps_max` and the step `delta` of the margins take the place of epsilon.

    Attributes:
      tau: how much worse than the mean of the classes a class may be, in either error, from 0 to 1.
      rate: of the weights, an epoch; 0 = no re-weighting.
      limit: of the sum of the multipliers, from 0, below 1: no weight falls below 1 - limit.
      margin_rate: of the logarithm of the radius, an epoch; 0 = no re-margining.
      most_margin: the largest factor of a radius, from 1. (The authors: 2.5, of 8/255; of 0.3 that would be too far.)
    """

    tau: float = 0.1
    rate: float = 0.05
    limit: float = 0.5
    margin_rate: float = 0.2
    most_margin: float = 1.5

    def __post_init__(self):
        check_share("tau", self.tau)
        check_number("rate", self.rate)
        check_share("limit", self.limit)
        check_number("margin_rate", self.margin_rate)
        check_number("most_margin", self.most_margin)
        if self.limit >= 1:
            raise ValueError(f"limit is {self.limit}; give a number from 0, and below 1")
        if self.most_margin < 1:
            raise ValueError(f"most_margin is {self.most_margin}; give a number from 1")

    @property
    def most_radius(self) -> float:
        return self.most_margin

    def init_remedy(self, num_classes: int) -> dict[str, jax.Array]:
        return {name: jnp.zeros(num_classes) for name in ("clean", "boundary", "log_radius")}

    def factors(self, remedy: dict[str, jax.Array]) -> Factors:
        clean, boundary = (_weights(remedy[name]) for name in ("clean", "boundary"))
        radius = jnp.exp(remedy["log_radius"])
        if isinstance(self.method, Trades):
            return Factors(radius, beta=boundary / clean, scale=clean)
        return Factors(radius, weight=(clean + boundary) / 2)

    def updated(self, remedy: dict[str, np.ndarray], held_out: HeldOut) -> dict[str, np.ndarray]:
        clean = _excess(1 - held_out.clean_accuracy, self.tau)
        # The attacked part is smaller than the whole: of a class that is fooled more rarely there it would be negative.
        boundary = _excess(np.maximum(held_out.clean_accuracy - held_out.robust_accuracy, 0), self.tau)
        return {
            "clean": _limited(remedy["clean"] + self.rate * clean, self.limit),
            "boundary": _limited(remedy["boundary"] + self.rate * boundary, self.limit),
            "log_radius": np.clip(
                remedy["log_radius"] + self.margin_rate * boundary, 0, math.log(self.most_margin), dtype=float
            ),
        }


def _excess(errors: np.ndarray, tau: float) -> np.ndarray:
    """By how much each class's error exceeds the mean plus tau; 0 where it is not known."""
    return np.where(np.isnan(errors), 0, errors - filled(errors).mean() - tau)


def _limited(multipliers: np.ndarray, limit: float) -> np.ndarray:
    kept = np.maximum(multipliers, 0)
    return kept * min(1.0, limit / kept.sum()) if kept.sum() > 0 else kept


def _weights(multipliers: jax.Array) -> jax.Array:
    """Weights of mean 1."""
    return 1 + len(multipliers) * multipliers - jnp.sum(multipliers)
