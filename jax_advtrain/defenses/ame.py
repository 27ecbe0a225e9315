"""Adaptive margin evolution, AME (Ma & Liang 2023, the follow-up of IMA): margins without a ceiling.

As IMA (see ima.py for the attack, the placement and the loss), but for the update of a sample's margin E at its visit:

    right and hit:        E <- |x_adv - x|, the distance itself, not its mean with E
    right and never hit:  E <- E + delta 0.9^floor(E / delta) / (1 + max |dL/dx| at x_adv)

The gradient counts for samples that enter the adversarial loss. Samples that expand were never hit, so under `only_hit`
it would count for none of them: by default all right samples enter.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_advtrain import attacks, margins
from jax_advtrain.attacks import norms
from jax_advtrain.attacks.boundary import Placement
from jax_advtrain.defenses.base import Method
from jax_advtrain.defenses.ima import IMA
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows, attack_logits_fn

# Where the histogram of the margins ends, in deltas: a margin that expands at every visit is there after 211 of them.
_SHOWN_DELTAS = 30


class Placed(NamedTuple):
    """What IMA's attack found, and how steep the loss is at the placed images."""

    boundary: attacks.BoundaryResult
    steepness: Float[Array, "batch"]


@dataclasses.dataclass(frozen=True)
class Ame(Method):
    """IMA with margins that no ceiling holds.

    Attributes:
      delta: first margin, and the largest expansion at a visit, in pixel units of [0, 1].
      others: as in `IMA`; there is no eps_max.
    """

    norm: str = "linf"
    delta: float = 0.03
    num_steps: int = 20
    alpha: float = 4.0
    attack_loss: str = "slm"
    beta: float = 0.5
    placement: Placement = "boundary"
    refine_steps: int = 10
    only_hit: bool = False
    attack_bn: str = "eval"
    compact: bool = True

    def __post_init__(self):
        _ = self._ima  # checks all the fields

    @property
    def _ima(self) -> IMA:
        # Its own update of the margins, and so its ceiling, is not used.
        return IMA(eps_max=self.delta, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def init_rows(self, num_slots: int) -> Rows:
        return {"margin": jnp.full(num_slots, self.delta)}

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> Placed | None:
        boundary = self._ima.craft(model, batch, rows, method_state)
        if boundary is None:
            return None
        logits_fn = attack_logits_fn(model, self.attack_bn)

        def total(images):
            return jnp.sum(model.task.loss(logits_fn(images), batch.labels))

        gradient, _ = norms.finite(jax.grad(total)(boundary.images))
        return Placed(boundary, norms.length(gradient, "linf"))

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: Placed | None, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        boundary = None if crafted is None else crafted.boundary
        found, takes_part = self._ima.loss_and_part(model, batch_stats, batch, boundary, rows)
        margin = rows["margin"]
        if crafted is None:
            hits, distance, steepness = jnp.zeros_like(takes_part, jnp.int32), margin, jnp.zeros_like(margin)
        else:
            hits, distance = crafted.boundary.hits, crafted.boundary.distance
            enters = takes_part & (hits > 0) if self.only_hit else takes_part
            steepness = jnp.where(enters, crafted.steepness, 0)
        expansion = margins.discounted_expansion(margin, self.delta, steepness)
        moved = margins.update(margin, takes_part, hits, distance, delta=expansion, ceiling=jnp.inf)
        metrics = {**found.metrics, **margins.visit_metrics(margin, moved, jnp.inf)}
        return found._replace(rows={"margin": moved}, metrics=metrics)

    @property
    def margin_settings(self) -> tuple[float, float]:
        return self.delta, _SHOWN_DELTAS * self.delta
