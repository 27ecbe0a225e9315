"""DeepFool: step to the nearest linearised decision boundary until the model is fooled."""

import dataclasses
import math
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.hyperplane import nearest_boundary, rivals_of, step_without_box
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

NORMS = ("l2", "linf")

# Classes looked at where `num_classes` is not given (the paper's number).
NUM_CLASSES = 10

# Length by which each step is longer than asked, as in the authors' code. Where the box holds pixels back, steps shrink
# towards the boundary and would stay short of it for good.
_BEYOND = 1e-4


class DeepFoolState(NamedTuple):
    """State of DeepFool; every array leads with the batch axis.

    Attributes:
      problem: what is attacked; the radius is infinity where none was given.
      rivals: the classes whose boundaries are linearised.
      iterate: the present images; the first one that fooled the model, once one has.
      fooled: whether the model is wrong on the iterate; such a sample rests.
      margin: logit margin of the iterate where it fooled the model, else of the clean image.
      clean_margin: that of the clean image.
      steps: updates done, those at rest included.
      hits, zero_gradients, nonfinite_gradients: as in `AttackResult`.
    """

    problem: Problem
    rivals: Int[Array, "batch rivals"]
    iterate: Float[Array, "batch *image"]
    fooled: Bool[Array, "batch"]
    margin: Float[Array, "batch"]
    clean_margin: Float[Array, "batch"]
    steps: Int[Array, "batch"]
    hits: Int[Array, "batch"]
    zero_gradients: Int[Array, "batch"]
    nonfinite_gradients: Int[Array, "batch"]


@partial(
    register_dataclass,
    data_fields=["epsilon", "overshoot"],
    meta_fields=["norm", "num_steps", "num_classes"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class DeepFool(Stepwise):
    """DeepFool (Moosavi-Dezfooli et al. 2016); see `deepfool`."""

    epsilon: jax.typing.ArrayLike | None
    overshoot: jax.typing.ArrayLike
    norm: str
    num_steps: int
    num_classes: int | None
    stops_early: ClassVar[bool] = True

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
    ) -> DeepFoolState:
        """The state before the first step. The clean images are classified, and so is a given `start` (clamped).

        Raises:
          ValueError: shapes or dtypes that do not fit; see `make_problem`.
        """
        problem = minimum_norm_problem(
            key, logits_fn, images, labels, targets, self.epsilon if epsilon is None else epsilon
        )
        logits = losses.class_logits(logits_fn(images))
        rivals = rivals_of(logits, labels, targets, self.num_classes or NUM_CLASSES)
        fooled = ~losses.is_right(logits, labels)
        margin = clean_margin = losses.logit_margin(logits, labels).astype(wide_dtype(images))
        iterate = images
        if start is not None:
            iterate = norms.select(fooled, images, checked_start(start, images))
            logits = losses.class_logits(logits_fn(iterate))
            wrong = ~losses.is_right(logits, labels)
            margin = jnp.where(wrong & ~fooled, losses.logit_margin(logits, labels).astype(margin.dtype), margin)
            fooled = fooled | wrong
        zeros = zeros_per_sample(images, jnp.int32)
        return DeepFoolState(problem, rivals, iterate, fooled, margin, clean_margin, zeros, zeros, zeros, zeros)

    def step(self, logits_fn: LogitsFn, state: DeepFoolState) -> DeepFoolState:
        """Linearises, steps to the nearest boundary and beyond it, and classifies; finished samples rest."""
        problem, wide, active = state.problem, wide_dtype(state.iterate), ~self.finished(state)
        boundary = nearest_boundary(logits_fn, state.iterate, problem.labels, state.rivals, self.norm)
        step = step_without_box(boundary.normal, boundary.offset, self.norm)
        size = norms.length(step, self.norm)
        stretch = 1 + max(_rounding(state.iterate, self.norm), _BEYOND) / jnp.where(size > 0, size, 1)
        step = step * norms.per_sample((1 + jnp.asarray(self.overshoot, wide)) * stretch, step)
        moved = jnp.clip(state.iterate.astype(wide) + step, 0, 1).astype(state.iterate.dtype)
        moved = norms.select(active, moved, state.iterate)

        logits = losses.class_logits(logits_fn(moved))
        newly = active & ~losses.is_right(logits, problem.labels)
        hit = newly if problem.targets is None else active & losses.is_right(logits, problem.targets)
        return DeepFoolState(
            problem=problem,
            rivals=state.rivals,
            iterate=moved,
            fooled=state.fooled | newly,
            margin=jnp.where(newly, losses.logit_margin(logits, problem.labels).astype(wide), state.margin),
            clean_margin=state.clean_margin,
            steps=state.steps + 1,
            hits=state.hits + hit,
            zero_gradients=state.zero_gradients + (boundary.zero & active),
            nonfinite_gradients=state.nonfinite_gradients + (boundary.nonfinite & active),
        )

    def finished(self, state: DeepFoolState) -> Bool[Array, "batch"]:
        """Whether a sample fooled the model, at whatever distance, or took all its steps."""
        return (state.steps >= self.num_steps) | state.fooled

    def succeeded(self, state: DeepFoolState) -> Bool[Array, "batch"]:
        """Samples that fooled the model within their radius; none where there is no radius."""
        return self._within(state) & jnp.isfinite(state.problem.epsilon)

    def _within(self, state: DeepFoolState) -> Bool[Array, "batch"]:
        wide = wide_dtype(state.iterate)
        distance = norms.length(state.iterate.astype(wide) - state.problem.images.astype(wide), self.norm)
        return state.fooled & (distance <= state.problem.epsilon)

    def result(self, logits_fn: LogitsFn, state: DeepFoolState) -> AttackResult:
        """The first iterate that fooled the model, if it is within the radius, else the clean image; no pass."""
        del logits_fn
        taken = self._within(state)
        return AttackResult(
            images=norms.select(taken, state.iterate, state.problem.images),
            is_right=~taken,
            score=jnp.where(taken, state.margin, state.clean_margin),
            hits=state.hits,
            zero_gradients=state.zero_gradients,
            nonfinite_gradients=state.nonfinite_gradients,
            winner=jnp.zeros_like(state.steps),
        )

    @property
    def passes(self) -> int:
        """Forward plus backward passes of a sample that is never fooled, if there are `num_classes` classes or more;
        most are fooled within a few steps."""
        return 1 + self.num_steps * ((self.num_classes or NUM_CLASSES) + 1)


def _rounding(images: Float[Array, "batch *image"], norm: str) -> float:
    """Length of a step that moves every pixel by half a unit in its last place: shorter ones may move nothing."""
    ulp = float(jnp.finfo(images.dtype).eps) / 2
    return ulp if norm == "linf" else ulp * math.sqrt(math.prod(images.shape[1:]))


def deepfool(
    *,
    norm: str = "l2",
    epsilon: jax.typing.ArrayLike | None = None,
    num_steps: int = 50,
    overshoot: jax.typing.ArrayLike = 0.02,
    num_classes: int | None = None,
) -> DeepFool:
    """DeepFool: steps to the nearest linearised boundary until the model is fooled.

    x <- clip01(x + (1 + overshoot) s): at each x the boundaries z_j - z_y = 0 between the true class y and its rivals j
    are linearised; the nearest is the one of the least |z_j - z_y| / ||g||_dual, g the gradient of z_j - z_y, and s the
    smallest step that ends on it.

    The result is the first iterate that fools the model, if it is within the radius (if there is one), else the clean
    image; a sample that is wrong already is returned as it is. Nothing is random.
    With `targets=` at the call only the boundary to the target is linearised; any misclassification counts.

    Args:
      norm: "l2" or "linf": what distances are measured in.
      epsilon: radius in pixel units of [0, 1], a scalar or one a sample, from beyond which nothing is returned; the
        steps do not feel it. None: no radius.
      num_steps: most updates of a sample.
      overshoot: share of each step by which it ends beyond the boundary.
      num_classes: only the boundaries of the so many largest logits of the clean image are linearised, the true class
        among them. None: of 10, or of all where there are fewer.

    Returns:
      An attack. Passes: 1, and for each step until a sample is fooled num_classes + 1 (with targets 3).

    Raises:
      ValueError: an unknown norm, a number out of its range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> weights = jnp.array([[3.0, 0.0], [4.0, 0.0]])
      >>> x = jnp.array([[0.6, 0.5]])  # 3 x1 + 4 x2 = 3.3 is at distance 0.1
      >>> found = deepfool()(jax.random.key(0), lambda x: x @ weights - jnp.array([3.3, 0.0]), x, jnp.array([0]))
      >>> round(jnp.linalg.norm(found - x).item(), 3)
      0.102

    References:
      Moosavi-Dezfooli, Fawzi & Frossard, DeepFool: a simple and accurate method to fool deep neural networks, CVPR
      2016. As the authors' code, and unlike the paper, the overshoot enters at each step and not once at the end, and
      1e-4 is added to the length of each step (here more where rounding would swallow that). The code knows no box, we
      clip (steps that are the smallest within the box were tried: they end 12 to 20% farther away on MNIST); and it
      takes the prediction on the clean image for the truth, where we return the image.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; the norms of deepfool are {', '.join(NORMS)}")
    check_count("num_steps", num_steps)
    if num_classes is not None:
        check_count("num_classes", num_classes, least=2)
    check_number("overshoot", overshoot)
    if epsilon is not None:
        check_number("epsilon", epsilon)
    return DeepFool(epsilon, overshoot, norm, num_steps, num_classes)
