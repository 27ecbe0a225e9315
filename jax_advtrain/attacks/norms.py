"""Geometry of the L-inf, L2 and L1 balls, one radius a sample.

Perturbations have shape (batch, *image) and are in pixel units of [0, 1]. A radius is a scalar or has shape
(batch,). `norm` is the name "linf", "l2" or "l1".
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_advtrain.attacks import l1

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[str, ...] = get_args(Norm)

# Below this an L2 gradient gives a shorter step instead of a division by zero (the reference's constant).
SMALLEST_L2 = 1e-12


def check_norm(norm: str) -> str:
    """Returns `norm`; raises ValueError if it is not the name of a norm."""
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; the norms are {', '.join(NORMS)}")
    return norm


def per_sample(values: jax.typing.ArrayLike, images: Float[Array, "batch *image"]) -> Float[Array, "..."]:
    """Reshapes a scalar or (batch,) array of radii so that it broadcasts against images.

    Raises:
      ValueError: the values are neither a scalar nor one a sample.
    """
    values = jnp.asarray(values, images.dtype)
    if values.ndim == 0:
        return values
    if values.shape != images.shape[:1]:
        raise ValueError(
            f"a radius, step size or temperature has shape {values.shape}; give a scalar or one a sample: "
            f"{images.shape[:1]}"
        )
    return values.reshape(values.shape + (1,) * (images.ndim - 1))


def select(which: Bool[Array, "batch"], chosen: jax.Array, other: jax.Array) -> jax.Array:
    """Per sample `chosen` where `which`, else `other`; both lead with the batch axis."""
    return jnp.where(which.reshape(which.shape + (1,) * (chosen.ndim - 1)), chosen, other)


def _one_a_sample(values: jax.typing.ArrayLike, images: Float[Array, "batch *image"]) -> Float[Array, "batch"]:
    return jnp.broadcast_to(per_sample(values, images).reshape(-1), images.shape[:1])


def _image_axes(perturbation: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, perturbation.ndim))


def length(perturbation: Float[Array, "batch *image"], norm: str) -> Float[Array, "batch"]:
    """Norm of each sample's perturbation."""
    axes = _image_axes(perturbation)
    if check_norm(norm) == "linf":
        return jnp.max(jnp.abs(perturbation), axis=axes)
    if norm == "l1":
        return jnp.sum(jnp.abs(perturbation), axis=axes)
    return jnp.sqrt(jnp.sum(jnp.square(perturbation), axis=axes))


def clip_to_ball(
    perturbation: Float[Array, "batch *image"], epsilon: jax.typing.ArrayLike, norm: str
) -> Float[Array, "batch *image"]:
    """The nearest point of the ball of each sample's radius; inside the ball nothing changes."""
    radius = per_sample(epsilon, perturbation)
    if check_norm(norm) == "linf":
        return jnp.clip(perturbation, -radius, radius)
    if norm == "l1":
        return jax.vmap(l1.clip_to_ball)(perturbation, _one_a_sample(epsilon, perturbation))
    size = per_sample(length(perturbation, norm), perturbation)
    outside = size > radius
    return jnp.where(outside, perturbation * (radius / jnp.where(outside, size, 1)), perturbation)


def steepest_ascent(gradient: Float[Array, "batch *image"], norm: str) -> Float[Array, "batch *image"]:
    """Direction of unit norm along which a linear function of this gradient grows fastest.

    The sign for "linf"; g / max(||g||_2, 1e-12) for "l2"; for "l1" the sign at the largest entry alone (`pgd` moves
    more than one). A zero gradient gives a zero direction. Entries whose square would overflow are scaled first, or a
    huge finite gradient would give no direction at all.
    """
    if check_norm(norm) == "linf":
        return jnp.sign(gradient)
    if norm == "l1":
        return jax.vmap(lambda gradient: l1.steepest_ascent(gradient, 0))(gradient)
    peak = length(gradient, "linf")
    huge = peak > float(jnp.finfo(gradient.dtype).max) ** 0.5 / max(math.prod(gradient.shape[1:]), 1)
    gradient = gradient / per_sample(jnp.where(huge, peak, 1), gradient)
    return gradient / per_sample(jnp.maximum(length(gradient, norm), SMALLEST_L2), gradient)


def sparse_ascent(
    gradient: Float[Array, "batch *image"], images: Float[Array, "batch *image"], share: float
) -> Float[Array, "batch *image"]:
    """Direction of L1 norm 1 that moves a share of the pixels, those of largest gradient that the box lets move.

    The sign of the gradient divided by their number (SLIDE, Tramer & Boneh 2019). A pixel that stands at the end of
    [0, 1] and would leave it does not count (Maini et al. 2020). The share is rounded up, to 1 pixel at least; with 1
    pixel this is the steepest ascent in the box.
    """
    stuck = jnp.where(gradient > 0, images >= 1, images <= 0)
    return jax.vmap(lambda gradient: l1.steepest_ascent(gradient, share))(jnp.where(stuck, 0, gradient))


def unit_length(noise: Float[Array, "batch *image"], norm: str) -> Float[Array, "batch *image"]:
    """Scales each sample's noise to norm 1; zero noise stays zero.

    The "linf" denominator is max|n| + 1e-12 and the "l2" one max(||n||, 1e-12), as in the reference; the "l1" one is
    ||n|| alone, so that the tiny gradients of a confident model count as much as others (MIM).
    """
    if norm == "l1":
        peak = length(noise, "linf")
        noise = noise / per_sample(jnp.where(peak > 0, peak, 1), noise)
        return noise / per_sample(jnp.maximum(length(noise, norm), 1), noise)
    size = length(noise, norm)
    size = size + SMALLEST_L2 if norm == "linf" else jnp.maximum(size, SMALLEST_L2)
    return noise / per_sample(size, noise)


def project(
    images: Float[Array, "batch *image"],
    perturbation: Float[Array, "batch *image"],
    epsilon: jax.typing.ArrayLike,
    norm: str,
) -> Float[Array, "batch *image"]:
    """images + perturbation, brought into each sample's ball first and into [0, 1] last.

    For "l1" the nearest point of the intersection of ball and box, which clipping in turn would miss by much; for
    "linf" the two are the same, and for "l2" clipping in turn is what attacks are published with.
    """
    if norm == "l1":
        return jax.vmap(l1.project)(images, perturbation, _one_a_sample(epsilon, images))
    return jnp.clip(images + clip_to_ball(perturbation, epsilon, norm), 0, 1)


def clipped_box(
    unit_noise: Float[Array, "batch *image"], epsilon: jax.typing.ArrayLike, norm: str
) -> Float[Array, "batch *image"]:
    """Noise in the box of half-width epsilon, clipped to the ball of radius epsilon: IMA's random start.

    In many dimensions nearly every "l2" draw ends on the sphere. `unit_noise` lies in [-1, 1].
    """
    return clip_to_ball(per_sample(epsilon, unit_noise) * unit_noise, epsilon, norm)


def uniform_in_box(keys: Key[Array, "batch"], images: Float[Array, "batch *image"]) -> Float[Array, "batch *image"]:
    """Uniform noise in [-1, 1], drawn for each sample from its own key."""
    return jax.vmap(lambda key, image: jax.random.uniform(key, image.shape, image.dtype, -1, 1))(keys, images)


def normal(keys: Key[Array, "batch"], images: Float[Array, "batch *image"]) -> Float[Array, "batch *image"]:
    """Gaussian noise of deviation 1, drawn for each sample from its own key."""
    return jax.vmap(lambda key, image: jax.random.normal(key, image.shape, image.dtype))(keys, images)


def uniform_in_ball(
    keys: Key[Array, "batch"], images: Float[Array, "batch *image"], norm: str
) -> Float[Array, "batch *image"]:
    """Uniform draws from the unit ball, one a sample, each from its own key.

    In "l2" the first d coordinates of a uniform point on the unit sphere of d + 2 dimensions (Harman & Lacko 2010); in
    "l1" spacings of exponentials with random signs.
    """
    if check_norm(norm) == "linf":
        return uniform_in_box(keys, images)
    if norm == "l1":
        return jax.vmap(l1.uniform_in_ball)(keys, images)

    def draw(key, image):
        normal = jax.random.normal(key, (image.size + 2,), image.dtype)
        on_sphere = normal / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(normal))), SMALLEST_L2)
        return on_sphere[:-2].reshape(image.shape)

    return jax.vmap(draw)(keys, images)


def finite(
    gradient: Float[Array, "batch *image"],
) -> tuple[Float[Array, "batch *image"], Bool[Array, "batch"]]:
    """Sets NaN and infinite entries to zero, and says which samples had any."""
    ok = jnp.isfinite(gradient)
    return jnp.where(ok, gradient, 0), ~jnp.all(ok, axis=_image_axes(gradient))
