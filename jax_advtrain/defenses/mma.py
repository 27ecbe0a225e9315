"""Max-margin adversarial training, MMA (Ding et al., ICLR 2020, arXiv 1812.02637): each sample at its own boundary.

    min_w  mean [ clean_weight CE(f(x), y) + (1 - clean_weight) m(x) ]
    m(x) = CE(f(x), y)           where x is wrong
           CE(f(x + d*), y)      where it is right and |d*| < d_max
           0                     else

d* is the shortest perturbation found that fools the network: PGD on the soft logit margin at a radius of the sample's
own (what was found at its last visit), then bisection along its direction: back to x where PGD succeeded, else on as
far as d_max (the paper's AN-PGD). To descend CE at the boundary moves the boundary away: the paper's theorem 2.1.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_advtrain import attacks, margins
from jax_advtrain.attacks import norms
from jax_advtrain.attacks.protocol import check_count, check_number
from jax_advtrain.defenses.base import Method, check_share, own_loss, pgd
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows, attack_logits_fn
from jax_advtrain.tasks import CLASSIFICATION, Task

# Of d_max: the search never begins in a smaller ball, from which no direction could be told.
_LEAST_SHARE = 0.05


class Nearest(NamedTuple):
    """Images at the nearest boundary found, how far that is, and whether there is any within d_max."""

    images: Float[Array, "batch *image"]
    distance: Float[Array, "batch"]
    found: Bool[Array, "batch"]


@dataclasses.dataclass(frozen=True)
class Mma(Method):
    """Training loss at each sample's own boundary.

    Attributes:
      norm: "linf" or "l2" ("l1" too).
      d_max: margins up to this are enlarged, in pixel units of [0, 1] (the paper: above the radius of interest).
      eps_start: radius of a sample's first search.
      num_steps, alpha: PGD steps; step_size = alpha * radius / num_steps.
      refine_steps: bisections.
      clean_weight: weight of the clean loss; the paper takes 1/3.
      attack_loss: what is ascended; "slm" ("lmb" for one logit).
      attack_bn: BatchNorm mode while attacking: "eval" or "train".
    """

    norm: str = "linf"
    d_max: float = 0.4
    eps_start: float = 0.1
    num_steps: int = 10
    alpha: float = 2.5
    refine_steps: int = 10
    clean_weight: float = 1 / 3
    attack_loss: str = "slm"
    attack_bn: str = "eval"

    def __post_init__(self):
        check_share("clean_weight", self.clean_weight)
        check_count("refine_steps", self.refine_steps)
        for name in ("d_max", "eps_start"):
            check_number(name, getattr(self, name), positive=True)
        if isinstance(self.d_max, int | float) and self.eps_start > self.d_max:
            raise ValueError(f"eps_start is {self.eps_start} and d_max {self.d_max}; eps_start must not exceed d_max")
        self._attack(CLASSIFICATION)

    def _attack(self, task: Task) -> attacks.PGD:
        loss = own_loss(task, self.attack_loss)
        return pgd(task, norm=self.norm, epsilon=0.0, num_steps=self.num_steps, alpha=self.alpha, loss=loss)

    def init_rows(self, num_slots: int) -> Rows:
        return {"margin": jnp.full(num_slots, self.eps_start)}

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> Nearest:
        logits_fn = attack_logits_fn(model, self.attack_bn)
        radius = jnp.clip(rows["margin"], _LEAST_SHARE * self.d_max, self.d_max)
        attacked = self._attack(model.task).run(batch.keys, logits_fn, batch.images, batch.labels, epsilon=radius)
        direction = norms.unit_length(attacked.images - batch.images, self.norm)
        reached = norms.length(attacked.images - batch.images, self.norm)

        def along(length):
            return jnp.clip(batch.images + norms.per_sample(length, direction) * direction, 0, 1)

        def fooled(length):
            return ~model.task.is_right(logits_fn(along(length)), batch.labels)

        def halve(_, ends):
            inside, outside = ends
            middle = (inside + outside) / 2
            wrong = fooled(middle)
            return jnp.where(wrong, inside, middle), jnp.where(wrong, middle, outside)

        # Back from where PGD succeeded, else on from where it ended.
        right = attacked.is_right
        inside, outside = jnp.where(right, reached, 0), jnp.where(right, self.d_max, reached)
        found = ~right | fooled(outside)
        _, outside = jax.lax.fori_loop(0, self.refine_steps, halve, (inside, outside))
        images = along(outside)
        return Nearest(images, norms.length(images - batch.images, self.norm), found)

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: Nearest, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        clean, batch_stats = model.forward(batch_stats, batch.images, batch.valid)
        right = model.task.is_right(clean, batch.labels)
        near = crafted.found & (crafted.distance < self.d_max)
        enters = right & near
        attacked, batch_stats = model.forward(batch_stats, crafted.images, batch.valid & enters)
        clean_loss, boundary_loss = (model.task.loss(outputs, batch.labels) for outputs in (clean, attacked))
        own = jnp.where(right, jnp.where(near, boundary_loss, 0), clean_loss)
        losses = self.clean_weight * clean_loss + (1 - self.clean_weight) * own
        margin = rows["margin"]
        # A boundary that was not found within d_max is d_max away.
        moved = margins.update(
            margin, right, crafted.found.astype(jnp.int32), crafted.distance, delta=self.d_max, ceiling=self.d_max
        )
        metrics = {
            "clean_accuracy": right.astype(jnp.float32),
            "attacked_accuracy": (right & ~near).astype(jnp.float32),
            "margin": margin,
            **margins.visit_metrics(margin, moved, self.d_max),
        }
        return DefenseLoss(losses, {"margin": moved}, batch_stats, metrics)

    @property
    def margin_settings(self) -> tuple[float, float]:
        # No expansion by fixed steps; a tenth of the range serves as the unit of the log's `equilibrium`.
        return self.d_max / 10, self.d_max
