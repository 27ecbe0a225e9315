"""What methods have in common: defaults of what most do not need, and an ascent at one radius."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_advtrain import attacks
from jax_advtrain.attacks import norms
from jax_advtrain.attacks.losses import Loss, LossFunction
from jax_advtrain.attacks.protocol import check_count, check_number
from jax_advtrain.defenses.protocol import Batch, Model, Rows, attack_logits_fn
from jax_advtrain.tasks import CLASSIFICATION, Task


@dataclasses.dataclass(frozen=True)
class Method:
    """No per-sample state, no method state, no margins."""

    def init_rows(self, num_slots: int) -> Rows:
        return {}

    def init_method_state(self, num_classes: int) -> Any:
        return {}

    @property
    def margin_settings(self) -> tuple[float, float] | None:
        return None


@dataclasses.dataclass(frozen=True)
class AtRadius(Method):
    """PGD at one radius.

    Attributes:
      norm: "linf", "l2" or "l1".
      epsilon: radius in pixel units of [0, 1].
      num_steps: PGD steps.
      alpha: step_size = alpha * epsilon / num_steps.
      attack_bn: BatchNorm mode while attacking: "eval" or "train".
      warmup_epochs: the radius grows in equal parts, one an epoch, and is whole from this epoch on (0 and 1: from the
        first). From random weights a large radius at once may keep training at chance (MNIST at 0.3 does).
    """

    norm: str = "linf"
    epsilon: float = 0.3
    num_steps: int = 20
    alpha: float = 4.0
    attack_bn: str = "eval"
    warmup_epochs: int = 0

    def __post_init__(self):
        check_count("warmup_epochs", self.warmup_epochs, least=0)
        self._attack(CLASSIFICATION, "ce")

    def _attack(self, task: Task, loss: str | Loss | LossFunction) -> attacks.PGD:
        return pgd(task, norm=self.norm, epsilon=self.epsilon, num_steps=self.num_steps, alpha=self.alpha, loss=loss)

    def _radius(self, batch: Batch) -> jax.Array:
        """The radius in the batch's epoch."""
        epsilon = jnp.asarray(self.epsilon, batch.images.dtype)
        if not self.warmup_epochs:
            return epsilon
        return epsilon * jnp.minimum(1, (batch.epoch + 1).astype(epsilon.dtype) / self.warmup_epochs)

    def _ascended(
        self, model: Model, batch: Batch, loss: str | Loss | LossFunction, start: jax.Array | None = None
    ) -> Float[Array, "batch *image"]:
        """The last iterate; a given `start` is taken as it is, unclamped, as the authors of such methods do."""
        attack, logits_fn = self._attack(model.task, loss), attack_logits_fn(model, self.attack_bn)
        state = attack.init(batch.keys, logits_fn, batch.images, batch.labels, epsilon=self._radius(batch))
        if start is not None:
            state = state._replace(iterate=start)
        return jax.lax.fori_loop(0, attack.num_steps, lambda _, state: attack.step(logits_fn, state), state).iterate

    def _near_start(self, batch: Batch, sigma: float) -> Float[Array, "batch *image"]:
        """The images plus Gaussian noise of that deviation, clipped to the ball and not to [0, 1]."""
        noise = norms.normal(batch.keys, batch.images) if batch.unit_start is None else batch.unit_start
        return batch.images + norms.clip_to_ball(sigma * noise, self._radius(batch), self.norm)


def pgd(task: Task, **settings) -> attacks.PGD:
    """`attacks.pgd` on a task's own idea of right and wrong."""
    return attacks.pgd(**settings, is_right=task.is_right, score=task.score)


def own_loss(task: Task, loss: str) -> str | LossFunction:
    """The loss that plays the same part for the task's outputs: "ce", "lm" and "slm" have one-logit twins; where
    labels are dense it is what training descends."""
    if task.is_dense:
        return task.loss
    return {"ce": "bce", "lm": "lmb", "slm": "lmb"}.get(loss, loss) if task.name == "binary" else loss


def check_share(name: str, value: Any) -> None:
    """Raises ValueError where a concrete number is not from 0 to 1."""
    check_number(name, value)
    if isinstance(value, int | float) and value > 1:
        raise ValueError(f"{name} is {value}; give a number from 0 to 1")
