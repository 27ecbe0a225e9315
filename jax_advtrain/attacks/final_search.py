"""What is left to gain once a search for the nearest adversarial image has ended: two bisections and one straight step.

Of a linear model it finds the distance to the boundary whatever image it is given; elsewhere it takes nothing that is
not nearer and adversarial.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.hyperplane import nearest_boundary, rivals_of, step_to_hyperplane
from jax_advtrain.attacks.minimum_norm import Nearest, is_confident, nearer, wide_dtype
from jax_advtrain.attacks.protocol import LogitsFn, Problem

HALVINGS = 10
# Boundaries that are linearised: those of the largest logits, the true class among them (as DeepFool's authors do).
NUM_CLASSES = 10
# The straight step ends so much beyond the linearised boundary, so that its bisection has something to find.
OVERSHOOT = 0.02
PASSES = HALVINGS + 1 + 2 * (NUM_CLASSES - 1) + HALVINGS


def final_search(
    logits_fn: LogitsFn, problem: Problem, nearest: Nearest, *, norm: str, confidence: jax.typing.ArrayLike = 0.0
) -> Nearest:
    """Draws the nearest adversarial image nearer: by bisection towards the clean image; then along the smallest step
    within the box from the clean image to a boundary linearised at that image (of any of the `NUM_CLASSES` largest
    logits, or of the target), by bisection again.

    An ascent of the margin ends at the boundary of the class that it climbed at first, and a bisection too; the step
    goes to the boundary that is nearest by its linearisation. Samples that hold no adversarial image stay as they are.

    Args:
      problem, nearest: of the search that has ended.
      norm: "linf", "l2" or "l1": what distances are measured in.
      confidence: margin of the logits that an adversarial image must have.

    Returns:
      At most as far away as before. It takes `PASSES` passes, fewer with a target or fewer classes.
    """
    wide = wide_dtype(problem.images)
    clean, held = problem.images.astype(wide), jnp.isfinite(nearest.distance)

    def closest_along(step: Float[Array, "batch *image"], nearest: Nearest) -> Nearest:
        def halve(_, state):
            nearest, low, high = state
            middle = (low + high) / 2
            moved = jnp.clip(clean + norms.per_sample(middle, step) * step, 0, 1).astype(problem.images.dtype)
            outputs, distance = logits_fn(moved), norms.length(moved.astype(wide) - clean, norm)
            confident = held & is_confident(outputs, problem, confidence)
            nearest, fooled = nearer(nearest, problem, moved, outputs, distance, confident)
            return nearest, jnp.where(fooled, low, middle), jnp.where(fooled, middle, high)

        none = jnp.zeros_like(nearest.distance)
        return jax.lax.fori_loop(0, HALVINGS, halve, (nearest, none, none + 1))[0]

    nearest = closest_along(nearest.images.astype(wide) - clean, nearest)
    here = nearest.images
    logits = losses.class_logits(logits_fn(here))
    rivals = rivals_of(logits, problem.labels, problem.targets, NUM_CLASSES)

    def shorter(number, kept):
        rival = jax.lax.dynamic_slice_in_dim(rivals, number, 1, axis=1)
        boundary = nearest_boundary(logits_fn, here, problem.labels, rival, norm)
        normal = boundary.normal.astype(wide)
        # Linearised here, but the step begins at the clean image.
        moved = jnp.sum((normal * (here.astype(wide) - clean)).reshape(len(normal), -1), axis=1)
        step = step_to_hyperplane(clean, normal, boundary.offset.astype(wide) + confidence + moved, norm)
        length = norms.length(step, norm)
        closer = (norms.length(normal, "linf") > 0) & (length < kept[1])
        return norms.select(closer, step, kept[0]), jnp.where(closer, length, kept[1])

    nothing = jnp.zeros_like(clean), jnp.zeros_like(nearest.distance) + jnp.inf
    step, _ = jax.lax.fori_loop(0, rivals.shape[1], shorter, nothing)
    return closest_along((1 + OVERSHOOT) * step, nearest)
