"""What the attacks share that look for the nearest adversarial image: distances, the nearest one so far, the result.

Their radius is optional: without one `problem.epsilon` is infinite, and a sample improves to the last step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.gradients import Stochastic
from jax_advtrain.attacks.protocol import AttackResult, Problem, make_problem, zeros_per_sample

# The logit margin of either kind of classifier; positive where the sample is wrong, or is taken for its target.
MARGIN = losses.Loss(losses.classification_margin)


class Nearest(NamedTuple):
    """The nearest adversarial image seen so far, and the verdict on the clean one.

    Attributes:
      images: the nearest adversarial image; the clean one as long as there is none.
      distance: its distance from the clean image; infinity as long as there is none.
      is_right, score: whether the model is right on it, and its logit margin (targeted: it may be right).
      clean_is_right, clean_score: the same of the clean image.
    """

    images: Float[Array, "batch *image"]
    distance: Float[Array, "batch"]
    is_right: Bool[Array, "batch"]
    score: Float[Array, "batch"]
    clean_is_right: Bool[Array, "batch"]
    clean_score: Float[Array, "batch"]


def wide_dtype(images: jax.Array) -> jnp.dtype:
    """The dtype of the arithmetic: float32 for narrower images, whose digits do not resolve a radius's small steps."""
    return jnp.promote_types(images.dtype, jnp.float32)


def nothing_found(images: Float[Array, "batch *image"]) -> Nearest:
    """Before anything was classified."""
    zeros = zeros_per_sample(images, wide_dtype(images))
    return Nearest(images, zeros + jnp.inf, zeros == 0, zeros, zeros == 0, zeros)


def is_confident(outputs: jax.Array, problem: Problem, confidence: jax.typing.ArrayLike) -> Bool[Array, "batch"]:
    """Whether the margin is so large. That of a broken model, NaN, is wrong whatever was asked for."""
    return ~(MARGIN.ascended(outputs, problem.labels, problem.targets) < confidence)


def nearer(
    nearest: Nearest,
    problem: Problem,
    images: Float[Array, "batch *image"],
    outputs: jax.Array,
    distance: Float[Array, "batch"],
    confident: Bool[Array, "batch"] | bool = True,
) -> tuple[Nearest, Bool[Array, "batch"]]:
    """Takes the images that fool the model (and are `confident`) and are nearer than those held; and which did so."""
    right = losses.is_right(outputs, problem.labels)
    score = losses.classification_margin(outputs, problem.labels).astype(nearest.score.dtype)
    fooled = ~right if problem.targets is None else losses.is_right(outputs, problem.targets)
    fooled = fooled & confident
    taken = fooled & (distance < nearest.distance)
    clean = distance == 0
    found = Nearest(
        images=norms.select(taken, images, nearest.images),
        distance=jnp.where(taken, distance, nearest.distance),
        is_right=jnp.where(taken, right, nearest.is_right),
        score=jnp.where(taken, score, nearest.score),
        clean_is_right=jnp.where(clean, right, nearest.clean_is_right),
        clean_score=jnp.where(clean, score, nearest.clean_score),
    )
    return found, fooled


def minimum_norm_problem(key, logits_fn, images, labels, targets, epsilon) -> Problem:
    """The problem of a minimum-norm attack: without a radius (None) its epsilon is infinite.

    Raises:
      ValueError: as `make_problem`; and a model that answers at random, on which no distance is defined.
    """
    if isinstance(logits_fn, Stochastic):
        logits_fn(images)  # raises, and names the attacks that take such a model
    no_radius = jnp.full((), jnp.inf) if epsilon is None else epsilon
    return make_problem(key, images, labels, targets, no_radius)


def within_radius(nearest: Nearest, problem: Problem) -> Bool[Array, "batch"]:
    """Whether an adversarial image within the radius is held; never where there is no radius."""
    return (nearest.distance <= problem.epsilon) & jnp.isfinite(problem.epsilon)


def minimum_norm_result(state) -> AttackResult:
    """The nearest adversarial image, where it is within the radius (if there is one), else the clean image."""
    nearest, problem = state.nearest, state.problem
    taken = jnp.isfinite(nearest.distance) & (nearest.distance <= problem.epsilon)
    return AttackResult(
        images=norms.select(taken & (nearest.distance > 0), nearest.images, problem.images),
        is_right=jnp.where(taken, nearest.is_right, nearest.clean_is_right),
        score=jnp.where(taken, nearest.score, nearest.clean_score),
        hits=state.hits,
        zero_gradients=state.zero_gradients,
        nonfinite_gradients=state.nonfinite_gradients,
        winner=jnp.zeros_like(state.steps),
    )


def distance_of(perturbation: Float[Array, "batch *image"], norm: str) -> Float[Array, "batch"]:
    """Length of each perturbation; for "l0" how many entries (pixels times channels) differ from zero."""
    if norm != "l0":
        return norms.length(perturbation, norm)
    return jnp.sum(perturbation != 0, axis=tuple(range(1, perturbation.ndim))).astype(perturbation.dtype)
