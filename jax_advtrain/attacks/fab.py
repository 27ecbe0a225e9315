"""FAB: the nearest adversarial image by projections on linearised decision boundaries."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.hyperplane import Boundary, nearest_boundary, rivals_of, step_to_hyperplane
from jax_advtrain.attacks.minimum_norm import minimum_norm_problem, wide_dtype
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

STARTS = ("clean", "random")

# Steps shorter than this count as this long where the two are weighed against each other (the original's constant).
_SHORTEST = 1e-8

# How far beyond the estimated crossing the final search looks: a tenth of the way from there to the outer end.
_BEYOND = 0.1


class FABState(NamedTuple):
    """State of FAB; every array leads with the batch axis.

    Attributes:
      problem: what is attacked; the radius is infinity where none was given.
      rivals: the classes whose boundaries are linearised.
      iterate: the present images.
      nearest: the nearest adversarial images so far, the clean ones as long as there is none.
      distance: of `nearest` from the clean images; infinity as long as there is none.
      margin, clean_margin: logit margins of `nearest` and of the clean images.
      steps: updates done.
      hits, zero_gradients, nonfinite_gradients: as in `AttackResult`.
    """

    problem: Problem
    rivals: Int[Array, "batch rivals"]
    iterate: Float[Array, "batch *image"]
    nearest: Float[Array, "batch *image"]
    distance: Float[Array, "batch"]
    margin: Float[Array, "batch"]
    clean_margin: Float[Array, "batch"]
    steps: Int[Array, "batch"]
    hits: Int[Array, "batch"]
    zero_gradients: Int[Array, "batch"]
    nonfinite_gradients: Int[Array, "batch"]


@partial(
    register_dataclass,
    data_fields=["epsilon", "alpha_max", "eta", "beta"],
    meta_fields=["norm", "num_steps", "num_classes", "search_steps", "start"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class FAB(Stepwise):
    """Fast adaptive boundary attack (Croce & Hein 2020); see `fab`."""

    epsilon: jax.typing.ArrayLike | None
    alpha_max: jax.typing.ArrayLike
    eta: jax.typing.ArrayLike
    beta: jax.typing.ArrayLike
    norm: str
    num_steps: int
    num_classes: int | None
    search_steps: int
    start: str

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
    ) -> FABState:
        """The state before the first step, after one forward pass of the clean images; a given `start` is clamped.

        Raises:
          ValueError: shapes or dtypes that do not fit, see `make_problem`; a random start without a radius.
        """
        radius = self.epsilon if epsilon is None else epsilon
        if radius is None and start is None and self.start == "random":
            raise ValueError("fab starts at random within half of epsilon; give epsilon, or start='clean'")
        problem = minimum_norm_problem(key, logits_fn, images, labels, targets, radius)
        logits = losses.class_logits(logits_fn(images))
        rivals = rivals_of(logits, labels, targets, self.num_classes)
        if start is not None:
            iterate = checked_start(start, images)
        else:
            iterate = images if self.start == "clean" else self._drawn(problem)
        zeros, wide = zeros_per_sample(images, jnp.int32), wide_dtype(images)
        margin = losses.logit_margin(logits, labels).astype(wide)
        return FABState(
            problem=problem,
            rivals=rivals,
            iterate=iterate,
            nearest=images,
            distance=jnp.where(losses.is_right(logits, labels), zeros.astype(wide) + jnp.inf, 0),
            margin=margin,
            clean_margin=margin,
            steps=zeros,
            hits=zeros,
            zero_gradients=zeros,
            nonfinite_gradients=zeros,
        )

    def _drawn(self, problem: Problem) -> Float[Array, "batch *image"]:
        """Images at half the radius from the clean ones, in a random direction."""
        drawn = (norms.uniform_in_box if self.norm == "linf" else norms.normal)(problem.keys, problem.images)
        unit = norms.unit_length(drawn, self.norm)
        return jnp.clip(problem.images + norms.per_sample(problem.epsilon / 2, unit) * unit, 0, 1)

    def step(self, logits_fn: LogitsFn, state: FABState) -> FABState:
        """Linearises, projects, classifies the new iterate, and draws an adversarial one back to the clean image."""
        problem = state.problem
        boundary = nearest_boundary(logits_fn, state.iterate, problem.labels, state.rivals, self.norm)
        moved = self._moved(state, boundary)
        logits = losses.class_logits(logits_fn(moved))
        fooled = ~losses.is_right(logits, problem.labels)
        hit = fooled if problem.targets is None else losses.is_right(logits, problem.targets)

        wide = wide_dtype(moved)
        perturbation = moved.astype(wide) - problem.images.astype(wide)
        distance = norms.length(perturbation, self.norm)
        nearer = fooled & (distance < state.distance)
        back = (problem.images.astype(wide) + jnp.asarray(self.beta, wide) * perturbation).astype(moved.dtype)
        return FABState(
            problem=problem,
            rivals=state.rivals,
            iterate=norms.select(fooled, back, moved),
            nearest=norms.select(nearer, moved, state.nearest),
            distance=jnp.where(nearer, distance, state.distance),
            margin=jnp.where(nearer, losses.logit_margin(logits, problem.labels).astype(wide), state.margin),
            clean_margin=state.clean_margin,
            steps=state.steps + 1,
            hits=state.hits + hit,
            zero_gradients=state.zero_gradients + boundary.zero,
            nonfinite_gradients=state.nonfinite_gradients + boundary.nonfinite,
        )

    def _moved(self, state: FABState, boundary: Boundary) -> Float[Array, "batch *image"]:
        """(1 - a) (x + eta s) + a (x0 + eta s0), where s and s0 lead from the iterate x and from the clean image x0 to
        the hyperplane, and a = min(|s| / (|s| + |s0|), alpha_max)."""
        wide = wide_dtype(state.iterate)
        iterate, clean = state.iterate.astype(wide), state.problem.images.astype(wide)
        normal = boundary.normal.astype(wide)
        away = jnp.sum(normal * (iterate - clean), axis=tuple(range(1, clean.ndim)))
        # Both in one call, whose loop then runs once.
        points, normals = jnp.concatenate([iterate, clean]), jnp.concatenate([normal, normal])
        offsets = jnp.concatenate([boundary.offset, boundary.offset + away])
        near, far = jnp.split(step_to_hyperplane(points, normals, offsets, self.norm), 2)
        near_length, far_length = (jnp.maximum(norms.length(step, self.norm), _SHORTEST) for step in (near, far))
        bias = jnp.minimum(near_length / (near_length + far_length), jnp.asarray(self.alpha_max, wide))
        bias = norms.per_sample(bias, clean)
        eta = jnp.asarray(self.eta, wide)
        moved = (1 - bias) * (iterate + eta * near) + bias * (clean + eta * far)
        return jnp.clip(moved, 0, 1).astype(state.iterate.dtype)

    def succeeded(self, state: FABState) -> Bool[Array, "batch"]:
        """Samples with an adversarial image within their radius; none where there is no radius: FAB improves to the
        end."""
        return (state.distance <= state.problem.epsilon) & jnp.isfinite(state.problem.epsilon)

    def result(self, logits_fn: LogitsFn, state: FABState) -> AttackResult:
        """The nearest adversarial image, drawn nearer by the final search; else the clean image."""
        problem, wide = state.problem, wide_dtype(state.iterate)
        searched = jnp.isfinite(state.distance) & (state.distance > 0)

        def search(_, ends):
            inside, inside_margin, outside, margin = ends
            crossing = -inside_margin / (margin - inside_margin)
            share = crossing + _BEYOND * (1 - crossing)
            share = norms.per_sample(jnp.where((share > 0) & (share < 1), share, 0.5), inside.astype(wide))
            probe = inside.astype(wide) + share * (outside.astype(wide) - inside.astype(wide))
            probe = jnp.clip(probe, 0, 1).astype(inside.dtype)
            logits = losses.class_logits(logits_fn(probe))
            probe_margin = losses.logit_margin(logits, problem.labels).astype(wide)
            fooled = ~losses.is_right(logits, problem.labels)
            out, within = searched & fooled, searched & ~fooled
            return (
                norms.select(within, probe, inside),
                jnp.where(within, probe_margin, inside_margin),
                norms.select(out, probe, outside),
                jnp.where(out, probe_margin, margin),
            )

        ends = (problem.images, state.clean_margin, state.nearest, state.margin)
        _, _, images, margin = jax.lax.fori_loop(0, self.search_steps, search, ends)
        length = norms.length(images.astype(wide) - problem.images.astype(wide), self.norm)
        taken = jnp.isfinite(state.distance) & (length <= problem.epsilon)
        return AttackResult(
            images=norms.select(taken, images, problem.images),
            is_right=~taken,
            score=jnp.where(taken, margin, state.clean_margin),
            hits=state.hits,
            zero_gradients=state.zero_gradients,
            nonfinite_gradients=state.nonfinite_gradients,
            winner=jnp.zeros_like(state.steps),
        )

    @property
    def passes(self) -> int:
        """Forward plus backward passes a sample: 3 a step towards a target, num_classes + 1 a step where that is given.

        Without targets and num_classes a step costs C + 1 passes for C classes, which the attack does not know.
        """
        a_step = 3 if self.num_classes is None else self.num_classes + 1
        return 1 + a_step * self.num_steps + self.search_steps


def fab(
    *,
    norm: str = "linf",
    epsilon: jax.typing.ArrayLike | None = None,
    num_steps: int = 100,
    alpha_max: jax.typing.ArrayLike = 0.1,
    eta: jax.typing.ArrayLike = 1.05,
    beta: jax.typing.ArrayLike = 0.9,
    num_classes: int | None = None,
    search_steps: int = 3,
    start: str = "clean",
) -> FAB:
    """FAB: the nearest adversarial image, by projections on the linearised boundary that keep near the clean image x0.

    x <- clip01((1 - a) (x + eta s) + a (x0 + eta s0)): s and s0 are the smallest steps from x and from x0 that end on
    the hyperplane z_j - z_y = 0 linearised at x, within the box [0, 1]; a = min(|s| / (|s| + |s0|), alpha_max). An
    iterate that fools the model is kept if it is the nearest so far, and drawn back: x <- x0 + beta (x - x0).

    With `targets=` at the call j is the target (FAB-T, as in AutoAttack; one gradient a step), without j is the class
    whose linearised boundary is nearest (a gradient a class). Any misclassification counts, also with targets.

    The result is the nearest adversarial image found, within the radius if there is one, else the clean image; a sample
    that is wrong already is returned as it is, at distance 0. `restarts` and `worst_of` keep the result of the largest
    margin, not the nearest one; and from the clean start nothing is random, so that restarts add nothing.

    Args:
      norm: "linf", "l2" or "l1": what distances are measured in.
      epsilon: radius in pixel units of [0, 1], a scalar or one a sample: the random start lies at half of it, and a
        sample has succeeded (needs no more steps) once an adversarial image within it is found. Nothing
        from beyond it is returned. None: no radius; samples improve to the last step.
      num_steps: number of updates.
      alpha_max: largest weight of the clean image's projection, in [0, 1].
      eta: overshoot of the projections, from 1.
      beta: what is left of a perturbation that was drawn back, in [0, 1].
      num_classes: without targets only the boundaries of the so many largest logits of the clean image are linearised,
        the true class among them. None: of all classes.
      search_steps: steps of the final search on the segment to the clean image.
      start: "clean" or "random"; `start=` at the call gives the images to start from.

    Returns:
      An attack. Passes: 1 + 3 num_steps + search_steps with targets; a step costs C + 1 without (C: classes looked at).

    Raises:
      ValueError: an unknown norm or start, a number out of its range, a random start without epsilon.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = fab(norm="l2", num_steps=10)
      >>> weights = jnp.array([[3.0, 0.0], [4.0, 0.0]])
      >>> x = jnp.array([[0.6, 0.5]])  # 3 x1 + 4 x2 = 3.3 is at distance 0.1
      >>> found = attack(jax.random.key(0), lambda x: x @ weights - jnp.array([3.3, 0.0]), x, jnp.array([0]))
      >>> round(jnp.linalg.norm(found - x).item(), 3)
      0.1

    References:
      Croce & Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack, ICML 2020. The final
      search is the paper's, which AutoAttack's code leaves out, but looks a tenth beyond the estimated crossing: on a
      nearly linear segment the crossing itself is right or wrong by rounding alone. The paper's later restarts start
      within half of the best distance so far, ours within half of epsilon.
    """
    norms.check_norm(norm)
    if start not in STARTS:
        raise ValueError(f"start is {start!r}; give one of {', '.join(STARTS)}, or images at the call")
    check_count("num_steps", num_steps)
    check_count("search_steps", search_steps, least=0)
    if num_classes is not None:
        check_count("num_classes", num_classes, least=2)
    if epsilon is not None:
        check_number("epsilon", epsilon)
    for name, value, low, high in (("alpha_max", alpha_max, 0, 1), ("eta", eta, 1, None), ("beta", beta, 0, 1)):
        check_number(name, value)
        if isinstance(value, (int, float)) and (value < low or (high is not None and value > high)):
            raise ValueError(f"{name} is {value}; give a number from {low}" + ("" if high is None else f" to {high}"))
    return FAB(epsilon, alpha_max, eta, beta, norm, num_steps, num_classes, search_steps, start)
