"""Carlini and Wagner's L2 attack: Adam on distance plus margin, the weight between the two found by binary search."""

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.final_search import PASSES, final_search
from jax_advtrain.attacks.gradients import ascent
from jax_advtrain.attacks.minimum_norm import (
    MARGIN,
    Nearest,
    is_confident,
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
from jax_advtrain.attacks.stepwise import Stepwise, fresh_state

# Pixels at 0 and 1 lie at infinity of the tanh space, where Adam would not move them in any number of steps, so they
# are drawn in. A pixel at one end thus stops 0.005 short of the other one.
_SHRINK = 0.99
_LARGEST_CONSTANT = 1e10

_ADAM = optax.scale_by_adam()


class CarliniWagnerState(NamedTuple):
    """State of the attack; every array leads with the batch axis.

    Attributes:
      problem: what is attacked; epsilon is infinite where no radius was given.
      modifier: what is added to the clean image in tanh space.
      start: the modifier that each round begins with; None = zero.
      optimizer_state: Adam's, one a sample; anew in each round.
      constant: weight of the margin.
      low, high: between which the constant is sought; `high` is infinite until a round has succeeded.
      found: whether the second half of the present round has seen an adversarial image.
      nearest: the nearest adversarial image of all rounds.
      steps: updates done, of all rounds.
      hits, zero_gradients, nonfinite_gradients: as in `AttackResult`.
    """

    problem: Problem
    modifier: Float[Array, "batch *image"]
    start: Float[Array, "batch *image"] | None
    optimizer_state: Any
    constant: Float[Array, "batch"]
    low: Float[Array, "batch"]
    high: Float[Array, "batch"]
    found: Bool[Array, "batch"]
    nearest: Nearest
    steps: Int[Array, "batch"]
    hits: Int[Array, "batch"]
    zero_gradients: Int[Array, "batch"]
    nonfinite_gradients: Int[Array, "batch"]


@partial(
    register_dataclass,
    data_fields=["epsilon", "step_size", "confidence", "initial_constant"],
    meta_fields=["inner_steps", "binary_search_steps"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class CarliniWagner(Stepwise):
    """The L2 attack of Carlini & Wagner 2017; see `carlini_wagner`."""

    epsilon: jax.typing.ArrayLike | None
    step_size: jax.typing.ArrayLike
    confidence: jax.typing.ArrayLike
    initial_constant: jax.typing.ArrayLike
    inner_steps: int
    binary_search_steps: int
    norm: ClassVar[str] = "l2"  # what distances are measured in

    @property
    def num_steps(self) -> int:  # type: ignore[override]
        """Steps of all rounds."""
        return self.inner_steps * self.binary_search_steps

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
    ) -> CarliniWagnerState:
        """The state before the first step; with `start` the clean images are classified first (one more forward pass).

        Raises:
          ValueError: shapes or dtypes that do not fit; see `make_problem`.
        """
        problem = minimum_norm_problem(
            key, logits_fn, images, labels, targets, self.epsilon if epsilon is None else epsilon
        )
        wide, zeros = wide_dtype(images), zeros_per_sample(images, jnp.int32)
        nothing = zeros_per_sample(images, wide)
        nearest, modifier = nothing_found(images), None
        if start is not None:
            outputs = logits_fn(images)
            nearest, _ = nearer(
                nearest, problem, images, outputs, nothing, is_confident(outputs, problem, self.confidence)
            )
            modifier = _in_tanh_space(checked_start(start, images)) - _in_tanh_space(images)
        first = jnp.zeros_like(images, wide) if modifier is None else modifier
        return CarliniWagnerState(
            problem=problem,
            modifier=first,
            start=modifier,
            optimizer_state=_fresh_optimizer(first),
            constant=nothing + jnp.asarray(self.initial_constant, wide),
            low=nothing,
            high=nothing + jnp.inf,
            found=nothing > 0,
            nearest=nearest,
            steps=zeros,
            hits=zeros,
            zero_gradients=zeros,
            nonfinite_gradients=zeros,
        )

    def step(self, logits_fn: LogitsFn, state: CarliniWagnerState) -> CarliniWagnerState:
        """One forward and backward pass and one step of Adam; at the end of a round the constant is changed."""
        problem, wide = state.problem, state.constant.dtype
        position = _in_tanh_space(problem.images)
        here, clean = jnp.tanh(position + state.modifier), jnp.tanh(position)
        # A pixel that is not modified stays as it is, whatever the rounding of two hyperbolic tangents.
        moved = problem.images.astype(wide) + jnp.where(state.modifier == 0, 0, here - clean) / 2
        images = jnp.clip(moved, 0, 1).astype(problem.images.dtype)
        perturbation = images.astype(wide) - problem.images.astype(wide)

        found = ascent(logits_fn, MARGIN, images, problem)
        confident = is_confident(found.outputs, problem, self.confidence)
        distance = norms.length(perturbation, "l2")
        nearest, fooled = nearer(state.nearest, problem, images, found.outputs, distance, confident)
        # At first Adam steps alike whatever the constant, and may cross the boundary with one far too small to stay.
        late = 2 * (state.steps % self.inner_steps + 1) > self.inner_steps
        found_in_round = state.found | (fooled & late)

        weight = norms.per_sample(jnp.where(confident, 0, state.constant), perturbation)
        by_pixel = 2 * perturbation - weight * found.gradient.astype(wide)
        gradient, overflow = norms.finite(by_pixel * (1 - jnp.square(here)) / 2)
        updates, optimizer_state = jax.vmap(_ADAM.update)(gradient, state.optimizer_state)
        step_size = norms.per_sample(jnp.asarray(self.step_size, wide), gradient)
        modifier = state.modifier - step_size * jnp.asarray(updates)

        steps = state.steps + 1
        ends = steps % self.inner_steps == 0
        first = jnp.zeros_like(modifier) if state.start is None else state.start
        high = jnp.where(ends & found_in_round, jnp.minimum(state.high, state.constant), state.high)
        low = jnp.where(ends & ~found_in_round, jnp.maximum(state.low, state.constant), state.low)
        larger = jnp.minimum(10 * state.constant, _LARGEST_CONSTANT)
        return CarliniWagnerState(
            problem=problem,
            modifier=norms.select(ends, first, modifier),
            start=state.start,
            optimizer_state=jax.tree.map(partial(norms.select, ends), _fresh_optimizer(first), optimizer_state),
            constant=jnp.where(ends, jnp.where(jnp.isfinite(high), (low + high) / 2, larger), state.constant),
            low=low,
            high=high,
            found=found_in_round & ~ends,
            nearest=nearest,
            steps=steps,
            hits=state.hits + fooled,
            zero_gradients=state.zero_gradients + found.zero,
            nonfinite_gradients=state.nonfinite_gradients + (found.nonfinite | overflow),
        )

    def succeeded(self, state: CarliniWagnerState) -> Bool[Array, "batch"]:
        """Samples with an adversarial image within the radius; none where no radius was given."""
        return within_radius(state.nearest, state.problem)

    def result(self, logits_fn: LogitsFn, state: CarliniWagnerState) -> AttackResult:
        """The nearest adversarial image found, drawn nearer by `final_search`, or the clean image."""
        nearest = final_search(logits_fn, state.problem, state.nearest, norm=self.norm, confidence=self.confidence)
        return minimum_norm_result(state._replace(nearest=nearest))

    @property
    def passes(self) -> int:
        """Forward plus backward passes a sample."""
        return 2 * self.num_steps + PASSES


def _in_tanh_space(images: Float[Array, "batch *image"]) -> Float[Array, "batch *image"]:
    return jnp.arctanh((2 * images.astype(wide_dtype(images)) - 1) * _SHRINK)


def _fresh_optimizer(modifier: Float[Array, "batch *image"]) -> Any:
    """Adam's state before its first step."""
    return fresh_state(_ADAM, jnp.zeros_like(modifier))


def carlini_wagner(
    *,
    epsilon: jax.typing.ArrayLike | None = None,
    inner_steps: int = 100,
    binary_search_steps: int = 9,
    step_size: jax.typing.ArrayLike = 0.02,
    confidence: jax.typing.ArrayLike = 0.0,
    initial_constant: jax.typing.ArrayLike = 1e-3,
) -> CarliniWagner:
    """Carlini & Wagner's L2 attack: the nearest adversarial image x' = (tanh(w) + 1) / 2 of all iterates of Adam on

        ||x' - x||_2^2 + c max(confidence - L(x'), 0)

    where L is the logit margin (targeted: how far the target's logit exceeds the others). The constant c is sought in
    `binary_search_steps` rounds of `inner_steps` steps, each from the clean image: it grows tenfold until a round
    finds an adversarial image, then it is bisected. `num_steps` is the number of steps of all rounds.

    A sample that is wrong from the start (by the confidence) has distance 0 and keeps its clean image, and so does one
    for which nothing was found. Of a linear model the distance is exact to 0.1%. The key is not used.

    Args:
      epsilon: None, or an L2 radius in pixel units of [0, 1], a scalar or one a sample. A sample is finished once an
        adversarial image is found within it (a driver of an active set, or `until_success`, goes by that), and none
        from beyond it is returned; the search itself does not feel it.
      inner_steps: Adam's steps a round; 1,000 of 0.01 (the authors take 10,000) are what a careful evaluation spends.
      binary_search_steps: rounds.
      step_size: Adam's, in tanh space: a scalar or one a sample. Around the middle of [0, 1] a pixel moves half of it.
        A round reaches no farther than about inner_steps * step_size, and from 0 to 0.9 it is 3.7.
      confidence: margin of the logits that an adversarial image must have.
      initial_constant: c of the first round.

    Returns:
      An attack: call it as `attack(key, logits_fn, images, labels)`. It costs 2 passes a step, and 39 at the end.

    Raises:
      ValueError: a number of steps below 1, or a number that is negative or NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 0.0]])
      >>> x = jnp.array([[0.75, 0.5]])
      >>> found = carlini_wagner()(jax.random.key(0), lambda x: (x - 0.5) @ weights, x, jnp.array([0]))
      >>> round(jnp.linalg.norm(found - x).item(), 2)
      0.25

    References:
      Carlini & Wagner, Towards evaluating the robustness of neural networks, S&P 2017. Unlike the authors' code: a
      round counts as a success if its second half finds an adversarial image (there: any step, so that Adam's first
      steps end the search far from the right constant); pixels at 0 and 1 are drawn in by 1% in tanh space (there:
      1e-6), while the clean image itself stays exact; no round is aborted, and the last of 10 or more rounds is not
      spent on the largest constant. What the rounds found is drawn nearer by `final_search`: alone, 100 steps of 0.02
      end up to some percent too far, and at the boundary of the class that is nearest by its logit.
    """
    for name, value in (("inner_steps", inner_steps), ("binary_search_steps", binary_search_steps)):
        check_count(name, value)
    if epsilon is not None:
        check_number("epsilon", epsilon)
    check_number("confidence", confidence)
    check_number("step_size", step_size, positive=True)
    check_number("initial_constant", initial_constant, positive=True)
    return CarliniWagner(
        epsilon=epsilon,
        step_size=step_size,
        confidence=confidence,
        initial_constant=initial_constant,
        inner_steps=inner_steps,
        binary_search_steps=binary_search_steps,
    )
