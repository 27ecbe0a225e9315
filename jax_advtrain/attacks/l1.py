"""Geometry of the L1 ball, alone and cut by the box [0, 1]; every function is of ONE sample, `norms` maps them.

Projections shrink each entry towards zero by one common threshold (Duchi et al. 2008); with the box in the way the
threshold is another, since what an entry may not do at the end of its range is left to the others (Croce & Hein 2021,
"Mind the box"). Thresholds are found by bisection of the bit patterns of floats, which are ordered as the floats are:
as exact as by sorting, and on a CPU many times faster.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# What part of the pixels one step of an L1 ascent moves, where nothing else is said.
DEFAULT_SHARE = 0.01


def first_float(holds: Callable[[jax.Array], jax.Array], high: Float[Array, ""]) -> Float[Array, ""]:
    """The smallest float from 0 to `high` at which `holds` is true; it is monotone, and true at `high`."""
    bits_of = {4: jnp.int32, 8: jnp.int64}[high.dtype.itemsize]

    def halve(_, ends):
        low, high_bits = ends
        middle = low + (high_bits - low) // 2
        found = holds(jax.lax.bitcast_convert_type(middle, high.dtype))
        return jnp.where(found, low, jnp.minimum(middle + 1, high_bits)), jnp.where(found, middle, high_bits)

    # The sign of -0.0 is a bit too.
    bits = jax.lax.bitcast_convert_type(jnp.abs(high), bits_of)
    _, bits = jax.lax.fori_loop(0, 8 * high.dtype.itemsize - 1, halve, (jnp.zeros_like(bits), bits))
    return jax.lax.bitcast_convert_type(bits, high.dtype)


def _shrink(values: Float[Array, "*image"], threshold: Float[Array, ""]) -> Float[Array, "*image"]:
    """Each value moved towards zero by the threshold; with threshold 0 nothing changes, bit for bit."""
    return jnp.where(threshold > 0, jnp.sign(values) * jnp.maximum(jnp.abs(values) - threshold, 0), values)


def _flat(values: Float[Array, "*image"]) -> Float[Array, "pixels"]:
    """In float32 at least, and in one axis: over several, XLA sums ten times slower on a CPU."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32)).ravel()


def clip_to_ball(perturbation: Float[Array, "*image"], radius: Float[Array, ""]) -> Float[Array, "*image"]:
    """The nearest point of the ball; inside the ball nothing changes, bit for bit."""
    values = _flat(perturbation)
    size = jnp.abs(values)
    threshold = first_float(
        lambda threshold: jnp.sum(jnp.maximum(size - threshold, 0)) <= radius, jnp.max(size, initial=0)
    )
    return _shrink(values, threshold).astype(perturbation.dtype).reshape(perturbation.shape)


def project(
    image: Float[Array, "*image"], perturbation: Float[Array, "*image"], radius: Float[Array, ""]
) -> Float[Array, "*image"]:
    """The point nearest to image + perturbation that is in the ball around the image AND in [0, 1].

    The image lies in [0, 1]. Clipping to the ball and then to the box gives another point, nearer to the image: what
    the box takes away is lost.
    """
    values, start = _flat(perturbation), _flat(image)
    size = jnp.abs(values)
    room = jnp.where(values > 0, 1 - start, start)
    threshold = first_float(
        lambda threshold: jnp.sum(jnp.clip(size - threshold, 0, room)) <= radius, jnp.max(size, initial=0)
    )
    return jnp.clip(start + _shrink(values, threshold), 0, 1).astype(image.dtype).reshape(image.shape)


def uniform_in_ball(key: Key[Array, ""], image: Float[Array, "*image"]) -> Float[Array, "*image"]:
    """A uniform draw from the unit ball: spacings of d + 1 exponentials, each with a random sign."""
    size_key, sign_key = jax.random.split(key)
    dtype = _flat(image).dtype
    sizes = jax.random.exponential(size_key, (image.size + 1,), dtype)
    signs = jax.random.rademacher(sign_key, (image.size,), dtype)
    return (signs * sizes[:-1] / jnp.sum(sizes)).reshape(image.shape).astype(image.dtype)


def steepest_ascent(gradient: Float[Array, "*image"], share: float) -> Float[Array, "*image"]:
    """The sign of the gradient at the largest `share` of the entries (SLIDE, Tramer & Boneh 2019), of L1 norm 1.

    At least one entry, and all that tie with the smallest taken; entries of gradient zero never.
    """
    if not gradient.size:
        return gradient
    size = jnp.abs(_flat(gradient))
    wanted = number_of_pixels(share, gradient.size)
    smallest = first_float(lambda size_of_next: jnp.sum(size > size_of_next) < wanted, jnp.max(size))
    taken = (size >= smallest) & (size > 0)
    number = jnp.maximum(jnp.sum(taken), 1).astype(gradient.dtype)
    return jnp.where(taken.reshape(gradient.shape), jnp.sign(gradient) / number, 0)


def number_of_pixels(share: float, pixels: int) -> int:
    """How many entries the share is: rounded up, and 1 at least."""
    # 0.07 * 100 is 7.000000000000001 in floats.
    return min(max(math.ceil(share * pixels - 1e-9), 1), pixels)
