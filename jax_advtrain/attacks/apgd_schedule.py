"""When APGD looks back on its steps, and its step size: halved where the ascent no longer rises (Croce & Hein 2020).

Samples of one batch may stand at different steps, so all that depends on time is a table of static rows, and each
sample reads the row of its own count of steps.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.protocol import zeros_per_sample

# The step size at the start in radii, and how much of a step is new and not the momentum of the last.
FIRST_STEP, NEW_PART = 2, 0.75


class Stage(NamedTuple):
    """A part of the ascent: its radius in units of epsilon, its number of steps, and those from check to check."""

    radius: float
    num_steps: int
    windows: tuple[int, ...]


class Row(NamedTuple):
    """What the schedule says of the point reached after so many steps.

    Attributes:
      is_first: a stage begins here, so that nothing is known before this point.
      is_last: a stage ends here and another one follows.
      is_check: the step size is looked at.
      window: how many steps were taken since the last check, where this is one.
      radius: in units of epsilon.
      counts: this is the last stage, whose radius is epsilon itself.
    """

    is_first: Bool[Array, "batch"]
    is_last: Bool[Array, "batch"]
    is_check: Bool[Array, "batch"]
    window: Int[Array, "batch"]
    radius: Float[Array, "batch"]
    counts: Bool[Array, "batch"]


def halving_windows(num_steps: int) -> tuple[int, ...]:
    """Steps from check to check: 0.22 n at first, then 0.03 n less each time down to 0.06 n, rounded down, 1 at least.

    Example:
      >>> halving_windows(100)
      (22, 19, 16, 13, 10, 7, 6, 6)
    """
    window, less, shortest = (max(int(part * num_steps), 1) for part in (0.22, 0.03, 0.06))
    windows = []
    while sum(windows) + window <= num_steps:
        windows.append(window)
        window = max(window - less, shortest)
    return tuple(windows)


def equal_windows(num_steps: int) -> tuple[int, ...]:
    """Steps from check to check in L1: 0.04 n, rounded down, 1 at least."""
    window = max(int(0.04 * num_steps), 1)
    return (window,) * (num_steps // window)


def shrinking_stages(num_steps: int) -> tuple[tuple[float, int], ...]:
    """Radii in units of epsilon and their steps: 0.3 n at 3, 0.3 n at 2 (both rounded up), the rest at 1."""
    part = -(-3 * num_steps // 10)
    return ((3.0, part), (2.0, part), (1.0, num_steps - 2 * part))


@functools.cache
def table(stages: tuple[Stage, ...]) -> Row:
    """Columns of numpy, one entry a point: each stage has one point more than steps."""
    points = []
    for number, (radius, num_steps, windows) in enumerate(stages):
        last_stage = number == len(stages) - 1
        at_check = dict(zip(np.cumsum(windows).tolist(), windows, strict=True))
        points += [
            (
                step == 0,
                step == num_steps and not last_stage,
                step in at_check,
                at_check.get(step, 0),
                radius,
                last_stage,
            )
            for step in range(num_steps + 1)
        ]
    kinds = (bool, bool, bool, np.int32, np.float32, bool)
    return Row(*(np.array(column, kind) for column, kind in zip(zip(*points, strict=True), kinds, strict=True)))  # pyright: ignore[reportArgumentType]


def row_of(stages: tuple[Stage, ...], steps: Int[Array, "batch"]) -> Row:
    """Each sample's row; samples past the end stay in the last."""
    columns = table(stages)
    here = jnp.minimum(steps, len(columns.window) - 1)
    return Row(*(jnp.asarray(column)[here] for column in columns))


class Halving(NamedTuple):
    """The step size of each sample, and what decides on it.

    Attributes:
      step_size: in pixel units.
      previous_loss: at the point before.
      increases: how often the loss rose since the last check.
      was_halved: at the last check.
      checked_loss: the best loss at the last check.
    """

    step_size: Float[Array, "batch"]
    previous_loss: Float[Array, "batch"]
    increases: Int[Array, "batch"]
    was_halved: Bool[Array, "batch"]
    checked_loss: Float[Array, "batch"]


def first_halving(
    images: Float[Array, "batch *image"], radius: Float[Array, "batch"], loss_dtype: jax.typing.DTypeLike
) -> Halving:
    """What holds where a stage begins; its first point fills in the losses."""
    loss = zeros_per_sample(images, loss_dtype)
    zeros = zeros_per_sample(images, jnp.int32)
    return Halving(FIRST_STEP * radius, loss, zeros, zeros == 0, loss)


def check_halving(
    rule: Halving, row: Row, loss: Float[Array, "batch"], best_loss: Float[Array, "batch"], rho: jax.typing.ArrayLike
) -> tuple[Halving, Bool[Array, "batch"]]:
    """Halves at checks: where the loss rose in at most rho of the steps since the last (condition 1), or where that one
    did not halve and no point has been better since (condition 2). Says which samples go back to their best point."""
    increases = rule.increases + ((loss > rule.previous_loss) & ~row.is_first)
    seldom = increases <= rho * row.window
    stuck = ~rule.was_halved & (best_loss <= rule.checked_loss)
    halved = row.is_check & (seldom | stuck)
    rule = Halving(
        step_size=jnp.where(halved, rule.step_size / 2, rule.step_size),
        previous_loss=loss,
        increases=jnp.where(row.is_check, 0, increases),
        was_halved=jnp.where(row.is_check, halved, rule.was_halved),
        checked_loss=jnp.where(row.is_check | row.is_first, best_loss, rule.checked_loss),
    )
    return rule, halved


def momentum_step(
    images: Float[Array, "batch *image"],
    point: Float[Array, "batch *image"],
    previous: Float[Array, "batch *image"],
    gradient: Float[Array, "batch *image"],
    *,
    step_size: Float[Array, "batch"],
    radius: Float[Array, "batch"],
    is_first: Bool[Array, "batch"],
    norm: str,
) -> Float[Array, "batch *image"]:
    """P(x + a (z - x) + (1 - a) (x - x_before)) with z = P(x + step * direction); a = 0.75, at the first step 1."""
    ahead = point + norms.per_sample(step_size, point) * norms.steepest_ascent(gradient, norm)
    ahead = norms.project(images, ahead - images, radius, norm)
    new_part = norms.per_sample(jnp.where(is_first, 1, NEW_PART), point)
    mixed = point + new_part * (ahead - point) + (1 - new_part) * (point - previous)
    return norms.project(images, mixed - images, radius, norm)
