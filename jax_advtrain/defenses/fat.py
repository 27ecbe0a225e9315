"""Friendly adversarial training, FAT (Zhang et al., ICML 2020, arXiv 2002.11242): attacks that stop early.

    min_w  mean CE(f(x'), y),   x' = PGD-K-tau: the PGD iterate at which the sample is wrong for the (tau + 1)-th time,
                                or the last one

tau = 0 stops at the first iterate beyond the boundary, tau = K is PGD-AT. The authors let tau grow during training.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.protocol import check_count
from jax_advtrain.defenses.base import AtRadius, own_loss
from jax_advtrain.defenses.madry import loss_at
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows, attack_logits_fn


@dataclasses.dataclass(frozen=True)
class Fat(AtRadius):
    """Training loss where early-stopped PGD ends.

    Attributes:
      tau: how many wrong iterates a sample is still moved on from.
      tau_epochs: epochs from which tau is larger by one, by two, ... (the authors', of 100 epochs: 50, 90).
      others: as in `AtRadius`; the steps of stopped samples are run all the same, so it costs as much as PGD-AT.
    """

    num_steps: int = 10
    alpha: float = 2.5
    tau: int = 0
    tau_epochs: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        check_count("tau", self.tau, least=0)
        for epoch in self.tau_epochs:
            check_count("tau_epochs holds", epoch, least=0)

    def _tau(self, epoch: Int[Array, ""]) -> Int[Array, ""]:
        return self.tau + jnp.sum(epoch >= jnp.array(self.tau_epochs, jnp.int32))

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> Float[Array, "batch *image"]:
        attack = self._attack(model.task, own_loss(model.task, "ce"))
        logits_fn, tau = attack_logits_fn(model, self.attack_bn), self._tau(batch.epoch)
        state = attack.init(batch.keys, logits_fn, batch.images, batch.labels, epsilon=self._radius(batch))

        def step(_, carried):
            state, stopped = carried
            following, fooled = attack.advance(logits_fn, state)
            stopped = stopped | (fooled & (state.hits >= tau))
            return following._replace(iterate=norms.select(stopped, state.iterate, following.iterate)), stopped

        state, _ = jax.lax.fori_loop(0, attack.num_steps, step, (state, state.hits > 0))
        return state.iterate

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: jax.Array, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        return loss_at(model, batch_stats, batch, crafted, rows)
