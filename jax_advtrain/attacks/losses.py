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
from jax_advtrain.attacks.pytrees import register_dataclass

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
    """logsumexp(z) - z_y, written as softplus of the soft logit margin.

    As a difference its gradient loses the part of z_y where the model is sure: p_y - 1 is 0 in float32 from a margin of
    17 on, and what is left leads elsewhere.
    """
    return jax.nn.softplus(soft_logit_margin(logits, labels))


def logit_margin(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """max_{j != y} z_j - z_y, the loss of Carlini & Wagner 2017: positive exactly where the sample is wrong."""
    true = _true_logit(logits, labels)
    return jnp.max(_others(logits, labels), axis=-1) - true


def soft_logit_margin(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """logsumexp_{j != y} z_j - z_y: IMA's own; its gradient does not vanish where the model is confident."""
    true = _true_logit(logits, labels)
    # A finite least, or the gradient would be NaN where a model gives -inf to every other class.
    others = jnp.maximum(_others(logits, labels), jnp.finfo(logits.dtype).min / 2)
    return jax.nn.logsumexp(others, axis=-1) - true


def difference_of_logits_ratio(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """DLR (Croce & Hein 2020): (max_{j != y} z_j - z_y) / (z_(1) - z_(3)), z_(k) the k-th largest logit.

    The same for z and c z + d: scaling the logits hides nothing from it. Needs 3 classes.
    """
    if logits.ndim < 2 or logits.shape[-1] < 3:
        raise ValueError(f"outputs of shape {logits.shape}: the loss 'dlr' needs 3 classes; with fewer use 'lm'")
    largest = jax.lax.top_k(logits, 3)[0]
    return logit_margin(logits, labels) / (largest[..., 0] - largest[..., 2] + _SMALLEST_SPREAD)


def targeted_difference_of_logits_ratio(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"], targets: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """Targeted DLR (Croce & Hein 2020): (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2). Needs 4 classes."""
    if logits.ndim < 2 or logits.shape[-1] < 4:
        raise ValueError(
            f"outputs of shape {logits.shape}: the loss 'dlr' with targets needs 4 classes; with fewer use 'lm'"
        )
    largest = jax.lax.top_k(logits, 4)[0]
    spread = largest[..., 0] - (largest[..., 2] + largest[..., 3]) / 2
    return (_true_logit(logits, targets) - _true_logit(logits, labels)) / (spread + _SMALLEST_SPREAD)


_SMALLEST_SPREAD = 1e-12  # the original's, against a division by zero where the largest logits are equal


def _check_one_logit(logits: jax.Array, labels: jax.Array) -> None:
    if logits.shape != labels.shape:
        raise ValueError(
            f"outputs of shape {logits.shape} for labels of shape {labels.shape}: this loss needs one logit a label "
            "(models with one logit a class: 'ce', 'lm' or 'slm')"
        )


def binary_cross_entropy(logits: Float[Array, "batch"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """softplus(z) - y z, for one-logit models; written so that a model sure of class 1 has a gradient as well as one
    sure of class 0."""
    return jax.nn.softplus(binary_logit_margin(logits, labels))


def binary_logit_margin(logits: Float[Array, "batch"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """-(2y - 1) z, for one-logit models."""
    _check_one_logit(logits, labels)
    return jnp.where(labels == 1, -logits, logits)


def is_right(logits: Float[Array, "batch *classes"], labels: Int[Array, "batch"]) -> Bool[Array, "batch"]:
    """Whether the prediction is the label: the arg max, or for one logit its sign (0 predicts class 0).

    A sample whose logits hold NaN is wrong, whatever its label (see `predict`).
    """
    predicted = predict(logits)
    if predicted.shape != labels.shape:
        raise ValueError(f"predictions of shape {predicted.shape} for labels of shape {labels.shape}; they must agree")
    return predicted == labels


def predict(logits: Float[Array, "batch *classes"]) -> Int[Array, "batch"]:
    """Class numbers: the arg max of (batch, classes), the sign of (batch,); -1 where the logits hold NaN, so that a
    broken model is right about nothing.

    Raises:
      ValueError: outputs of shape (batch, 1), whose arg max would always be 0.
    """
    if logits.ndim == 1:
        return jnp.where(jnp.isnan(logits), -1, (logits > 0).astype(jnp.int32))
    if logits.shape[-1] == 1:
        raise ValueError(f"outputs of shape {logits.shape} hold one class; squeeze one-logit outputs to (batch,)")
    return jnp.where(jnp.isnan(logits).any(axis=-1), -1, jnp.argmax(logits, axis=-1).astype(jnp.int32))


def class_logits(outputs: Float[Array, "batch *classes"]) -> Float[Array, "batch classes"]:
    """Logits of all classes: outputs (batch,) of a one-logit model count as [0, z]; others stay as they are."""
    return jnp.stack([jnp.zeros_like(outputs), outputs], axis=-1) if outputs.ndim == 1 else outputs


def kl_divergence(
    outputs: Float[Array, "batch *classes"], reference: Float[Array, "batch *classes"]
) -> Float[Array, "batch"]:
    """KL(softmax(reference) || softmax(outputs)) from logits; of one-logit models that of their two classes, of dense
    outputs (batch, *space, classes) the mean over their places.

    Written with logarithms of softmaxes alone, so that neither it nor its gradient is NaN where a probability
    underflows to 0 (p log p by itself gives 0 * -inf there). Differentiable with respect to both.
    """
    log_p, log_q = (jax.nn.log_softmax(class_logits(logits), axis=-1) for logits in (reference, outputs))
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return divergence if divergence.ndim == 1 else divergence.mean(tuple(range(1, divergence.ndim)))


def classification_margin(logits: Float[Array, "batch *classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """The logit margin of either kind of classifier; orders attacked images by how wrong they are."""
    return binary_logit_margin(logits, labels) if logits.ndim == 1 else logit_margin(logits, labels)


LOSSES: dict[str, LossFunction] = {
    "ce": cross_entropy,
    "lm": logit_margin,
    "slm": soft_logit_margin,
    "dlr": difference_of_logits_ratio,
    "bce": binary_cross_entropy,
    "lmb": binary_logit_margin,
}

# Of log(1 + e^m) an attack ascends m where there is a temperature: z / T soon leaves no gradient in float32.
_MARGINS: dict[LossFunction, LossFunction] = {
    cross_entropy: soft_logit_margin,
    binary_cross_entropy: binary_logit_margin,
}

# How a loss aims at a target where that is more than to descend the loss of the target.
_TARGETED: dict[LossFunction, Callable[..., jax.Array]] = {
    difference_of_logits_ratio: targeted_difference_of_logits_ratio
}


@partial(register_dataclass, data_fields=["temperature", "reference"], meta_fields=["function", "per_class"])
@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss as an attack holds it: the function is static, the numbers are leaves and may be traced.

    Attributes:
      function: (outputs, labels) -> (batch,); (outputs, reference) -> (batch,) where there is a reference.
      temperature: None, or what the logits are divided by: a scalar, one a sample (batch,), or one a class.
      per_class: whether `temperature` holds one number a class, looked up by the true label.
      reference: None, or what the outputs are compared with in place of the labels, one row a sample.
    """

    function: LossFunction
    temperature: jax.typing.ArrayLike | None = None
    per_class: bool = False
    reference: jax.Array | None = None

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss of logits / temperature.

        Raises:
          ValueError: temperatures neither a scalar nor one a sample, or with `per_class` not one a class; outputs
            unlike the reference.
        """
        if self.reference is None:
            return self.function(self._tempered(logits, labels), labels)
        if self.reference.shape != logits.shape:
            raise ValueError(f"outputs of shape {logits.shape} for a reference of shape {self.reference.shape}")
        return self.function(logits, self.reference)

    def ascended(self, logits: jax.Array, labels: jax.Array, targets: jax.Array | None) -> jax.Array:
        """What an attack ascends: the loss, or where there are targets what leads to these. `labels` are the truth.

        Of cross entropy with a temperature it is the soft logit margin at that temperature, which grows as the loss
        does: the same direction at each image, and one that does not underflow. (Averages over several draws of a
        stochastic model, and optax optimizers, see its size too.)

        Raises:
          ValueError: as the call; targets beside a reference.
        """
        if self.reference is not None:
            if targets is not None:
                raise ValueError("a loss that compares with reference outputs knows no targets; leave them out")
            return self(logits, labels)
        logits = self._tempered(logits, labels)
        if targets is None:
            function = self.function if self.temperature is None else _MARGINS.get(self.function, self.function)
            return function(logits, labels)
        if self.function in _TARGETED:
            return _TARGETED[self.function](logits, labels, targets)
        return -self.function(logits, targets)

    def _tempered(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        if self.temperature is None:
            return logits
        temperature = jnp.asarray(self.temperature, logits.dtype)
        if self.per_class:
            classes = logits.shape[-1] if logits.ndim > 1 else 2
            if temperature.shape != (classes,):
                raise ValueError(f"temperature has shape {temperature.shape}; give one a class: ({classes},)")
            temperature = temperature[labels]
        elif temperature.shape not in ((), logits.shape[:1]):
            raise ValueError(
                f"temperature has shape {temperature.shape}; give a scalar or one a sample: {logits.shape[:1]}"
            )
        if temperature.ndim:
            temperature = temperature.reshape(temperature.shape + (1,) * (logits.ndim - temperature.ndim))
        return logits / temperature


def as_loss(loss: str | LossFunction | Loss) -> Loss:
    """A loss from its name (a key of `LOSSES`), from a function, or as it is.

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
      loss: a name, a function, or a `Loss` without a temperature or a reference.
      temperature: positive; a scalar, one a sample, or with `per_class` one a class. Below 1 it sharpens the
        softmax, which restores gradients where a regularised model is flat. It is part of the attack only. As it goes
        to 0 the ascents of "ce" and "slm" become that of "lm".
      per_class: look the temperature up by the true label.

    Raises:
      ValueError: a concrete temperature that is not positive and finite, or a loss that has one, or a reference.

    Example:
      >>> logits, labels = jnp.array([[1.0, 0.0]]), jnp.array([0])
      >>> with_temperature("lm", 1 / 5)(logits, labels).item()
      -5.0
    """
    loss = as_loss(loss)
    if loss.temperature is not None:
        raise ValueError("the loss has a temperature already; give with_temperature one without")
    if loss.reference is not None:
        raise ValueError("a loss that compares with reference outputs takes no temperature; divide the logits yourself")
    check_number("temperature", temperature, positive=True)
    return Loss(loss.function, temperature, per_class)


def divergence_from(reference: Float[Array, "batch *classes"]) -> Loss:
    """KL(reference || outputs), both logits: what TRADES ascends, with the clean logits as reference.

    The reference is a leaf: logits of another batch or checkpoint compile nothing. It holds one row a sample of the
    batch that is attacked, so the loss serves no driver that moves samples between batches (an active set).

    Example:
      >>> clean = jnp.array([[2.0, 0.0]])
      >>> divergence_from(clean)(clean, jnp.array([0])).item()
      0.0

    References:
      Zhang et al., Theoretically principled trade-off between robustness and accuracy, ICML 2019.
    """
    return Loss(kl_divergence, reference=reference)
