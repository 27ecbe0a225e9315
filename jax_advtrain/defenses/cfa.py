"""Class-wise calibrated fair adversarial training (CFA; Wei et al., CVPR 2023, arXiv 2303.14460).

    eps_k  = (lambda_1 + robust accuracy_k) eps
    beta_k = (lambda_2 + robust accuracy_k) beta,   a class's losses divided by 1 + beta_k  (methods with such a beta)
    FAWA:  averaged weights, moved at an epoch's end by 1 - fawa_decay of the way, and only if the worst class reached
           fawa_threshold

A class that is hard gets a smaller radius, and one that is easy a larger one. The paper takes the robust accuracies of
the training images; here, as for the other remedies, they are held-out ones. FAWA looks at the weights as they are,
not at the averaged ones. Until an epoch is good enough the averaged weights are the weights.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain.attacks.protocol import check_count, check_number
from jax_advtrain.defenses.base import check_share
from jax_advtrain.defenses.classwise import Classwise, Factors, filled
from jax_advtrain.defenses.mart import Mart
from jax_advtrain.defenses.protocol import HeldOut
from jax_advtrain.defenses.trades import Trades


@dataclasses.dataclass(frozen=True)
class CFA(Classwise):
    """The defaults are those of the authors' code, the threshold that of their README.

    A class without held-out samples counts as the mean of the others.

    Of IMA the ceiling `eps_max` and the step `delta` of the margins take the place of epsilon; its `beta` stays.

    Attributes:
      lambda_1, lambda_2: as above, from 0.
      begin: epochs at the start in which all classes have the same radius and beta.
      fawa: whether weights are averaged; evaluation and checkpoint choice then use the averaged ones.
      fawa_decay: share of the average that stays at an epoch's end, from 0 to 1.
      fawa_threshold: robust accuracy of the worst held-out class, from 0 to 1, below which an epoch is skipped.
    """

    lambda_1: float = 0.5
    lambda_2: float = 0.5
    begin: int = 10
    fawa: bool = True
    fawa_decay: float = 0.88
    fawa_threshold: float = 0.2

    def __post_init__(self):
        check_number("lambda_1", self.lambda_1)
        check_number("lambda_2", self.lambda_2)
        check_count("begin", self.begin, least=0)
        check_share("fawa_decay", self.fawa_decay)
        check_share("fawa_threshold", self.fawa_threshold)

    @property
    def most_radius(self) -> float:
        return max(1.0, self.lambda_1 + 1)

    def init_remedy(self, num_classes: int) -> dict[str, jax.Array]:
        ones = jnp.ones(num_classes)
        return {"radius": ones, "beta": jnp.copy(ones), "started": jnp.zeros(())}

    def factors(self, remedy: dict[str, jax.Array]) -> Factors:
        if not isinstance(self.method, Trades | Mart):
            return Factors(radius=remedy["radius"])
        # Relative to 1 + beta, so that the losses of a class whose beta did not change are those of the method.
        beta = self.method.beta
        return Factors(remedy["radius"], remedy["beta"], scale=(1 + beta) / (1 + beta * remedy["beta"]))

    def updated(self, remedy: dict[str, np.ndarray], held_out: HeldOut) -> dict[str, np.ndarray]:
        started = np.maximum(remedy["started"], float(self._is_fair(held_out)))
        if held_out.epoch < self.begin or not held_out.robust_count.any():
            return {**remedy, "started": started}
        accuracy = filled(held_out.robust_accuracy)
        return {"radius": self.lambda_1 + accuracy, "beta": self.lambda_2 + accuracy, "started": started}

    @property
    def averages_epochs(self) -> bool:
        return self.fawa

    def epoch_share(self, method_state: Any, held_out: HeldOut) -> float:
        if not method_state["remedy"]["started"]:
            return 1.0
        return 1 - self.fawa_decay if self._is_fair(held_out) else 0.0

    def _is_fair(self, held_out: HeldOut) -> bool:
        known = held_out.robust_count > 0
        return bool(known.any() and held_out.robust_accuracy[known].min() >= self.fawa_threshold)
