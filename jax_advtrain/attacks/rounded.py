"""Attacked images as they are when stored in 8 bits."""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_advtrain.attacks.at_radius import verdict_of
from jax_advtrain.attacks.combine import Wrapped, base_of, check_attack, check_stepwise, over_parts
from jax_advtrain.attacks.gradients import outputs_of
from jax_advtrain.attacks.protocol import Attack, AttackResult, LogitsFn, check_count
from jax_advtrain.attacks.pytrees import register_dataclass

# What part of a level counts as none: the rounding of pixel * levels in float32.
_NO_LEVEL = 1e-3
# The draw of a stochastic model that classifies the rounded images: apart from those of the steps, counted from 0.
_ROUNDED_DRAW = 2**31 - 3


def round_in_ball(
    images: Float[Array, "batch *image"],
    clean: Float[Array, "batch *image"],
    epsilon: Float[Array, "batch"],
    norm: str,
    levels: int,
) -> Float[Array, "batch *image"]:
    """Each pixel at a multiple of 1/levels, in the ball: the nearest one, or the one on the clean pixel's side.

    Rounding all pixels toward the clean ones stays in the ball. In "linf" a pixel is rounded away from its clean value
    where that is nearer and the radius allows it; in "l2" and "l1" those that gain most by it, as long as the radius
    allows it; in "l0" all. A pixel that comes back to its clean value, or would pass it, takes that value bit for bit,
    even off the grid.
    """
    wide = jnp.promote_types(images.dtype, jnp.float32)

    def in_levels(pixels):
        scaled = pixels.astype(wide) * levels
        whole = jnp.round(scaled)
        return jnp.where(jnp.abs(scaled - whole) < _NO_LEVEL, whole, scaled)

    batch = images.shape[0]
    clean_levels = in_levels(clean).reshape(batch, -1)
    found = in_levels(images).reshape(batch, -1)
    radius = epsilon.astype(wide)[:, None] * (1 if norm == "l0" else levels) + _NO_LEVEL
    above, below = found > clean_levels, found < clean_levels
    toward = jnp.where(above, jnp.maximum(jnp.floor(found), clean_levels), jnp.minimum(jnp.ceil(found), clean_levels))
    away = jnp.where(above, jnp.ceil(found), jnp.where(below, jnp.floor(found), clean_levels))
    gain = jnp.abs(found - toward) - jnp.abs(away - found)
    if norm == "linf":
        moved = (gain > 0) & (jnp.abs(away - clean_levels) <= radius)
    elif norm == "l0":
        moved = gain > 0
    else:
        power = 2 if norm == "l2" else 1
        kept = jnp.abs(toward - clean_levels) ** power
        cost = jnp.where(gain > 0, jnp.abs(away - clean_levels) ** power - kept, 0)
        # The dearest gains first, each while the sum of the costs fits.
        order = jnp.argsort(-gain, axis=1)
        spent = jnp.cumsum(jnp.take_along_axis(cost, order, axis=1), axis=1)
        affordable = spent + jnp.sum(kept, axis=1, keepdims=True) <= radius**power
        moved = (gain > 0) & jnp.put_along_axis(jnp.zeros_like(affordable), order, affordable, axis=1, inplace=False)
    chosen = jnp.where(moved, away, toward)
    back = (chosen == clean_levels).reshape(images.shape)
    return jnp.where(back, clean, (chosen / levels).reshape(images.shape).astype(images.dtype))


@partial(register_dataclass, data_fields=["attack"], meta_fields=["levels"])
@dataclasses.dataclass(frozen=True, eq=False)
class Rounded(Wrapped):
    """An attack whose images are rounded, then classified again; see `rounded`."""

    attack: Any
    levels: int

    def init(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> Any:
        """The attack's own state.

        Raises:
          ValueError: images too coarse to hold the levels (bfloat16 holds no 8 bits below 1).
        """
        if float(jnp.finfo(images.dtype).eps) * self.levels >= 1:
            raise ValueError(f"images are {images.dtype}, which cannot hold {self.levels} levels; give float32")
        return self.attack.init(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)

    def succeeded(self, state: Any) -> Bool[Array, "batch"]:
        """None: only the rounded image tells."""
        return jnp.zeros_like(self.attack.succeeded(state))

    def finished(self, state: Any) -> Bool[Array, "batch"]:
        """After all steps, or where the attack stops of itself."""
        return self.attack.finished(state) if self.attack.stops_early else state.steps >= self.num_steps

    def result(self, logits_fn: LogitsFn, state: Any) -> AttackResult:
        """Rounds the images and classifies them (one forward pass)."""
        problem, found = state.problem, self.attack.result(logits_fn, state)
        norm = base_of(self.attack).norm
        images = round_in_ball(found.images, problem.images, problem.epsilon, norm, self.levels)
        outputs = outputs_of(logits_fn, images, problem, _ROUNDED_DRAW)
        right, score = verdict_of(self.attack, outputs, problem.labels)
        return found._replace(images=images, is_right=right, score=score)

    @property
    def passes(self) -> int:
        return self.attack.passes + 1


def rounded(attack: Attack, levels: int = 255) -> Attack:
    """The attack on images that are stored in 8 bits: its images are rounded to k / levels and classified again.

    The rounded image stays in the ball: where the nearest level would leave it, a pixel is rounded toward its clean
    value. The clean images are meant to lie on the grid; pixels that do not keep their value where they are not moved.
    No sample counts as fooled before the end, since rounding may undo it; the counts are those of the attack. In a
    composed attack it goes to the members, so that the strongest is picked after rounding.

    Args:
      attack: goes step by step; or a composition of such.
      levels: number of steps between 0 and 1.

    Raises:
      ValueError: levels < 1, an attack without steps; at the call, images of a dtype that cannot hold the levels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_advtrain.attacks import pgd
      >>> attack = rounded(pgd(norm="linf", epsilon=2.5 / 255))
      >>> x = jnp.array([[100 / 255, 200 / 255]])
      >>> found = attack(jax.random.key(0), lambda x: x @ jnp.array([[1.0, -1.0], [0.0, 0.0]]), x, jnp.array([0]))
      >>> round(255 * found[0, 0].item(), 3)
      98.0
    """
    check_count("levels", levels)
    return over_parts(lambda part: Rounded(_with_norm(part), levels), check_attack("rounded", attack))


def _with_norm(part: Any) -> Any:
    if not hasattr(base_of(check_stepwise("rounded", part)), "norm"):
        raise ValueError(f"rounded needs an attack with a norm, not {type(base_of(part)).__name__}")
    return part
