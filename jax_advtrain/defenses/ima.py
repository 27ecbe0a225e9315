"""Increasing-Margin Adversarial training (Ma & Liang, arXiv 2005.09147): one radius a sample, grown until it meets the
decision boundary."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_advtrain import attacks, margins
from jax_advtrain.attacks import norms
from jax_advtrain.attacks.boundary import Placement
from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.defenses.base import Method, check_share
from jax_advtrain.defenses.protocol import Batch, DefenseLoss, Model, Rows, attack_logits_fn
from jax_advtrain.tasks import CLASSIFICATION

# The reference never starts from a smaller box than this, however small the margin.
SMALLEST_START = 1e-3


@dataclasses.dataclass(frozen=True)
class IMA(Method):
    """IMA for classification; the defaults are those of the published classification runs.

    Attributes:
      norm: "linf", "l2" or "l1".
      eps_max: ceiling of the margins, in pixel units of [0, 1].
      delta: first margin, and what it expands by at a visit that never crosses the boundary.
      num_steps, alpha: PGD steps; step_size = alpha * margin / num_steps.
      attack_loss: what is ascended ("slm", "ce"; "bce", "lmb" for one logit; "task": what training descends, which is
        what segmentation needs). Training always descends the task's loss.
      beta: weight of the adversarial part; 0 means no attack.
      beta_position: which parts beta weighs, 0 to 3 (see `_weights`).
      placement, refine_steps, inside_is_clean, outside_is_final, refine_unhit: as in `attacks.on_boundary`.
      only_hit: train only on attacked images of samples that were hit; else on those of all right samples.
      start: "random" or "clean".
      freeze_epoch: from this epoch on margins no longer change; None = never.
      attack_bn: BatchNorm mode while attacking: "eval", or "train" as the reference.
      compact: bisect hit samples only (not used where the attack sees batch statistics).
    """

    norm: str = "linf"
    eps_max: float = 0.3
    delta: float = 0.03
    num_steps: int = 20
    alpha: float = 4.0
    attack_loss: str = "slm"
    beta: float = 0.5
    beta_position: int = 1
    placement: Placement = "boundary"
    refine_steps: int = 10
    inside_is_clean: bool = True
    outside_is_final: bool = True
    refine_unhit: bool = False
    only_hit: bool = True
    start: str = "random"
    freeze_epoch: int | None = None
    attack_bn: str = "eval"
    compact: bool = True

    def __post_init__(self):
        check_number("delta", self.delta, positive=True)
        if all(isinstance(number, int | float) for number in (self.delta, self.eps_max)) and not (
            math.isfinite(self.eps_max) and self.delta <= self.eps_max
        ):
            raise ValueError(f"delta is {self.delta} and eps_max {self.eps_max}; delta must not exceed eps_max")
        check_share("beta", self.beta)
        if self.beta_position not in (0, 1, 2, 3):
            raise ValueError(f"beta_position is {self.beta_position}; give 0, 1, 2 or 3")
        self._attack(None)

    def _attack(self, model: Model | None) -> attacks.OnBoundary:
        task = CLASSIFICATION if model is None else model.task
        ascent = attacks.pgd(
            norm=self.norm,
            epsilon=self.delta,
            num_steps=self.num_steps,
            alpha=self.alpha,
            loss=task.loss if self.attack_loss == "task" else self.attack_loss,
            start=self.start,
            is_right=task.is_right,
            score=task.score,
        )
        return attacks.on_boundary(
            ascent,
            refine_steps=self.refine_steps,
            placement=self.placement,
            inside_is_clean=self.inside_is_clean,
            outside_is_final=self.outside_is_final,
            refine_unhit=self.refine_unhit,
            compact=self.compact and self.attack_bn == "eval" and not self.refine_unhit,
        )

    def init_rows(self, num_slots: int) -> Rows:
        return {"margin": jnp.full(num_slots, self.delta)}

    def _start(self, batch: Batch, margin: jax.Array) -> jax.Array:
        """The reference's random start: the box, clipped to the ball, then to [0, 1]."""
        if self.start == "clean":
            return batch.images
        unit = norms.uniform_in_box(batch.keys, batch.images) if batch.unit_start is None else batch.unit_start
        radius = jnp.maximum(margin, SMALLEST_START)
        return jnp.clip(batch.images + norms.clipped_box(unit, radius, self.norm), 0, 1)

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> attacks.BoundaryResult | None:
        """Attacks the whole batch, wrong samples too, each with its own margin as radius."""
        if isinstance(self.beta, int | float) and self.beta == 0:
            return None
        margin = rows["margin"]
        return self._attack(model).run(
            batch.keys,
            attack_logits_fn(model, self.attack_bn),
            batch.images,
            batch.labels,
            epsilon=margin,
            start=self._start(batch, margin),
        )

    def _weights(self, right: jax.Array) -> tuple[jax.Array, float]:
        """Weights of a sample's clean loss and of its adversarial one, by `beta_position`."""
        beta = self.beta
        wrong_weight, right_weight, adversarial = {
            0: (1 - beta, beta / 2, beta / 2),
            1: (1 - beta, 1 - beta, beta),
            2: (1.0, 1 - beta, beta),
            3: (1 - beta, 0.0, beta),
        }[self.beta_position]
        return jnp.where(right, right_weight, wrong_weight), adversarial

    def loss(
        self,
        model: Model,
        batch_stats: Any,
        batch: Batch,
        crafted: attacks.BoundaryResult | None,
        rows: Rows,
        method_state: Any,
    ) -> DefenseLoss:
        return self.loss_and_part(model, batch_stats, batch, crafted, rows)[0]

    def loss_and_part(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: attacks.BoundaryResult | None, rows: Rows
    ) -> tuple[DefenseLoss, Bool[Array, "batch"]]:
        """The loss, and which samples take part (`Task.takes_part`), for methods with another update of margins."""
        margin = rows["margin"]
        outputs, batch_stats = model.forward(batch_stats, batch.images, batch.valid)
        clean = model.task.loss(outputs, batch.labels)
        right = model.task.is_right(outputs, batch.labels)
        takes_part = model.task.takes_part(outputs, batch.labels)  # of classification: those that are right
        clean_weight, adversarial_weight = self._weights(takes_part)
        losses = clean_weight * clean
        if crafted is None:
            hits, estimate = jnp.zeros_like(right, dtype=jnp.int32), margin
        else:
            hits, estimate = crafted.hits, (margin + crafted.distance) / 2
            enters = takes_part & (hits > 0) if self.only_hit else takes_part
            attacked, batch_stats = model.forward(batch_stats, crafted.images, batch.valid & enters)
            adversarial = model.task.loss(attacked, batch.labels)
            losses = losses + adversarial_weight * jnp.where(enters, adversarial, 0)
        moved = margins.update(margin, takes_part, hits, estimate, delta=self.delta, ceiling=self.eps_max)
        if self.freeze_epoch is not None:
            moved = jnp.where(batch.epoch >= self.freeze_epoch, margin, moved)
        metrics = {
            "clean_accuracy": right.astype(jnp.float32),
            "attacked_accuracy": (right & (hits == 0)).astype(jnp.float32),
            "margin": margin,
            **margins.visit_metrics(margin, moved, self.eps_max),
        }
        return DefenseLoss(losses, {"margin": moved}, batch_stats, metrics), takes_part

    @property
    def margin_settings(self) -> tuple[float, float]:
        return self.delta, self.eps_max
