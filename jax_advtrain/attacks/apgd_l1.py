"""APGD's steps in the L1 ball: how many pixels one moves, and how far (Croce & Hein 2021, "Mind the box").

The steepest ascent of L1 moves one pixel alone. This rule moves some more, those of the largest gradient, and
lets their number follow the perturbation found so far: as this gets sparser, so do the steps.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import l1, norms
from jax_advtrain.attacks.apgd_schedule import Row
from jax_advtrain.attacks.protocol import zeros_per_sample

# How many pixels a step moves: a fifth of all where the start is random, else two thirds of those that the best
# perturbation moves. In whole numbers, for which side a share of floats is rounded to differs from machine to machine.
FIRST_PART = (1, 5)
PART_OF_MOVED = (2, 3)

SPARSER = 0.95  # below this part of the pixels of the last check a perturbation has become sparser
STEP_DIVISOR, SMALLEST_STEP = 1.5, 1 / 10  # the second in radii


class Sparsity(NamedTuple):
    """The steps of each sample.

    Attributes:
      step_size: L1 length of a step, in pixel units.
      width: how many pixels a step moves.
      moved: how many pixels the best perturbation of the last check moves.
    """

    step_size: Float[Array, "batch"]
    width: Int[Array, "batch"]
    moved: Int[Array, "batch"]


def _moved_pixels(images: Float[Array, "batch *image"], point: Float[Array, "batch *image"]) -> Int[Array, "batch"]:
    """How many pixels differ by more than rounding."""
    moved = jnp.abs(point - images) > float(jnp.finfo(images.dtype).eps)
    return jnp.sum(moved, axis=tuple(range(1, images.ndim)), dtype=jnp.int32)


def _width(pixels: Int[Array, "batch"], part: tuple[int, int]) -> Int[Array, "batch"]:
    """The part of the pixels, rounded down, so that the perturbation may become as sparse as one pixel; 1 at least."""
    return jnp.maximum(part[0] * pixels // part[1], 1)


def first_sparsity(
    images: Float[Array, "batch *image"], radius: Float[Array, "batch"], start: Float[Array, "batch *image"] | None
) -> Sparsity:
    """What holds where a stage begins; `start` is None where this is random and tells nothing."""
    if start is None:
        everything = zeros_per_sample(images, jnp.int32) + math.prod(images.shape[1:])
        return Sparsity(radius, _width(everything, FIRST_PART), everything)
    moved = _moved_pixels(images, start)
    return Sparsity(radius, _width(moved, PART_OF_MOVED), moved)


def check_sparsity(
    rule: Sparsity,
    row: Row,
    images: Float[Array, "batch *image"],
    best: Float[Array, "batch *image"],
    radius: Float[Array, "batch"],
) -> tuple[Sparsity, Bool[Array, "batch"]]:
    """At checks: a perturbation that has become sparser takes the first step size again and goes back to its best
    point; any other step is divided by 1.5, down to a tenth of the radius. Says which samples go back."""
    moved = _moved_pixels(images, best)
    sparser = moved < SPARSER * rule.moved
    step_size = jnp.where(sparser, radius, jnp.maximum(rule.step_size / STEP_DIVISOR, SMALLEST_STEP * radius))
    checked = Sparsity(step_size, _width(moved, PART_OF_MOVED), moved)
    rule = Sparsity(*(jnp.where(row.is_check, new, old) for new, old in zip(checked, rule, strict=True)))
    return rule, row.is_check & sparser


def _direction(gradient: Float[Array, "*image"], width: Int[Array, ""]) -> Float[Array, "*image"]:
    """Of one sample: the sign of the gradient at its largest entries and at all that tie, of L1 norm 1."""
    size = jnp.abs(gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32)))
    smallest = l1.first_float(lambda bound: jnp.sum(size > bound) < width, jnp.max(size, initial=0))
    taken = (size >= smallest) & (size > 0)
    return jnp.where(taken, jnp.sign(gradient) / jnp.maximum(jnp.sum(taken), 1).astype(gradient.dtype), 0)


def sparse_step(
    images: Float[Array, "batch *image"],
    point: Float[Array, "batch *image"],
    gradient: Float[Array, "batch *image"],
    *,
    rule: Sparsity,
    radius: Float[Array, "batch"],
) -> Float[Array, "batch *image"]:
    """P(x + step * direction), P on ball and box at once."""
    ahead = point + norms.per_sample(rule.step_size, point) * jax.vmap(_direction)(gradient, rule.width)
    return norms.project(images, ahead - images, radius, "l1")
