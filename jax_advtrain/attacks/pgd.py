"""Projected gradient ascent: one loop, of which PGD, FGSM, IFGSM and MIM are settings."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import l1, losses, norms
from jax_advtrain.attacks.gradients import Stochastic, ascent, outputs_of
from jax_advtrain.attacks.protocol import (
    AttackResult,
    LogitsFn,
    Problem,
    check_count,
    check_number,
    check_per_sample,
    checked_start,
    is_fooled,
    make_problem,
    zeros_per_sample,
)
from jax_advtrain.attacks.pytrees import register_dataclass
from jax_advtrain.attacks.stepwise import Stepwise, fresh_state

STARTS = ("random", "clean")


class AscentState(NamedTuple):
    """State of the ascent; every array leads with the batch axis.

    Attributes:
      problem: what is attacked.
      step_size: step of each sample.
      iterate: the present images.
      optimizer_state: of the inner optimizer, one state a sample.
      momentum: None, or the sum of gradients that MIM climbs along.
      steps: updates done.
      hits, zero_gradients, nonfinite_gradients: as in `AttackResult`.
    """

    problem: Problem
    step_size: Float[Array, "batch"]
    iterate: Float[Array, "batch *image"]
    optimizer_state: Any
    momentum: Float[Array, "batch *image"] | None
    steps: Int[Array, "batch"]
    hits: Int[Array, "batch"]
    zero_gradients: Int[Array, "batch"]
    nonfinite_gradients: Int[Array, "batch"]


@partial(
    register_dataclass,
    data_fields=["epsilon", "step_size", "alpha", "loss", "decay"],
    meta_fields=[
        "norm",
        "num_steps",
        "start",
        "project",
        "optimizer",
        "eot_passes",
        "stops_early",
        "is_right",
        "score",
        "l1_share",
    ],
)
@dataclasses.dataclass(frozen=True, eq=False)
class PGD(Stepwise):
    """Projected gradient ascent (Madry et al. 2018), the settings of `pgd`, `fgsm`, `ifgsm` and `mim`; see there."""

    epsilon: jax.typing.ArrayLike
    step_size: jax.typing.ArrayLike | None
    alpha: jax.typing.ArrayLike | None
    loss: losses.Loss
    norm: str
    num_steps: int
    start: str
    project: bool
    optimizer: optax.GradientTransformation | None
    is_right: Callable[[jax.Array, jax.Array], jax.Array]
    score: Callable[[jax.Array, jax.Array], jax.Array]
    eot_passes: int = 1
    stops_early: bool = False
    l1_share: float = l1.DEFAULT_SHARE
    decay: jax.typing.ArrayLike | None = None

    def init(
        self,
        key: jax.Array,
        logits_fn: LogitsFn,
        images: Float[Array, "batch *image"],
        labels: Int[Array, "batch *dense"],
        *,
        targets: Int[Array, "batch *dense"] | None = None,
        epsilon: jax.typing.ArrayLike | None = None,
        start: Float[Array, "batch *image"] | None = None,
    ) -> AscentState:
        """The state before the first step; a given `start` is clamped to [0, 1] and not projected on the ball.

        Raises:
          ValueError: shapes or dtypes that do not fit; see `make_problem`.
        """
        del logits_fn
        problem = make_problem(key, images, labels, targets, self.epsilon if epsilon is None else epsilon)
        if start is not None:
            iterate = checked_start(start, images)
        elif self.start == "random":
            noise = norms.uniform_in_ball(problem.keys, images, self.norm)
            iterate = norms.project(
                images, noise * norms.per_sample(problem.epsilon, images), problem.epsilon, self.norm
            )
        else:
            iterate = images
        if self.decay is not None:
            _scalar_or_one_a_sample("decay", self.decay, problem.epsilon)
        zeros = zeros_per_sample(images, jnp.int32)
        return AscentState(
            problem=problem,
            step_size=self._step_size(problem.epsilon),
            iterate=iterate,
            optimizer_state=None if self.optimizer is None else fresh_state(self.optimizer, iterate),
            momentum=None if self.decay is None else jnp.zeros_like(iterate),
            steps=zeros,
            hits=zeros,
            zero_gradients=zeros,
            nonfinite_gradients=zeros,
        )

    def _step_size(self, epsilon: Float[Array, "batch"]) -> Float[Array, "batch"]:
        name, value = ("step_size", self.step_size) if self.alpha is None else ("alpha", self.alpha)
        number = _scalar_or_one_a_sample(name, 1 if value is None else value, epsilon)
        if self.alpha is not None:
            return number * epsilon / self.num_steps
        return jnp.zeros_like(epsilon) + number

    def _direction(self, gradient, iterate):
        if self.norm == "l1":
            return norms.sparse_ascent(gradient, iterate, self.l1_share)
        return norms.steepest_ascent(gradient, self.norm)

    def is_fooled(self, outputs: jax.Array, problem: Problem) -> Bool[Array, "batch"]:
        """Whether the model is wrong, or with targets whether it takes the sample for its target."""
        return is_fooled(self.is_right, outputs, problem)

    def advance(self, logits_fn: LogitsFn, state: AscentState) -> tuple[AscentState, Bool[Array, "batch"]]:
        """One step, and whether the iterate BEFORE it fooled the model (read off the same forward pass)."""
        problem = state.problem
        if self.stops_early and isinstance(logits_fn, Stochastic):
            raise ValueError(
                "until_success (and the active set) would leave a sample at the first image that one draw of a "
                "stochastic model gets wrong, which the next draw gets right: attack it without"
            )
        found = ascent(logits_fn, self.loss, state.iterate, problem, number=state.steps, eot_passes=self.eot_passes)
        gradient, nonfinite = found.gradient, found.nonfinite
        fooled = self.is_fooled(found.outputs, problem)
        momentum, optimizer_state = None, state.optimizer_state
        if self.decay is not None and state.momentum is not None:
            kept = norms.per_sample(self.decay, gradient) * state.momentum
            gradient = momentum = kept + norms.unit_length(gradient, "l1")
        if self.optimizer is None:
            updates = self._direction(gradient, state.iterate)
        else:
            updates, optimizer_state = jax.vmap(self.optimizer.update)(-gradient, state.optimizer_state, state.iterate)
            updates, broken = norms.finite(jnp.asarray(updates))
            nonfinite = nonfinite | broken
        moved = state.iterate + norms.per_sample(state.step_size, updates) * updates
        if self.project:
            moved = norms.project(problem.images, moved - problem.images, problem.epsilon, self.norm)
        else:
            moved = jnp.clip(moved, 0, 1)
        if self.stops_early:
            moved = norms.select(fooled, state.iterate, moved)
        return (
            AscentState(
                problem=problem,
                step_size=state.step_size,
                iterate=moved,
                optimizer_state=optimizer_state,
                momentum=momentum,
                steps=state.steps + 1,
                hits=state.hits + fooled,
                zero_gradients=state.zero_gradients + found.zero,
                nonfinite_gradients=state.nonfinite_gradients + nonfinite,
            ),
            fooled,
        )

    def step(self, logits_fn: LogitsFn, state: AscentState) -> AscentState:
        """One forward and backward pass, one update, one projection."""
        return self.advance(logits_fn, state)[0]

    def succeeded(self, state: AscentState) -> Bool[Array, "batch"]:
        """Samples that stay where they fooled the model; none where the ascent goes on (see `until_success`)."""
        return (state.hits > 0) & self.stops_early

    def result(self, logits_fn: LogitsFn, state: AscentState) -> AttackResult:
        """Classifies the final iterate (one forward pass)."""
        outputs = outputs_of(logits_fn, state.iterate, state.problem, self.num_steps * self.eot_passes)
        return AttackResult(
            images=state.iterate,
            is_right=self.is_right(outputs, state.problem.labels),
            score=check_per_sample("score", self.score(outputs, state.problem.labels), len(state.iterate)),
            hits=state.hits + self.is_fooled(outputs, state.problem),
            zero_gradients=state.zero_gradients,
            nonfinite_gradients=state.nonfinite_gradients,
            winner=jnp.zeros_like(state.steps),
        )

    @property
    def passes(self) -> int:
        """Forward plus backward passes a sample, the classification of the result included."""
        return 2 * self.num_steps * self.eot_passes + 1


def _scalar_or_one_a_sample(name: str, value: jax.typing.ArrayLike, epsilon: Float[Array, "batch"]) -> jax.Array:
    number = jnp.asarray(value, epsilon.dtype)
    if number.shape not in ((), epsilon.shape):
        raise ValueError(f"{name} has shape {number.shape}; give a scalar or one a sample: {epsilon.shape}")
    return number


def pgd(
    *,
    norm: str = "linf",
    epsilon: jax.typing.ArrayLike,
    num_steps: int = 20,
    step_size: jax.typing.ArrayLike | None = None,
    alpha: jax.typing.ArrayLike | None = None,
    loss: str | losses.LossFunction | losses.Loss = "ce",
    start: str = "random",
    project: bool = True,
    optimizer: optax.GradientTransformation | None = None,
    l1_share: float | None = None,
    is_right: Callable[[jax.Array, jax.Array], jax.Array] = losses.is_right,
    score: Callable[[jax.Array, jax.Array], jax.Array] = losses.classification_margin,
) -> PGD:
    """PGD: x <- clip01(x0 + clip_eps(x + step_size * direction(grad loss) - x0)), `num_steps` times.

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: radius in pixel units of [0, 1]: a scalar or one a sample. 0 returns the image bit for bit.
      num_steps: number of updates.
      step_size: absolute step, a scalar or one a sample; excludes `alpha`.
      alpha: relative step: step_size = alpha * epsilon / num_steps, so that an epsilon given at the call scales it.
        Default 2.5 where neither is given.
      loss: what is ascended: "ce", "lm", "slm", "bce", "lmb", a function, or `with_temperature(...)`.
      start: "random" (uniform in the ball) or "clean"; `start=` at the call gives the images to start from.
      project: False leaves out the projection on the ball and keeps the box alone, as the IMA reference's
        `ifgsm_attack` does.
      optimizer: any optax transformation in place of the steepest ascent. It minimises the negative loss, one state a
        sample (so give a whole optimizer, say `optax.adam(0.01)`); its updates are multiplied by `step_size`
        (default 1). Static: hashed by identity, so make it once.
      l1_share: for "l1" alone: what part of the pixels a step moves, above 0, rounded up to whole ones (default 0.01).
        They share the step equally. The steepest direction of "l1" is one pixel, which soon stands at the end of
        [0, 1]; a share lets the ascent spread (SLIDE, Tramer & Boneh 2019). Pixels that the box holds back do not
        count (Maini et al. 2020), and the projection is on ball and box at once (Croce & Hein 2021).
      is_right: (outputs, labels) -> (batch,) bool.
      score: (outputs, labels) -> (batch,), how wrong a result is.

    Returns:
      An attack: call it as `attack(key, logits_fn, images, labels)`.

    Raises:
      ValueError: an unknown norm, loss or start, num_steps < 1, a negative or NaN number, step_size beside alpha, an
        l1_share outside (0, 1] or of another norm.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = pgd(norm="linf", epsilon=0.1, step_size=0.05, num_steps=4)
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 0.0]])
      >>> x = jnp.array([[0.5, 0.5]])
      >>> attack(jax.random.key(0), lambda x: x @ weights, x, jnp.array([0]))[0, 0].item()
      0.4000000059604645

    References:
      Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018.
      Tramer & Boneh, Adversarial training and robustness for multiple perturbations, NeurIPS 2019.
      Maini et al., Adversarial robustness against the union of multiple perturbation models, ICML 2020.
      Croce & Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers, ICML 2021.
    """
    norms.check_norm(norm)
    if start not in STARTS:
        raise ValueError(f"start is {start!r}; give one of {', '.join(STARTS)}, or images at the call")
    check_count("num_steps", num_steps)
    if alpha is not None and (step_size is not None or optimizer is not None):
        raise ValueError("alpha makes the step relative to epsilon; leave it out beside step_size or an optimizer")
    if l1_share is not None:
        if norm != "l1":
            raise ValueError(f"l1_share belongs to the norm l1; leave it out with {norm}")
        if isinstance(l1_share, bool) or not isinstance(l1_share, (int, float)) or not 0 < l1_share <= 1:
            raise ValueError(f"l1_share is {l1_share!r}; give a number above 0 and up to 1")
    check_number("epsilon", epsilon)
    for name, value in (("step_size", step_size), ("alpha", alpha)):
        if value is not None:
            check_number(name, value)
    if alpha is None and step_size is None and optimizer is None:
        alpha = 2.5
    return PGD(
        epsilon=epsilon,
        step_size=step_size,
        alpha=alpha,
        loss=losses.as_loss(loss),
        norm=norm,
        num_steps=num_steps,
        start=start,
        project=project,
        optimizer=optimizer,
        is_right=is_right,
        score=score,
        l1_share=l1.DEFAULT_SHARE if l1_share is None else l1_share,
    )


def fgsm(*, norm: str = "linf", epsilon: jax.typing.ArrayLike, loss="ce", **settings) -> PGD:
    """FGSM (Goodfellow et al. 2015): one step of length epsilon from the clean image. Settings as in `pgd`."""
    return pgd(norm=norm, epsilon=epsilon, num_steps=1, alpha=1, loss=loss, start="clean", **settings)


def ifgsm(
    *,
    norm: str = "linf",
    epsilon: jax.typing.ArrayLike,
    num_steps: int = 10,
    step_size: jax.typing.ArrayLike | None = None,
    alpha: jax.typing.ArrayLike | None = None,
    **settings,
) -> PGD:
    """IFGSM, also called BIM (Kurakin et al. 2017): PGD from the clean image; the step is epsilon / 4 by default.

    Settings as in `pgd`.
    """
    if alpha is None and step_size is None and settings.get("optimizer") is None and isinstance(num_steps, int):
        alpha = num_steps / 4
    return pgd(
        norm=norm,
        epsilon=epsilon,
        num_steps=num_steps,
        step_size=step_size,
        alpha=alpha,
        start="clean",
        **settings,
    )


def ifgsm_steps(epsilon: float) -> int:
    """Kurakin's number of steps of 1/255 for a radius: min(255 eps + 4, 1.25 * 255 eps), rounded down."""
    return int(min(255 * epsilon + 4, 1.25 * 255 * epsilon))
