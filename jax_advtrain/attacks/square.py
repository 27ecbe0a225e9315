"""The Square attack: random search with square windows of pixels; asks the model for its outputs only."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import losses, norms, square_windows
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
from jax_advtrain.attacks.stepwise import Stepwise

# Losses of class logits, to which a model of one logit speaks as [0, z].
_OF_CLASSES = (
    losses.cross_entropy,
    losses.logit_margin,
    losses.soft_logit_margin,
    losses.difference_of_logits_ratio,
)


class SquareState(NamedTuple):
    """State of the search; every array leads with the batch axis.

    Attributes:
      problem: what is attacked.
      held: the best images so far; before the first step those that it will look at.
      loss: theirs; minus infinity before the first step.
      fooled: whether they fool the model; then they stay.
      steps: queries made.
    """

    problem: Problem
    held: Float[Array, "batch *image"]
    loss: Float[Array, "batch"]
    fooled: Bool[Array, "batch"]
    steps: Int[Array, "batch"]


@partial(
    register_dataclass,
    data_fields=["epsilon", "p_init", "loss"],
    meta_fields=["norm", "num_steps", "schedule", "is_right", "score"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Square(Stepwise):
    """Random search with square windows; see `square`."""

    epsilon: jax.typing.ArrayLike
    p_init: jax.typing.ArrayLike
    loss: losses.Loss | None
    norm: str
    num_steps: int
    schedule: str
    is_right: Callable[[jax.Array, jax.Array], jax.Array]
    score: Callable[[jax.Array, jax.Array], jax.Array]
    # Samples that are fooled stay as they are, so nothing is lost.
    stops_early: ClassVar[bool] = True

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
    ) -> SquareState:
        """The state before the first step, which asks for the start images; a given `start` is projected on the ball.

        Raises:
          ValueError: shapes or dtypes that do not fit (see `make_problem`), or images of more than two dimensions
            and channels.
        """
        del logits_fn
        problem = make_problem(key, images, labels, targets, self.epsilon if epsilon is None else epsilon)
        pictures = as_pictures(images)
        if start is not None:
            held = norms.project(images, checked_start(start, images) - images, problem.epsilon, self.norm)
        else:
            held = square_windows.start(problem.keys, pictures, problem.epsilon, self.norm).reshape(images.shape)
        return SquareState(
            problem=problem,
            held=held,
            loss=zeros_per_sample(images, jnp.promote_types(images.dtype, jnp.float32)) - jnp.inf,
            fooled=zeros_per_sample(images, jnp.bool_),
            steps=zeros_per_sample(images, jnp.int32),
        )

    def step(self, logits_fn: LogitsFn, state: SquareState) -> SquareState:
        """One forward pass of the start images (first step) or of changed ones, kept where they are better."""
        problem = state.problem
        candidate = norms.select(state.steps == 0, state.held, self._candidate(state))
        outputs = logits_fn(candidate)
        loss = self._loss(outputs, problem).astype(state.loss.dtype)
        fools = is_fooled(self.is_right, outputs, problem)
        taken = ~state.fooled & ((loss > state.loss) | fools)
        return SquareState(
            problem=problem,
            held=norms.select(taken, candidate, state.held),
            loss=jnp.where(taken, loss, state.loss),
            fooled=state.fooled | fools,
            steps=state.steps + 1,
        )

    def _candidate(self, state: SquareState) -> Float[Array, "batch *image"]:
        problem = state.problem
        pictures, held = as_pictures(problem.images), as_pictures(state.held)
        _, height, width, channels = pictures.shape
        side = square_windows.sides(
            # The authors count changes from 0, and the start is not one.
            state.steps - 1,
            self.p_init,
            num_steps=self.num_steps,
            schedule=self.schedule,
            image_shape=(height, width),
            norm=self.norm,
        )
        words = square_windows.draws(problem.keys, state.steps, square_windows.num_draws(self.norm, channels))
        changed = square_windows.changed(words, pictures, held, problem.epsilon, side, self.norm)
        return changed.reshape(state.held.shape)

    def _loss(self, outputs: jax.Array, problem: Problem) -> Float[Array, "batch"]:
        loss = self.loss
        if loss is None:
            loss = losses.as_loss("lm" if problem.targets is None else "ce")
        if outputs.ndim == 1 and loss.function in _OF_CLASSES:
            outputs = losses.class_logits(outputs)
        values = loss.ascended(outputs, problem.labels, problem.targets)
        return check_per_sample("the loss", values, len(problem.images))

    def succeeded(self, state: SquareState) -> Bool[Array, "batch"]:
        """Samples that are fooled: the search is over for them."""
        return state.fooled

    def result(self, logits_fn: LogitsFn, state: SquareState) -> AttackResult:
        """Classifies the best image (one forward pass)."""
        labels = state.problem.labels
        outputs = logits_fn(state.held)
        zeros = jnp.zeros_like(state.steps)
        return AttackResult(
            images=state.held,
            is_right=check_per_sample("is_right", self.is_right(outputs, labels), len(labels)),
            score=check_per_sample("score", self.score(outputs, labels), len(labels)),
            hits=is_fooled(self.is_right, outputs, state.problem).astype(jnp.int32),
            zero_gradients=zeros,
            nonfinite_gradients=zeros,
            winner=zeros,
        )

    @property
    def passes(self) -> int:
        """Forward passes a sample, the classification of the result included; there are no backward passes."""
        return self.num_steps + 1


def as_pictures(images: Float[Array, "batch *image"]) -> Float[Array, "batch height width channels"]:
    """Images with height, width and channels; a vector counts as a picture of one row.

    Raises:
      ValueError: images with more axes than these.
    """
    if images.ndim == 4:
        return images
    if images.ndim > 4:
        raise ValueError(
            f"images of shape {images.shape}: the square attack takes (batch, height, width, channels), "
            "(batch, height, width) or (batch, features)"
        )
    return images.reshape(*images.shape, 1) if images.ndim == 3 else images[:, None, :, None]


def square(
    *,
    norm: str = "linf",
    epsilon: jax.typing.ArrayLike,
    num_steps: int = 5000,
    p_init: jax.typing.ArrayLike = 0.8,
    loss: str | losses.LossFunction | losses.Loss | None = None,
    schedule: str = "rescaled",
    is_right: Callable[[jax.Array, jax.Array], jax.Array] = losses.is_right,
    score: Callable[[jax.Array, jax.Array], jax.Array] = losses.classification_margin,
) -> Square:
    """Square: x <- x' where loss(x') > loss(x) or x' fools the model; x' is x with one random square window changed.

    A search that needs outputs only, so no flat or wrong gradient misleads it. x always lies in ball and box:

      "linf": each pixel and channel stands at image +- epsilon; the window's go to ends drawn for each channel.
      "l2", "l1": the length of a second window, and what is left of epsilon, go to the first, whose change is mixed
        with two pyramids of opposite signs; then the whole is scaled to epsilon ("l2") or projected on the ball.

    The start has vertical stripes ("linf") or is tiled with pyramids. Windows cover the share p of the image: p_init,
    halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries. Each sample has windows of its
    own, and rests once it fools the model; `run` ends when all do, which changes no result.

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: radius in pixel units of [0, 1]: a scalar or one a sample. 0 returns the image bit for bit.
      num_steps: queries, that of the start image included.
      p_init: share of the pixels in the first windows, in (0, 1].
      loss: what shall rise: a name, a function, or `with_temperature(...)`. None: the logit margin "lm", and with
        targets the cross entropy "ce" of the target falls, as the authors have it. One logit z counts as [0, z].
      schedule: "rescaled" (the halvings stretched from 10,000 to num_steps) or "fixed" (at those very queries, which
        is what AutoAttack runs with its 5,000).
      is_right, score: as in `pgd`.

    Returns:
      An attack on images (batch, height, width, channels), (batch, height, width), or (batch, features), which count
      as pictures of one row. It costs num_steps + 1 forward passes and no backward pass.

    Raises:
      ValueError: an unknown norm, loss or schedule, num_steps < 1, a negative or NaN epsilon, p_init not in (0, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 0.0]])
      >>> x = jnp.array([[0.6, 0.5]])
      >>> def steps(x):  # of gradient zero everywhere
      ...     return jnp.round(50 * (x - 0.5)) @ weights
      >>> found = square(epsilon=0.2, num_steps=20).run(jax.random.key(0), steps, x, jnp.array([0]))
      >>> found.is_right.item()
      False

    References:
      Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via random search, ECCV
      2020; for L1: Croce & Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers, ICML 2021.
      Where papers and codes differ: windows may touch the last row and column (both codes leave these out); an L-inf
      window that would change nothing takes the opposite ends (the first code draws again, AutoAttack's wastes the
      query); places and turns of windows are drawn for each sample (AutoAttack: one for the batch); the start image is
      one of the num_steps queries, as in the paper.
    """
    norms.check_norm(norm)
    check_count("num_steps", num_steps)
    if schedule not in square_windows.SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; give one of {', '.join(square_windows.SCHEDULES)}")
    check_number("epsilon", epsilon)
    check_number("p_init", p_init, positive=True)
    if isinstance(p_init, (int, float)) and p_init > 1:
        raise ValueError(f"p_init is {p_init}; it is a share of the pixels: give a number in (0, 1]")
    return Square(
        epsilon=epsilon,
        p_init=p_init,
        loss=None if loss is None else losses.as_loss(loss),
        norm=norm,
        num_steps=num_steps,
        schedule=schedule,
        is_right=is_right,
        score=score,
    )
