"""What an attack ascends: losses per sample, never averaged over the batch.

A sum over the batch keeps a sample's gradient independent of the batch it sits in. `labels` always mean the
truth. Multi-class outputs have shape (batch, classes); outputs of shape (batch,) are one-logit binary models,
with class 1 where the logit is positive.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks.protocol import check_number

LossFunction = Callable[[jax.Array, jax.Array], jax.Array]


def _true_logit(logits: jax.Array, labels: jax.Array) -> jax.Array:
    if logits.ndim != labels.ndim + 1:
        raise ValueError(
            f"outputs of shape {logits.shape} for labels of shape {labels.shape}: this loss needs one logit a class "
            "on the last axis (one-logit models: 'bce' or 'lmb')"
        )
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def _others(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logits with the true class at minus infinity."""
    if logits.shape[-1] < 2:
        raise ValueError(f"outputs of shape {logits.shape} hold one class; squeeze one-logit outputs to (batch,)")
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.where(true, -jnp.inf, logits)


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """logsumexp(z) - z_y."""
    return jax.nn.logsumexp(logits, axis=-1) - _true_logit(logits, labels)


def logit_margin(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """max_{j != y} z_j - z_y, the loss of Carlini & Wagner 2017: positive exactly where the sample is wrong."""
    true = _true_logit(logits, labels)
    return jnp.max(_others(logits, labels), axis=-1) - true


def soft_logit_margin(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """logsumexp_{j != y} z_j - z_y: IMA's own; its gradient does not vanish where the model is confident."""
    true = _true_logit(logits, labels)
    return jax.nn.logsumexp(_others(logits, labels), axis=-1) - true


def _check_one_logit(logits: jax.Array, labels: jax.Array) -> None:
    if logits.shape != labels.shape:
        raise ValueError(
            f"outputs of shape {logits.shape} for labels of shape {labels.shape}: this loss needs one logit a label "
            "(models with one logit a class: 'ce', 'lm' or 'slm')"
        )


def binary_cross_entropy(logits: Float[Array, "batch"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """softplus(z) - y z, for one-logit models."""
    _check_one_logit(logits, labels)
    return jax.nn.softplus(logits) - labels * logits


def binary_logit_margin(logits: Float[Array, "batch"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """-(2y - 1) z, for one-logit models."""
    _check_one_logit(logits, labels)
    return jnp.where(labels == 1, -logits, logits)


def is_right(logits: Float[Array, "batch *classes"], labels: Int[Array, "batch"]) -> Bool[Array, "batch"]:
    """Whether the prediction is the label: the arg max, or for one logit its sign (0 predicts class 0).

    A sample whose logits hold NaN is wrong, whatever its label: a broken model is right about nothing.
    """
    predicted = predict(logits)
    if predicted.shape != labels.shape:
        raise ValueError(f"predictions of shape {predicted.shape} for labels of shape {labels.shape}; they must agree")
    whole = ~jnp.isnan(logits) if logits.ndim == 1 else ~jnp.any(jnp.isnan(logits), axis=-1)
    return (predicted == labels) & whole


def predict(logits: Float[Array, "batch *classes"]) -> Int[Array, "batch"]:
    """Class numbers: the arg max of (batch, classes), the sign of (batch,).

    Raises:
      ValueError: outputs of shape (batch, 1), whose arg max would always be 0.
    """
    if logits.ndim == 1:
        return (logits > 0).astype(jnp.int32)
    if logits.shape[-1] == 1:
        raise ValueError(f"outputs of shape {logits.shape} hold one class; squeeze one-logit outputs to (batch,)")
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def classification_margin(logits: Float[Array, "batch *classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """The logit margin of either kind of classifier; orders attacked images by how wrong they are."""
    return binary_logit_margin(logits, labels) if logits.ndim == 1 else logit_margin(logits, labels)


LOSSES: dict[str, LossFunction] = {
    "ce": cross_entropy,
    "lm": logit_margin,
    "slm": soft_logit_margin,
    "bce": binary_cross_entropy,
    "lmb": binary_logit_margin,
}


@partial(jax.tree_util.register_dataclass, data_fields=["temperature"], meta_fields=["function", "per_class"])
@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss as an attack holds it: the function is static, the temperature is a leaf and may be traced.

    Attributes:
      function: (outputs, labels) -> (batch,).
      temperature: None, or what the logits are divided by: a scalar, one a sample (batch,), or one a class.
      per_class: whether `temperature` holds one number a class, looked up by the true label.
    """

    function: LossFunction
    temperature: jax.typing.ArrayLike | None = None
    per_class: bool = False

    def __call__(self, logits: jax.Array, labels: jax.Array, truth: jax.Array | None = None) -> jax.Array:
        """The loss of logits / temperature. `truth` is what `per_class` looks up, where `labels` are targets.

        Raises:
          ValueError: temperatures neither a scalar nor one a sample, or with `per_class` not one a class.
        """
        if self.temperature is None:
            return self.function(logits, labels)
        temperature = jnp.asarray(self.temperature, logits.dtype)
        if self.per_class:
            classes = logits.shape[-1] if logits.ndim > 1 else 2
            if temperature.shape != (classes,):
                raise ValueError(f"temperature has shape {temperature.shape}; give one a class: ({classes},)")
            temperature = temperature[labels if truth is None else truth]
        elif temperature.shape not in ((), logits.shape[:1]):
            raise ValueError(
                f"temperature has shape {temperature.shape}; give a scalar or one a sample: {logits.shape[:1]}"
            )
        if temperature.ndim:
            temperature = temperature.reshape(temperature.shape + (1,) * (logits.ndim - temperature.ndim))
        return self.function(logits / temperature, labels)


def as_loss(loss: str | LossFunction | Loss) -> Loss:
    """A loss from its name ("ce", "lm", "slm", "bce", "lmb"), from a function, or as it is.

    Raises:
      ValueError: unknown name; the message lists the known ones.
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(loss)
    if loss not in LOSSES:
        raise ValueError(f"attack loss {loss!r} is not known; the losses are {', '.join(LOSSES)}")
    return Loss(LOSSES[loss])


def with_temperature(
    loss: str | LossFunction | Loss, temperature: jax.typing.ArrayLike, *, per_class: bool = False
) -> Loss:
    """The loss of logits / temperature: Temperature-PGD (Tian et al. 2021) is PGD on this.

    Args:
      loss: a name, a function, or a `Loss` without a temperature.
      temperature: positive; a scalar, one a sample, or with `per_class` one a class. Below 1 it sharpens the
        softmax, which restores gradients where a regularised model is flat. It is part of the attack only.
      per_class: look the temperature up by the true label.

    Raises:
      ValueError: a concrete temperature that is not positive and finite, or a loss that has one already.

    Example:
      >>> logits, labels = jnp.array([[1.0, 0.0]]), jnp.array([0])
      >>> with_temperature("lm", 1 / 5)(logits, labels).item()
      -5.0
    """
    loss = as_loss(loss)
    if loss.temperature is not None:
        raise ValueError("the loss has a temperature already; give with_temperature one without")
    check_number("temperature", temperature, positive=True)
    return Loss(loss.function, temperature, per_class)
