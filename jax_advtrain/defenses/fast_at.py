"""Fast adversarial training: one step, from a random start.

Fast AT (Wong et al., ICLR 2020, arXiv 2001.03994) starts uniformly in the ball and projects on it:

    x' = clip01(x + P_eps(s - x + 1.25 eps dir(grad CE(s)))),   s = clip01(x + d), d uniform in the ball of radius eps

N-FGSM (de Jorge et al., NeurIPS 2022, arXiv 2202.01181) draws the noise from a larger ball and projects neither on it:

    x' = clip01(s + eps dir(grad CE(s))),                       s = clip01(x + d), d uniform in the ball of radius 2 eps

Beware of catastrophic overfitting: within an epoch robustness to PGD may fall to 0 while that to FGSM rises. Watch the
monitor, and let its attacks have more than one step.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.defenses.base import AtRadius, own_loss, pgd
from jax_advtrain.defenses.madry import loss_at
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows, attack_logits_fn


@dataclasses.dataclass(frozen=True)
class FastAT(AtRadius):
    """Training loss after one step from a random start.

    Attributes:
      alpha: length of the step, in units of epsilon.
      noise: radius of the ball that the start is drawn from, in units of epsilon.
      project: whether the result is brought back into the ball of radius epsilon (into [0, 1] it always is).
      num_steps: 1; the field is there because all methods at a radius have it.
      others: as in `AtRadius`.
    """

    num_steps: int = 1
    alpha: float = 1.25
    noise: float = 1.0
    project: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_number("noise", self.noise)
        if self.num_steps != 1:
            raise ValueError(f"num_steps is {self.num_steps}; this method takes 1 step: give 1, or another method")

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> Float[Array, "batch *image"]:
        radius, logits_fn = self._radius(batch), attack_logits_fn(model, self.attack_bn)
        attack = pgd(
            model.task,
            norm=self.norm,
            epsilon=self.epsilon,
            num_steps=1,
            alpha=self.alpha,
            loss=own_loss(model.task, "ce"),
            project=self.project,
        )
        unit = norms.uniform_in_ball(batch.keys, batch.images, self.norm)
        start = batch.images + norms.per_sample(self.noise * radius, batch.images) * unit
        state = attack.init(batch.keys, logits_fn, batch.images, batch.labels, epsilon=radius, start=start)
        return attack.step(logits_fn, state).iterate

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: jax.Array, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        return loss_at(model, batch_stats, batch, crafted, rows)


@dataclasses.dataclass(frozen=True)
class NFGSM(FastAT):
    """N-FGSM: the same with more noise, a step of epsilon, and no projection; see the module's text."""

    alpha: float = 1.0
    noise: float = 2.0
    project: bool = False
