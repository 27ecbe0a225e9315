"""APGD (Croce & Hein 2020): projected gradient ascent that finds its own step size."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.apgd_l1 import Sparsity, check_sparsity, first_sparsity, sparse_step
from jax_advtrain.attacks.apgd_schedule import (
    Halving,
    Row,
    Stage,
    check_halving,
    equal_windows,
    first_halving,
    halving_windows,
    momentum_step,
    row_of,
    shrinking_stages,
)
from jax_advtrain.attacks.gradients import ascent, outputs_of
from jax_advtrain.attacks.protocol import (
    AttackResult,
    LogitsFn,
    Problem,
    check_count,
    check_number,
    check_per_sample,
    checked_start,
    make_problem,
    zeros_per_sample,
)
from jax_advtrain.attacks.pytrees import register_dataclass
from jax_advtrain.attacks.stepwise import Stepwise


class APGDState(NamedTuple):
    """State of the ascent; every array leads with the batch axis.

    Attributes:
      problem: what is attacked.
      steps: gradient steps done.
      iterate: the present images, not yet seen by the model.
      previous: the images before the last step; None for "l1", which has no momentum.
      best, best_gradient, best_loss: the images of highest loss in this stage.
      found: what `result` returns: the first iterate that fooled the model, until then the one of highest loss.
      score: of `found`.
      rule: the step size and what decides on it.
      hits, zero_gradients, nonfinite_gradients: as in `AttackResult`.
    """

    problem: Problem
    steps: Int[Array, "batch"]
    iterate: Float[Array, "batch *image"]
    previous: Float[Array, "batch *image"] | None
    best: Float[Array, "batch *image"]
    best_gradient: Float[Array, "batch *image"]
    best_loss: Float[Array, "batch"]
    found: Float[Array, "batch *image"]
    score: Float[Array, "batch"]
    rule: Halving | Sparsity
    hits: Int[Array, "batch"]
    zero_gradients: Int[Array, "batch"]
    nonfinite_gradients: Int[Array, "batch"]


@partial(
    register_dataclass,
    data_fields=["epsilon", "loss", "rho"],
    meta_fields=["norm", "stages", "eot_passes", "is_right", "score"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class APGD(Stepwise):
    """Auto-PGD, the settings of `apgd`; see there."""

    epsilon: jax.typing.ArrayLike
    loss: losses.Loss
    rho: jax.typing.ArrayLike
    norm: str
    stages: tuple[Stage, ...]
    eot_passes: int
    is_right: Callable[[jax.Array, jax.Array], jax.Array]
    score: Callable[[jax.Array, jax.Array], jax.Array]

    @property
    def num_steps(self) -> int:
        """Gradient steps; a stage that another one follows looks at its last point too, which is one more."""
        return sum(stage.num_steps for stage in self.stages) + len(self.stages) - 1

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
    ) -> APGDState:
        """The state before the first step, without a pass of the model; a given `start` is projected on ball and box.

        Raises:
          ValueError: shapes or dtypes that do not fit; see `make_problem`.
        """
        del logits_fn
        problem = make_problem(key, images, labels, targets, self.epsilon if epsilon is None else epsilon)
        radius = self.stages[0].radius * problem.epsilon
        perturbation = self._noise(problem, radius) if start is None else checked_start(start, images) - images
        iterate = norms.project(images, perturbation, radius, self.norm)
        # Losses are compared over many steps, which bfloat16 is too coarse for.
        losses_of = zeros_per_sample(images, jnp.promote_types(images.dtype, jnp.float32))
        zeros = zeros_per_sample(images, jnp.int32)
        return APGDState(
            problem=problem,
            steps=zeros,
            iterate=iterate,
            previous=None if self.norm == "l1" else iterate,
            best=iterate,
            best_gradient=jnp.zeros_like(images),
            best_loss=losses_of,
            found=images,
            score=losses_of,
            rule=self._first_rule(
                problem, radius, iterate if start is not None or len(self.stages) > 1 else None, losses_of.dtype
            ),
            hits=zeros,
            zero_gradients=zeros,
            nonfinite_gradients=zeros,
        )

    def _noise(self, problem: Problem, radius: Float[Array, "batch"]) -> Float[Array, "batch *image"]:
        """Of norm `radius`; for "l1" Gaussian noise as it is, which the projection makes sparse."""
        images = problem.images
        drawn = (norms.uniform_in_box if self.norm == "linf" else norms.normal)(problem.keys, images)
        return drawn if self.norm == "l1" else norms.unit_length(drawn, self.norm) * norms.per_sample(radius, images)

    def _first_rule(self, problem: Problem, radius, start, loss_dtype) -> Halving | Sparsity:
        if self.norm == "l1":
            return first_sparsity(problem.images, radius, start)
        return first_halving(problem.images, radius, loss_dtype)

    def _see(self, state: APGDState, row: Row, outputs: jax.Array, loss: jax.Array) -> tuple[APGDState, jax.Array]:
        """Keeps the iterate if it is the first to fool the model or the best so far, and says where it is the best."""
        problem, iterate = state.problem, state.iterate
        loss = loss.astype(state.best_loss.dtype)
        right = check_per_sample("is_right", self.is_right(outputs, problem.labels), len(iterate))
        score = check_per_sample("score", self.score(outputs, problem.labels), len(iterate))
        fooled = row.counts & ~right
        best = row.is_first | (loss > state.best_loss) | jnp.isnan(state.best_loss)
        taken = row.counts & (state.hits == 0) & (fooled | best)
        state = state._replace(
            best=norms.select(best, iterate, state.best),
            best_loss=jnp.where(best, loss, state.best_loss),
            found=norms.select(taken, iterate, state.found),
            score=jnp.where(taken, score.astype(state.score.dtype), state.score),
            hits=state.hits + fooled,
        )
        return state, best

    def step(self, logits_fn: LogitsFn, state: APGDState) -> APGDState:
        """One forward and backward pass at the iterate, the look at the step size, and the move."""
        problem, row = state.problem, row_of(self.stages, state.steps)
        images = problem.images
        found = ascent(logits_fn, self.loss, state.iterate, problem, number=state.steps, eot_passes=self.eot_passes)
        state, best = self._see(state, row, found.outputs, found.loss)
        best_gradient = norms.select(best, found.gradient, state.best_gradient)
        radius = row.radius.astype(images.dtype) * problem.epsilon

        if isinstance(state.rule, Sparsity):
            rule, returns = check_sparsity(state.rule, row, images, state.best, radius)
        else:
            loss = found.loss.astype(state.best_loss.dtype)
            rule, returns = check_halving(state.rule, row, loss, state.best_loss, self.rho)
        point = norms.select(returns, state.best, state.iterate)
        gradient = norms.select(returns, best_gradient, found.gradient)
        if isinstance(rule, Sparsity):
            moved = sparse_step(images, point, gradient, rule=rule, radius=radius)
        else:
            assert state.previous is not None
            moved = momentum_step(
                images,
                point,
                state.previous,
                gradient,
                step_size=rule.step_size,
                radius=radius,
                is_first=row.is_first,
                norm=self.norm,
            )
        if len(self.stages) > 1:
            radius = row_of(self.stages, state.steps + 1).radius.astype(images.dtype) * problem.epsilon
            moved = norms.select(row.is_last, norms.project(images, state.best - images, radius, self.norm), moved)
            fresh = self._first_rule(problem, radius, moved, state.best_loss.dtype)
            rule = jax.tree.map(lambda new, old: jnp.where(row.is_last, new, old), fresh, rule)
        return state._replace(
            steps=state.steps + 1,
            iterate=moved,
            previous=None if state.previous is None else point,
            best_gradient=best_gradient,
            rule=rule,
            zero_gradients=state.zero_gradients + found.zero,
            nonfinite_gradients=state.nonfinite_gradients + found.nonfinite,
        )

    def succeeded(self, state: APGDState) -> Bool[Array, "batch"]:
        """Samples of which an iterate that fooled the model is held; more steps do not change it."""
        return state.hits > 0

    def result(self, logits_fn: LogitsFn, state: APGDState) -> AttackResult:
        """Classifies the last iterate too (one forward pass), and returns what was found.

        The first iterate that fooled the model, where there is one; else that of highest loss. Whether the model is
        right on an image and its score are those of the pass that found it.
        """
        problem, row = state.problem, row_of(self.stages, state.steps)
        if len(self.stages) > 1:
            # A sample that has not come to the last radius has nothing to show but its iterate, brought into the ball.
            inside = norms.project(problem.images, state.iterate - problem.images, problem.epsilon, self.norm)
            state = state._replace(iterate=norms.select(row.counts, state.iterate, inside))
            row = row._replace(is_first=row.is_first | ~row.counts, counts=jnp.ones_like(row.counts))
        outputs = outputs_of(logits_fn, state.iterate, problem, state.steps * self.eot_passes)
        loss = self.loss.ascended(outputs, problem.labels, problem.targets)
        state, _ = self._see(state, row, outputs, loss)
        return AttackResult(
            images=state.found,
            is_right=state.hits == 0,
            score=state.score,
            hits=state.hits,
            zero_gradients=state.zero_gradients,
            nonfinite_gradients=state.nonfinite_gradients,
            winner=jnp.zeros_like(state.steps),
        )

    @property
    def passes(self) -> int:
        """Forward plus backward passes a sample, the classification of the last iterate included."""
        return 2 * self.num_steps * self.eot_passes + 1


def apgd(
    *,
    norm: str = "linf",
    epsilon: jax.typing.ArrayLike,
    num_steps: int = 100,
    loss: str | losses.LossFunction | losses.Loss = "ce",
    rho: jax.typing.ArrayLike = 0.75,
    eot_passes: int = 1,
    large_radii: bool = False,
    is_right: Callable[[jax.Array, jax.Array], jax.Array] = losses.is_right,
    score: Callable[[jax.Array, jax.Array], jax.Array] = losses.classification_margin,
) -> APGD:
    """APGD: ascent with momentum, whose step is halved where it no longer helps, back at the best point so far.

        z = P(x_k + step * direction(gradient)),   x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1}))

    from a random point of norm epsilon, with step 2 epsilon. At checks (after 22, 41, 57, 70, 80, 87, 93, 99 of 100
    steps) the step of a sample is halved and its best point taken up again, if its loss rose in at most rho of the
    steps since the last check, or if that one did not halve and no better loss has been seen since. For "l1" there is
    no momentum: a step moves the pixels of the largest gradient by the same amount (20% of all at first, then 2/3 as
    many as the best perturbation moves); every 0.04 num_steps the step, epsilon at first, is divided by 1.5 down to
    epsilon / 10, or starts again from the best point if that has become sparser.

    Returned is the first iterate that fooled the model, of a sample without one the iterate of highest loss. With
    `targets=` at the call the loss leads to them ("dlr": the targeted DLR of APGD-T), and any wrong prediction counts.

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: radius in pixel units of [0, 1]: a scalar or one a sample. 0 returns the image bit for bit.
      num_steps: number of steps.
      loss: what is ascended: "ce", "dlr" (3 classes or more; 4 with targets), "lm", "slm", "bce", "lmb", a function, or
        `with_temperature(...)`.
      rho: share of rising steps that keeps the step size.
      eot_passes: how many passes of a stochastic model the gradient is averaged over.
      large_radii: three tenths of the steps go in the ball of 3 epsilon, three in that of 2 epsilon and the rest in
        that of epsilon, each from the projection of the last one's best point: what AutoAttack does for "l1".
      is_right: (outputs, labels) -> (batch,) bool.
      score: (outputs, labels) -> (batch,), how wrong a result is.

    Returns:
      An attack: call it as `attack(key, logits_fn, images, labels)`. It takes 2 num_steps eot_passes + 1 passes (with
      large_radii two gradients more).

    Raises:
      ValueError: an unknown norm or loss, num_steps or eot_passes < 1, a negative or NaN number, too few steps for
        `large_radii`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = apgd(norm="linf", epsilon=0.125, num_steps=10, loss="lm")
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 0.0]])
      >>> x = jnp.array([[0.5, 0.5]])
      >>> attack(jax.random.key(0), lambda x: x @ weights, x, jnp.array([0]))[0, 0].item()
      0.375
      >>> attack.passes
      21

    References:
      Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks,
      ICML 2020, Algorithm 1; "l1": Croce & Hein, Mind the box: l1-APGD for sparse adversarial attacks on image
      classifiers, ICML 2021. As the authors' code and unlike the paper: windows are whole numbers rounded down, exactly
      rho rising steps halve too, condition 2 rests at the first check. Unlike their code: in the first window the
      first step counts as rising if the loss is above that of the start, as in the paper (there: above 0); the FIRST
      fooling iterate is kept, so that a driver that stops there finds the same (there: the last); a sample that is not
      fooled gives its best-loss image (there: the clean one); a given start is projected on the ball, since it counts
      as found if it fools the model; the last iterate gets no gradient, which nothing would use; in "l1" numbers of
      pixels are rounded down, not up, else no perturbation would become as sparse as one pixel, and a pixel that moved
      by no more than rounding does not count.
    """
    norms.check_norm(norm)
    for name, value in (("num_steps", num_steps), ("eot_passes", eot_passes)):
        check_count(name, value)
    check_number("epsilon", epsilon)
    check_number("rho", rho)
    radii = shrinking_stages(num_steps) if large_radii else ((1.0, num_steps),)
    if radii[-1][1] < 1:
        raise ValueError(f"num_steps is {num_steps}, too few for large_radii; give 5 or more")
    windows = equal_windows if norm == "l1" else halving_windows
    return APGD(
        epsilon=epsilon,
        loss=losses.as_loss(loss),
        rho=rho,
        norm=norm,
        stages=tuple(Stage(radius, steps, windows(steps)) for radius, steps in radii),
        eot_passes=eot_passes,
        is_right=is_right,
        score=score,
    )
