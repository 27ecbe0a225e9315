"""Adversarial weight perturbation (Wu et al., NeurIPS 2020, arXiv 2004.05884): what it does to weights.

    v = argmax_v L(w + v) by one ascent step:  v_l = gamma * |w_l| * g_l / |g_l|,   g = grad_w L at the crafted images
    w <- w - rate * grad L(w + v)

for each layer l, |.| its Frobenius norm. The images are crafted at w. Biases and normalisation (arrays of one
dimension) stay, as in the authors' code. BatchNorm's averages are moved by the forward passes at w + v alone.

It composes with every method that has the fields of `Perturbed`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_advtrain.attacks.protocol import check_count, check_number
from jax_advtrain.defenses.base import AtRadius

_SMALLEST = 1e-20  # the authors' constant, against a division by zero where a gradient is 0


@dataclasses.dataclass(frozen=True)
class Perturbed(AtRadius):
    """A method at one radius whose loss may be taken at perturbed weights.

    Attributes:
      awp_gamma: size of the perturbation of a layer's weights, relative to their norm; 0 = none. The authors give 0.01
        for PGD-AT and 0.005 for TRADES.
      awp_warmup_epochs: epochs at the start without it.
    """

    awp_gamma: float = 0.0
    awp_warmup_epochs: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_number("awp_gamma", self.awp_gamma)
        check_count("awp_warmup_epochs", self.awp_warmup_epochs, least=0)


def size(defense: Any, epoch: jax.Array) -> jax.Array | None:
    """gamma in an epoch; None where the method never perturbs."""
    defense = getattr(defense, "method", defense)  # inside a remedy (`classwise`)
    if not isinstance(defense, Perturbed) or not defense.awp_gamma:
        return None
    return jnp.where(epoch >= defense.awp_warmup_epochs, defense.awp_gamma, 0.0)


def moved(params: Any, gradient: Any, gamma: jax.Array) -> Any:
    """The weights after one ascent step of relative size gamma, layer by layer."""

    def move(weights, slope):
        if weights.ndim < 2:
            return weights
        length = jnp.sqrt(jnp.sum(jnp.square(slope)))
        scale = gamma * jnp.sqrt(jnp.sum(jnp.square(weights))) / (length + _SMALLEST)
        return weights + (scale * slope).astype(weights.dtype)

    return jax.tree.map(move, params, gradient)
