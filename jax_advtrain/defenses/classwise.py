"""Care for the most vulnerable class: a method made from another, whose numbers follow held-out accuracies of classes.

A remedy says by what each class's radius, weights and losses are multiplied, and changes that at the end of each epoch
in which the monitor ran; here those factors meet the method. They lie in the method state, and so in the checkpoints.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_advtrain.defenses.base import AtRadius
from jax_advtrain.defenses.ima import IMA
from jax_advtrain.defenses.protocol import Batch, Defense, DefenseLoss, HeldOut, Model, Rows


class Factors(NamedTuple):
    """By what numbers of the method are multiplied, class by class; None = all classes alike.

    Attributes:
      radius: of `epsilon`; of IMA, its ceiling `eps_max` and its step `delta`.
      beta: of `beta` in the loss.
      scale: of the losses.
      weight: of the weights in the weighted mean that is descended.
    """

    radius: Float[Array, "classes"] | None = None
    beta: Float[Array, "classes"] | None = None
    scale: Float[Array, "classes"] | None = None
    weight: Float[Array, "classes"] | None = None


@dataclasses.dataclass(frozen=True)
class Classwise(abc.ABC):
    """A method with a remedy around it; a subclass has `init_remedy`, `factors` and `updated`.

    Attributes:
      method: the method that it is made from.
    """

    method: Defense

    @abc.abstractmethod
    def init_remedy(self, num_classes: int) -> dict[str, jax.Array]:
        """The remedy's own state before the first epoch."""

    @abc.abstractmethod
    def factors(self, remedy: dict[str, jax.Array]) -> Factors:
        """What follows from that state; jit-able."""

    @abc.abstractmethod
    def updated(self, remedy: dict[str, np.ndarray], held_out: HeldOut) -> dict[str, np.ndarray]:
        """That state after an epoch; numpy, on the host."""

    @property
    def most_radius(self) -> float:
        """The largest factor that a class's radius may get."""
        return 1.0

    def init_rows(self, num_slots: int) -> Rows:
        return self.method.init_rows(num_slots)

    def init_method_state(self, num_classes: int) -> Any:
        return {"method": self.method.init_method_state(num_classes), "remedy": self.init_remedy(num_classes)}

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> Any:
        method, rows = with_radius(self.method, self.factors(method_state["remedy"]), batch, rows)
        return method.craft(model, batch, rows, method_state["method"])

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: Any, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        factors = self.factors(method_state["remedy"])
        method, rows = with_radius(self.method, factors, batch, rows)
        if factors.beta is not None:
            method = dataclasses.replace(method, beta=method.beta * factors.beta[batch.labels])
        found = method.loss(model, batch_stats, batch, crafted, rows, method_state["method"])
        if factors.scale is not None:
            found = found._replace(losses=found.losses * factors.scale[batch.labels])
        if factors.weight is not None:
            weights = factors.weight[batch.labels].astype(found.losses.dtype)
            found = found._replace(weights=weights if found.weights is None else weights * found.weights)
        return found

    def epoch_end(self, method_state: Any, held_out: HeldOut) -> Any:
        inner = getattr(self.method, "epoch_end", None)
        return {
            "method": method_state["method"] if inner is None else inner(method_state["method"], held_out),
            "remedy": self.updated(method_state["remedy"], held_out),
        }

    @property
    def margin_settings(self) -> tuple[float, float] | None:
        """The ceiling is the highest that a class may get."""
        settings = self.method.margin_settings
        return None if settings is None else (settings[0], settings[1] * self.most_radius)


def has_radius(method: type) -> bool:
    """Whether a method's radius can be another one for each class: one `epsilon`, or a ceiling of margins."""
    return issubclass(method, AtRadius | IMA)


def with_radius(method: Any, factors: Factors, batch: Batch, rows: Rows) -> tuple[Any, Rows]:
    """The method with each sample's own radius. Margins that a falling ceiling left above it come down at once."""
    if factors.radius is None:
        return method, rows
    factor = factors.radius[batch.labels]
    if isinstance(method, AtRadius):
        return dataclasses.replace(method, epsilon=method.epsilon * factor), rows
    method = dataclasses.replace(method, eps_max=method.eps_max * factor, delta=method.delta * factor)
    return method, {**rows, "margin": jnp.minimum(rows["margin"], method.eps_max)}


def filled(values: np.ndarray) -> np.ndarray:
    """(classes,) held-out shares, those of classes without a sample replaced by the mean of the others (0 of none)."""
    known = ~np.isnan(values)
    return np.where(known, values, values[known].mean() if known.any() else 0.0)
