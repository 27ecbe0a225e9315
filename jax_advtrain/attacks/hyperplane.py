"""Linearised decision boundaries: which is nearest, and the smallest step that ends on it, in [0, 1] or anywhere.

What FAB and DeepFool share. At x the boundary between the true class y and a rival j is taken for the hyperplane
z_j(x) - z_y(x) + <g, s> = 0 in the step s, with g the gradient of z_j - z_y.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.minimum_norm import wide_dtype
from jax_advtrain.attacks.protocol import LogitsFn, zeros_per_sample

# How far a linear function of this gradient is from zero, is measured in the dual of the norm of the steps.
_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


class Boundary(NamedTuple):
    """The nearest linearised boundary of each sample: the steps s with <normal, s> = offset end on it.

    Attributes:
      normal: gradient of z_j - z_y; entries that were not finite are zero.
      offset: z_y - z_j.
      zero: whether the normal is zero everywhere; then no step leads to the boundary.
      nonfinite: whether the gradient of any rival held NaN or infinity.
    """

    normal: Float[Array, "batch *image"]
    offset: Float[Array, "batch"]
    zero: Bool[Array, "batch"]
    nonfinite: Bool[Array, "batch"]


def rivals_of(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    targets: Int[Array, "batch"] | None,
    num_classes: int | None,
) -> Int[Array, "batch rivals"]:
    """The classes whose boundaries are looked at: the target, else the largest logits but that of the label.

    Args:
      num_classes: how many classes count, the label among them; None: all.

    Raises:
      ValueError: logits that are not (batch, classes) of 2 classes at least, or labels that are not (batch,).
    """
    if logits.ndim != 2 or labels.ndim != 1 or logits.shape[-1] < 2:
        raise ValueError(
            f"outputs of shape {logits.shape} for labels of shape {labels.shape}: minimum-norm attacks need (batch, "
            "classes) with 2 classes at least, or one logit (batch,), and one label a sample"
        )
    if targets is not None:
        return targets[:, None].astype(jnp.int32)
    classes = logits.shape[-1]
    others = jnp.where(jax.nn.one_hot(labels, classes, dtype=bool), -jnp.inf, logits)
    return jax.lax.top_k(others, min(num_classes or classes, classes) - 1)[1].astype(jnp.int32)


def nearest_boundary(
    logits_fn: LogitsFn,
    images: Float[Array, "batch *image"],
    labels: Int[Array, "batch"],
    rivals: Int[Array, "batch rivals"],
    norm: str,
) -> Boundary:
    """Linearises at the images; one forward pass, and a backward pass a rival, one after the other.

    Nearest by |z_j - z_y| / ||g||_dual, the box left aside, as in both papers. Of all gradients only the nearest one is
    kept, so memory does not grow with the number of rivals.
    """
    outputs, pull_back = jax.vjp(lambda images: losses.class_logits(logits_fn(images)), images)
    wide = wide_dtype(images)
    true = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)

    def linearised(rival: Int[Array, "batch"]) -> tuple[Boundary, Float[Array, "batch"]]:
        aim = jax.nn.one_hot(rival, outputs.shape[-1], dtype=outputs.dtype)
        gradient, nonfinite = norms.finite(pull_back(aim - true)[0])
        logits = jnp.take_along_axis(outputs.astype(wide), jnp.stack([rival, labels.astype(rival.dtype)], 1), axis=1)
        offset = logits[:, 1] - logits[:, 0]
        # Divided by the largest entry first, since squares and sums of huge gradients overflow.
        peak = norms.length(gradient.astype(wide), "linf")
        usable = (peak > 0) & jnp.isfinite(offset)
        scale = jnp.where(usable, peak, 1)
        size = norms.length(gradient.astype(wide) / norms.per_sample(scale, gradient.astype(wide)), _DUAL[norm])
        distance = jnp.where(usable, jnp.abs(offset) / scale / jnp.where(usable, size, 1), jnp.inf)
        normal, offset = norms.select(usable, gradient, jnp.zeros_like(gradient)), jnp.where(usable, offset, 0)
        return Boundary(normal, offset, peak == 0, nonfinite), distance

    if rivals.shape[1] == 1:
        boundary, _ = linearised(rivals[:, 0])
        return boundary._replace(zero=boundary.zero & ~boundary.nonfinite)

    def nearer(number, kept):
        best, best_distance = kept
        found, distance = linearised(jax.lax.dynamic_index_in_dim(rivals, number, axis=1, keepdims=False))
        closer = distance < best_distance
        merged = Boundary(
            normal=norms.select(closer, found.normal, best.normal),
            offset=jnp.where(closer, found.offset, best.offset),
            zero=best.zero & found.zero,
            nonfinite=best.nonfinite | found.nonfinite,
        )
        return merged, jnp.where(closer, distance, best_distance)

    nothing = zeros_per_sample(images, wide)
    blank = Boundary(jnp.zeros_like(images), nothing, nothing == 0, nothing != 0)
    boundary, _ = jax.lax.fori_loop(0, rivals.shape[1], nearer, (blank, nothing + jnp.inf))
    return boundary._replace(zero=boundary.zero & ~boundary.nonfinite)


def step_without_box(
    normal: Float[Array, "batch *image"], offset: Float[Array, "batch"], norm: str
) -> Float[Array, "batch *image"]:
    """The smallest step s with <normal, s> = offset: offset direction / ||normal||_dual. In float32 at least; no step
    where the normal is zero or the offset not finite."""
    normal = normal.astype(wide_dtype(normal))
    peak = norms.length(normal, "linf")
    scale = jnp.where(peak > 0, peak, 1)
    normal = normal / norms.per_sample(scale, normal)
    size = norms.length(normal, _DUAL[norm])
    length = jnp.where(jnp.isfinite(offset), offset, 0).astype(normal.dtype) / scale / jnp.where(size > 0, size, 1)
    return norms.steepest_ascent(normal, norm) * norms.per_sample(length, normal)


def step_to_hyperplane(
    images: Float[Array, "batch *image"],
    normal: Float[Array, "batch *image"],
    offset: Float[Array, "batch"],
    norm: str,
) -> Float[Array, "batch *image"]:
    """The smallest step s with <normal, s> = offset that keeps images + s in [0, 1], exactly.

    No pixel moves against the hyperplane, so with weights w = |normal| and each pixel's room u to its end of the box
    the lengths a of the moves solve: min ||a|| subject to <w, a> = |offset|, 0 <= a <= u. Their solution is
    a = min(t, u) in L-inf and a = min(t w, u) in L2 for one number t; in L1 the pixels of the largest weights move to
    their ends, and pixels of equal weights share. Where the hyperplane does not meet the box, the step ends in the box
    as near to it as can be. A sample whose offset is not finite does not move.

    No sorting: t is found by Newton steps on a concave function of straight pieces, which end on the root after a few;
    the last weight in L1 by bisection of the bits of the weights. Both are exact, and 10 to 40 times faster than a
    sort on CPU.

    Returns:
      Steps in float32 at least.

    Example:
      >>> x, normal = jnp.array([[0.5, 0.9]]), jnp.array([[1.0, 2.0]])
      >>> step_to_hyperplane(x, normal, jnp.array([0.5]), "linf").round(3).tolist()
      [[0.30000001192092896, 0.10000000149011612]]
    """
    wide = wide_dtype(images)
    shape = images.shape
    pixels, normal = (array.reshape(shape[0], -1).astype(wide) for array in (images, normal))
    offset = jnp.where(jnp.isfinite(offset), offset, 0).astype(wide)
    upward = (normal > 0) == (offset > 0)[:, None]
    weights = jnp.abs(normal)
    peak = jnp.max(weights, axis=1)
    scale = jnp.where(peak > 0, peak, 1)
    weights, gain = weights / scale[:, None], jnp.abs(offset) / scale
    room = jnp.where(weights > 0, jnp.maximum(jnp.where(upward, 1 - pixels, pixels), 0), 0)
    moves = _cheapest(weights, room, gain) if norm == "l1" else _levelled(weights, room, gain, norm)
    reachable = gain < jnp.sum(weights * room, axis=1)
    moves = jnp.where(reachable[:, None], moves, jnp.where((gain > 0)[:, None], room, 0))
    return jnp.where(upward, moves, -moves).reshape(shape)


def _levelled(
    weights: Float[Array, "batch pixels"],
    room: Float[Array, "batch pixels"],
    gain: Float[Array, "batch"],
    norm: str,
) -> Float[Array, "batch pixels"]:
    """min(t pace, room) with the t at which <weights, moves> = gain; means nothing where no t does it."""
    pace = jnp.ones_like(weights) if norm == "linf" else weights
    reach = weights * room

    def newton(level):
        # On the piece of the function at `level` pixels with `full` have reached their end. The pieces grow flatter, so
        # that from below no step goes too far, and a step that ends on its own piece ends on the root.
        full = (room <= level[:, None] * pace) | (pace == 0)
        done = jnp.sum(jnp.where(full, reach, 0), axis=1)
        slope = jnp.sum(jnp.where(full, 0, weights * pace), axis=1)
        return jnp.maximum(level, jnp.where(slope > 0, (gain - done) / jnp.where(slope > 0, slope, 1), level))

    def climb(state):
        level, _ = state
        following = newton(level)
        return following, following > level

    level, _ = jax.lax.while_loop(lambda state: jnp.any(state[1]), climb, (jnp.zeros_like(gain), gain > 0))
    return jnp.minimum(level[:, None] * pace, room)


def _cheapest(
    weights: Float[Array, "batch pixels"], room: Float[Array, "batch pixels"], gain: Float[Array, "batch"]
) -> Float[Array, "batch pixels"]:
    """Fills the room of the largest weights until <weights, moves> = gain; means nothing where there is too little."""
    reach = weights * room
    # The bits of floats from 0 are ordered as the floats are.
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32 if weights.dtype.itemsize == 4 else jnp.int64)

    def halve(_, ends):
        enough, highest = ends
        middle = enough + (highest - enough + 1) // 2
        reached = jnp.sum(jnp.where(bits >= middle[:, None], reach, 0), axis=1) >= gain
        return jnp.where(reached, middle, enough), jnp.where(reached, highest, middle - 1)

    highest = jnp.max(bits, axis=1)
    last, _ = jax.lax.fori_loop(0, 8 * weights.dtype.itemsize, halve, (jnp.zeros_like(highest), highest))
    full, shared = bits > last[:, None], bits == last[:, None]
    missing = gain - jnp.sum(jnp.where(full, reach, 0), axis=1)
    available = jnp.sum(jnp.where(shared, reach, 0), axis=1)
    share = jnp.clip(missing / jnp.where(available > 0, available, 1), 0, 1)
    return jnp.where(full, room, jnp.where(shared, share[:, None] * room, 0))
