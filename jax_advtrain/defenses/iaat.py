"""Instance adaptive adversarial training, IAAT (Balaji et al. 2019, arXiv 1910.08051), as the IMA authors run it.

Each sample has a radius E. At a visit it is attacked twice:

    with E + gamma: where it survives, E' = min(E + gamma, eps_max)
    with E:         else where it survives, E' = E; where not, E' = max(E - gamma, eps_min)
    E <- (1 - smoothing) E + smoothing E'

and trained on CE at the attack of radius E (the radius before the visit), or on clean CE where it is wrong on the clean
image.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_advtrain import attacks, margins
from jax_advtrain.attacks import norms
from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.defenses.base import Method, check_share, own_loss, pgd
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows, attack_logits_fn
from jax_advtrain.tasks import CLASSIFICATION, Task


class Attacked(NamedTuple):
    """Images attacked with E, and which of the two attacks the sample survives."""

    images: Float[Array, "batch *image"]
    survives: Bool[Array, "batch"]
    survives_larger: Bool[Array, "batch"]


@dataclasses.dataclass(frozen=True)
class Iaat(Method):
    """PGD-AT with a radius a sample, which follows what the sample survives.

    Attributes:
      norm: "linf", "l2" or "l1".
      eps_start, eps_min, eps_max: first, least and largest radius, in pixel units of [0, 1].
      gamma: by how much larger the second attack is, and the radius moves.
      smoothing: what part of the way to its aim a radius moves (beta in the paper, which takes 0.1).
      num_steps, alpha: PGD steps; step_size = alpha * radius / num_steps.
      attack_bn: BatchNorm mode while attacking: "eval" or "train".
    """

    norm: str = "linf"
    eps_start: float = 0.03
    eps_min: float = 0.0
    eps_max: float = 0.3
    gamma: float = 0.03
    smoothing: float = 0.5
    num_steps: int = 10
    alpha: float = 2.5
    attack_bn: str = "eval"

    def __post_init__(self):
        check_share("smoothing", self.smoothing)
        check_number("gamma", self.gamma, positive=True)
        for name in ("eps_min", "eps_start", "eps_max"):
            check_number(name, getattr(self, name))
        numbers = (self.eps_min, self.eps_start, self.eps_max)
        if all(isinstance(number, int | float) for number in numbers) and list(numbers) != sorted(numbers):
            raise ValueError(f"eps_min, eps_start, eps_max are {numbers}; give numbers that do not fall")
        self._attack(CLASSIFICATION)

    def _attack(self, task: Task) -> attacks.PGD:
        loss = own_loss(task, "ce")
        return pgd(task, norm=self.norm, epsilon=0.0, num_steps=self.num_steps, alpha=self.alpha, loss=loss)

    def init_rows(self, num_slots: int) -> Rows:
        return {"margin": jnp.full(num_slots, self.eps_start)}

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> Attacked:
        attack, logits_fn = self._attack(model.task), attack_logits_fn(model, self.attack_bn)

        def found(radius):
            return attack.run(batch.keys, logits_fn, batch.images, batch.labels, epsilon=radius)

        own, larger = found(rows["margin"]), found(rows["margin"] + self.gamma)
        return Attacked(own.images, own.is_right, larger.is_right)

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: Attacked, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        clean, batch_stats = model.forward(batch_stats, batch.images, batch.valid)
        right = model.task.is_right(clean, batch.labels)
        attacked, batch_stats = model.forward(batch_stats, crafted.images, batch.valid & right)
        losses = norms.select(right, model.task.loss(attacked, batch.labels), model.task.loss(clean, batch.labels))
        margin = rows["margin"]
        moved = margins.adapted(
            margin,
            crafted.survives_larger,
            crafted.survives,
            step=self.gamma,
            smoothing=self.smoothing,
            floor=self.eps_min,
            ceiling=self.eps_max,
        )
        metrics = {
            "clean_accuracy": right.astype(jnp.float32),
            "attacked_accuracy": (right & crafted.survives).astype(jnp.float32),
            "margin": margin,
            **margins.visit_metrics(margin, moved, self.eps_max),
        }
        return DefenseLoss(losses, {"margin": moved}, batch_stats, metrics)

    @property
    def margin_settings(self) -> tuple[float, float]:
        return self.gamma * self.smoothing, self.eps_max
