"""FMN: the nearest adversarial image by an ascent in a ball whose radius follows the boundary."""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.final_search import PASSES, final_search
from jax_advtrain.attacks.gradients import Ascent, ascent
from jax_advtrain.attacks.minimum_norm import (
    MARGIN,
    Nearest,
    distance_of,
    minimum_norm_problem,
    minimum_norm_result,
    nearer,
    nothing_found,
    wide_dtype,
    within_radius,
)
from jax_advtrain.attacks.protocol import (
    AttackResult,
    LogitsFn,
    Problem,
    check_count,
    check_number,
    checked_start,
    zeros_per_sample,
)
from jax_advtrain.attacks.pytrees import register_dataclass
from jax_advtrain.attacks.stepwise import Stepwise

# "l0" counts changed entries; no other attack knows it, so it is no name of `norms`.
NORMS = ("linf", "l2", "l1", "l0")


class FMNState(NamedTuple):
    """State of FMN; every array leads with the batch axis.

    Attributes:
      problem: what is attacked; epsilon is infinite where no radius was given.
      iterate: the present images.
      radius: of the ball in which the next step ends; for "l0" a whole number.
      nearest: the nearest adversarial image so far.
      steps: updates done.
      hits, zero_gradients, nonfinite_gradients: as in `AttackResult`.
    """

    problem: Problem
    iterate: Float[Array, "batch *image"]
    radius: Float[Array, "batch"]
    nearest: Nearest
    steps: Int[Array, "batch"]
    hits: Int[Array, "batch"]
    zero_gradients: Int[Array, "batch"]
    nonfinite_gradients: Int[Array, "batch"]


@partial(
    register_dataclass,
    data_fields=["epsilon", "step_size", "step_size_final", "gamma", "gamma_final"],
    meta_fields=["norm", "num_steps"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class FMN(Stepwise):
    """Fast minimum norm (Pintor et al. 2021); see `fmn`."""

    epsilon: jax.typing.ArrayLike | None
    step_size: jax.typing.ArrayLike
    step_size_final: jax.typing.ArrayLike | None
    gamma: jax.typing.ArrayLike
    gamma_final: jax.typing.ArrayLike
    norm: str
    num_steps: int

    def init(
        self,
        key: jax.Array,
        logits_fn: LogitsFn,
        images: Float[Array, "batch *image"],
        labels: Int[Array, "batch"],
        *,
        targets: Int[Array, "batch"] | None = None,
        epsilon: jax.typing.ArrayLike | None = None,
        start: Float[Array, "batch *image"] | None = None,
    ) -> FMNState:
        """The state before the first step; with `start` the clean images are classified first (one more forward pass).

        Raises:
          ValueError: shapes or dtypes that do not fit; see `make_problem`.
        """
        problem = minimum_norm_problem(
            key, logits_fn, images, labels, targets, self.epsilon if epsilon is None else epsilon
        )
        wide, zeros = wide_dtype(images), zeros_per_sample(images, jnp.int32)
        nearest, iterate, hits = nothing_found(images), images, zeros
        if start is not None:
            nothing = zeros_per_sample(images, wide)
            nearest, _ = nearer(nearest, problem, images, logits_fn(images), nothing)
            iterate = checked_start(start, images)
        radius = distance_of(iterate.astype(wide) - images.astype(wide), self.norm)
        return FMNState(problem, iterate, radius, nearest, zeros, hits, zeros, zeros)

    def step(self, logits_fn: LogitsFn, state: FMNState) -> FMNState:
        """One forward and backward pass: classifies the iterate, adapts the radius, moves and projects."""
        problem, wide = state.problem, state.radius.dtype
        clean = problem.images.astype(wide)
        found = ascent(logits_fn, MARGIN, state.iterate, problem)
        perturbation = state.iterate.astype(wide) - clean
        distance = distance_of(perturbation, self.norm)
        nearest, fooled = nearer(state.nearest, problem, state.iterate, found.outputs, distance)

        # Scaled by their largest entry, tiny and huge gradients have norms too.
        gradient = found.gradient.astype(wide)
        peak = norms.length(gradient, "linf")
        scaled = gradient / norms.per_sample(jnp.where(peak > 0, peak, 1), gradient)
        direction = scaled / norms.per_sample(jnp.maximum(norms.length(scaled, "l2"), 1), scaled)

        final = self.step_size / 100 if self.step_size_final is None else self.step_size_final
        moved = perturbation + norms.per_sample(self._annealed(self.step_size, final, state), direction) * direction
        gamma = self._annealed(self.gamma, self.gamma_final, state)
        if self.norm == "l0":
            radius = _adapted_count(state.radius, gamma, fooled, nearest.distance)
            radius = jnp.minimum(radius, farthest(clean, self.norm))
            # The box first: what it takes back of an entry must not decide which entries are kept.
            iterate = jnp.clip(clean + keep_largest(jnp.clip(clean + moved, 0, 1) - clean, radius), 0, 1)
        else:
            estimate = distance + _distance_to_boundary(found, peak, scaled, self.norm)
            radius = _adapted_radius(state.radius, gamma, fooled, nearest.distance, estimate)
            radius = jnp.minimum(radius, farthest(clean, self.norm))
            iterate = norms.project(clean, moved, radius, self.norm)
        return FMNState(
            problem=problem,
            iterate=iterate.astype(problem.images.dtype),
            radius=radius,
            nearest=nearest,
            steps=state.steps + 1,
            hits=state.hits + fooled,
            zero_gradients=state.zero_gradients + found.zero,
            nonfinite_gradients=state.nonfinite_gradients + found.nonfinite,
        )

    def _annealed(self, initial, final, state: FMNState) -> Float[Array, "batch"]:
        """From `initial` to `final` along half a cosine, by each sample's own steps."""
        dtype = state.radius.dtype
        initial, final = jnp.asarray(initial, dtype), jnp.asarray(final, dtype)
        done = jnp.minimum(state.steps.astype(dtype) / self.num_steps, 1)
        return final + (initial - final) * (1 + jnp.cos(math.pi * done)) / 2

    def succeeded(self, state: FMNState) -> Bool[Array, "batch"]:
        """Samples with an adversarial image within the radius; none where no radius was given."""
        return within_radius(state.nearest, state.problem)

    def result(self, logits_fn: LogitsFn, state: FMNState) -> AttackResult:
        """The nearest adversarial image found, drawn nearer by `final_search` ("l0": as it is), or the clean image."""
        if self.norm == "l0":
            return minimum_norm_result(state)
        nearest = final_search(logits_fn, state.problem, state.nearest, norm=self.norm)
        return minimum_norm_result(state._replace(nearest=nearest))

    @property
    def passes(self) -> int:
        """Forward plus backward passes a sample."""
        return 2 * self.num_steps + (0 if self.norm == "l0" else PASSES)


def _adapted_radius(radius, gamma, fooled, nearest, estimate) -> Float[Array, "batch"]:
    """Smaller after a success, larger after a failure; not less than the linear estimate before any success.

    The estimate alone would end at the boundary of a linear model, a rounding error before it, and it does not know of
    the box: so it is enlarged, and the radius grows, as after any other failure.
    """
    smaller = jnp.minimum(radius * (1 - gamma), nearest)
    wanted = jnp.where(jnp.isfinite(nearest), radius, jnp.maximum(radius, estimate))
    return jnp.where(fooled, smaller, wanted * (1 + gamma))


def _adapted_count(count, gamma, fooled, nearest) -> Float[Array, "batch"]:
    """The same for a number of entries, which changes by one at least; there is no linear estimate of it."""
    smaller = jnp.minimum(jnp.minimum(count - 1, jnp.floor(count * (1 - gamma))), nearest)
    larger = jnp.maximum(count + 1, jnp.floor(count * (1 + gamma)))
    return jnp.maximum(jnp.where(fooled, smaller, larger), 1)


def _distance_to_boundary(found: Ascent, peak, scaled, norm: str) -> Float[Array, "batch"]:
    """|margin| / ||gradient||_dual: exact for a linear model; infinite where the gradient is zero."""
    axes = tuple(range(1, scaled.ndim))
    if norm == "l2":
        dual = norms.length(scaled, "l2")
    else:
        dual = (jnp.sum if norm == "linf" else jnp.max)(jnp.abs(scaled), axis=axes)
    known = (peak > 0) & jnp.isfinite(found.loss)
    loss = jnp.where(known, jnp.abs(found.loss), 0).astype(peak.dtype)
    return jnp.where(known, loss / jnp.where(known, peak, 1) / jnp.where(known, dual, 1), jnp.inf)


def farthest(images: Float[Array, "batch *image"], norm: str) -> Float[Array, "batch"]:
    """The distance of the corner of [0, 1] that is farthest from each image."""
    return distance_of(jnp.maximum(images, 1 - images), norm)


def keep_largest(
    perturbation: Float[Array, "batch *image"], count: Float[Array, "batch"]
) -> Float[Array, "batch *image"]:
    """The projection on the "l0" ball: of each sample the `count` entries of largest size, zero elsewhere.

    Of equal entries the first ones are kept.
    """
    size = jnp.abs(perturbation).reshape(len(perturbation), math.prod(perturbation.shape[1:]))
    count = jnp.minimum(count.astype(jnp.int32), size.shape[1])[:, None]
    smallest_kept = jnp.take_along_axis(jnp.sort(size, axis=1, descending=True), jnp.maximum(count - 1, 0), axis=1)
    above, equal = size > smallest_kept, size == smallest_kept
    room = count - jnp.sum(above, axis=1, keepdims=True, dtype=jnp.int32)
    kept = above | (equal & (jnp.cumsum(equal, axis=1, dtype=jnp.int32) <= room))
    return jnp.where(kept.reshape(perturbation.shape), perturbation, 0)


def fmn(
    *,
    norm: str = "l2",
    epsilon: jax.typing.ArrayLike | None = None,
    num_steps: int = 100,
    step_size: jax.typing.ArrayLike | None = None,
    step_size_final: jax.typing.ArrayLike | None = None,
    gamma: jax.typing.ArrayLike = 0.05,
    gamma_final: jax.typing.ArrayLike = 0.001,
) -> FMN:
    """FMN: climbs the logit margin L inside a ball whose radius r shrinks after a success and grows after a failure.

        r <- min(r (1 - gamma), nearest)    if the iterate is adversarial
             r (1 + gamma)                  if not, but one was before
             max(r, ||d||_p + |L| / ||grad L||_q) (1 + gamma)    if none was before (1/p + 1/q = 1)
        d <- clip01(x0 + project_r(d + step_size * grad L / ||grad L||_2)) - x0

    For "l0", where r is a number of entries, it starts at 1 and changes by max(1, gamma r) in either direction.
    The result is the nearest adversarial image of all iterates, drawn nearer by `final_search` (not in "l0"): of a
    linear model of any number of classes the distance is exact to 0.1%. A sample that is wrong from the start has
    distance 0 and keeps its clean image, and so does one for which nothing was found. Step size and gamma follow half a
    cosine to their final values, by each sample's own steps. The key is not used: nothing is random.

    Args:
      norm: "linf", "l2", "l1", or "l0": the number of changed entries (pixels times channels, so that a colour pixel
        may count for 3).
      epsilon: None, or a radius in pixel units of [0, 1] ("l0": entries), a scalar or one a sample. A sample is
        finished once an adversarial image is found within it (a driver of an active set, or `until_success`, goes by
        that), and none from beyond it is returned; the search itself does not feel it.
      num_steps: number of updates.
      step_size: first L2 length of a step, whatever the norm, in pixel units of [0, 1]: a scalar or one a sample.
        None: 3 for "l1", where it decides how few entries carry the perturbation, and 1 for the others.
      step_size_final: its last value; None: a hundredth of `step_size`.
      gamma, gamma_final: first and last relative change of the radius, below 1.

    Returns:
      An attack: call it as `attack(key, logits_fn, images, labels)`. It costs 2 passes a step, and 39
      at the end ("l0": none).

    Raises:
      ValueError: an unknown norm, num_steps < 1, a negative or NaN number, a gamma of 1 or more.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 0.0]])
      >>> x = jnp.array([[0.75, 0.5]])
      >>> found = fmn(norm="l2")(jax.random.key(0), lambda x: (x - 0.5) @ weights, x, jnp.array([0]))
      >>> round(jnp.linalg.norm(found - x).item(), 3)
      0.25

    References:
      Pintor et al., Fast minimum-norm adversarial attacks through adaptive norm constraints, NeurIPS 2021. Where the
      authors' code differs from the paper this follows the code: after a success the radius never exceeds the nearest
      distance found, and it never exceeds that of the farthest corner of the box. Unlike both: before any success the
      radius grows by gamma beyond the linear estimate (which is exact for a linear model, so that the original stops a
      rounding error before its boundary, and with pixels at the ends of the box far before it); "l1" projects on the
      intersection of ball and box; "l0" clips to the box before it picks the largest entries, or those that the box
      holds back take the places of those that could move; the final search, without which the climb ends up to some
      percent too far, and at the boundary of the class that has the second logit. A given `start` is where the search
      begins; it is not drawn to the boundary first.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; the norms of fmn are {', '.join(NORMS)}")
    check_count("num_steps", num_steps)
    if epsilon is not None:
        check_number("epsilon", epsilon)
    if step_size_final is not None:
        check_number("step_size_final", step_size_final)
    if step_size is None:
        step_size = 3.0 if norm == "l1" else 1.0
    check_number("step_size", step_size, positive=True)
    for name, value in (("gamma", gamma), ("gamma_final", gamma_final)):
        check_number(name, value)
        if isinstance(value, (int, float)) and value >= 1:
            raise ValueError(f"{name} is {value}; give a number below 1, or the radius would shrink to nothing")
    return FMN(
        epsilon=epsilon,
        step_size=step_size,
        step_size_final=step_size_final,
        gamma=gamma,
        gamma_final=gamma_final,
        norm=norm,
        num_steps=num_steps,
    )
