"""Random noise of a given norm: no attack, but what any attack must beat."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.protocol import AttackResult, check_number, check_per_sample, make_problem, zeros_per_sample
from jax_advtrain.attacks.pytrees import register_dataclass

DISTRIBUTIONS = ("uniform", "gaussian")


@partial(
    register_dataclass,
    data_fields=["epsilon"],
    meta_fields=["norm", "distribution", "is_right", "score"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """One draw of noise scaled to length epsilon; see `noise`."""

    epsilon: jax.typing.ArrayLike
    norm: str
    distribution: str
    is_right: Callable[[jax.Array, jax.Array], jax.Array]
    score: Callable[[jax.Array, jax.Array], jax.Array]

    def run(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> AttackResult:
        """Draws, scales, clips to [0, 1], and classifies; `targets` and `start` do not matter."""
        del targets, start
        problem = make_problem(key, images, labels, None, self.epsilon if epsilon is None else epsilon)
        drawn = (norms.uniform_in_box if self.distribution == "uniform" else norms.normal)(problem.keys, images)
        scaled = norms.unit_length(drawn, self.norm) * norms.per_sample(problem.epsilon, images)
        noisy = norms.project(images, scaled, problem.epsilon, self.norm)
        outputs = logits_fn(noisy)
        zeros = zeros_per_sample(images, jnp.int32)
        right = check_per_sample("is_right", self.is_right(outputs, labels), len(images))
        score = check_per_sample("score", self.score(outputs, labels), len(images))
        return AttackResult(noisy, right, score, (~right).astype(jnp.int32), zeros, zeros, zeros)

    def __call__(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> jax.Array:
        """The noisy images."""
        return self.run(key, logits_fn, images, labels, epsilon=epsilon).images

    @property
    def passes(self) -> int:
        return 1


def noise(
    *,
    norm: str = "linf",
    epsilon: jax.typing.ArrayLike,
    distribution: str = "uniform",
    is_right: Callable[[jax.Array, jax.Array], jax.Array] = losses.is_right,
    score: Callable[[jax.Array, jax.Array], jax.Array] = losses.classification_margin,
) -> Noise:
    """Uniform or Gaussian noise, each sample's scaled to norm epsilon, then clipped to [0, 1].

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: length of the noise in pixel units of [0, 1]: a scalar or one a sample.
      distribution: "uniform" (in the box) or "gaussian", before the scaling.
      is_right, score: as in `pgd`.

    Raises:
      ValueError: unknown norm or distribution, negative or NaN epsilon.
    """
    norms.check_norm(norm)
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution is {distribution!r}; the distributions are {', '.join(DISTRIBUTIONS)}")
    check_number("epsilon", epsilon)
    return Noise(epsilon, norm, distribution, is_right, score)
