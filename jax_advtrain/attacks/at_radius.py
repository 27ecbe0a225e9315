"""Minimum-norm attacks as attacks of a fixed radius."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.combine import Composed, Wrapped, base_of, check_attack, check_stepwise, over_parts
from jax_advtrain.attacks.minimum_norm import distance_of, wide_dtype
from jax_advtrain.attacks.protocol import Attack, AttackResult, LogitsFn, check_number, check_per_sample
from jax_advtrain.attacks.pytrees import register_dataclass

# What an image may exceed the radius by, relatively: the rounding of its pixels and of its norm in float32.
TOLERANCE = 1e-5


def verdict_of(attack: Any, outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether the outputs are right, and their score, by the attack's own functions where it holds any."""
    base = base_of(attack)
    right = getattr(base, "is_right", losses.is_right)(outputs, labels)
    score = getattr(base, "score", losses.classification_margin)(outputs, labels)
    return check_per_sample("is_right", right, len(labels)), check_per_sample("score", score, len(labels))


@partial(register_dataclass, data_fields=["attack", "epsilon"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class AtRadius(Wrapped):
    """A minimum-norm attack asked for images within a radius; see `at_radius`."""

    attack: Any
    epsilon: jax.typing.ArrayLike

    def init(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> Any:
        """The attack's own state, for this radius; an `epsilon` given at the call takes its place."""
        epsilon = self.epsilon if epsilon is None else epsilon
        return self.attack.init(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)

    def result(self, logits_fn: LogitsFn, state: Any) -> AttackResult:
        """What was found, if it is adversarial and near enough; else the clean image, classified (one forward pass)."""
        problem, found = state.problem, self.attack.result(logits_fn, state)
        wide = wide_dtype(problem.images)
        distance = distance_of(found.images.astype(wide) - problem.images.astype(wide), base_of(self.attack).norm)
        kept = ~found.is_right & (distance <= problem.epsilon.astype(distance.dtype) * (1 + TOLERANCE))
        right, score = verdict_of(self.attack, logits_fn(problem.images), problem.labels)
        return found._replace(
            images=norms.select(kept, found.images, problem.images),
            is_right=right & ~kept,
            score=jnp.where(kept, found.score, score.astype(found.score.dtype)),
        )

    @property
    def passes(self) -> int:
        return self.attack.passes + 1


def at_radius(attack: Attack, epsilon: jax.typing.ArrayLike) -> Attack:
    """A minimum-norm attack (fab, fmn, deepfool, carlini_wagner) as one of a fixed radius.

    The result is the adversarial image that it found where ||x - x0||_p <= epsilon (1 + 1e-5), p its own norm: the
    tolerance is for the rounding of float32. Else it is the clean image, with its own verdict. In a composed attack it
    goes to the members.

    Args:
      attack: goes step by step; without a radius of its own.
      epsilon: radius in pixel units of [0, 1] (of an "l0" attack: entries), a scalar or one a sample. An epsilon given
        at the call takes its place, and 0 returns the image bit for bit.

    Raises:
      ValueError: a bad epsilon, an attack that has a radius already, or none at all.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_advtrain.attacks.fab import fab
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 0.0]])
      >>> x, y = jnp.array([[0.75, 0.5]]), jnp.array([0])
      >>> attack = at_radius(fab(norm="l2"), 0.26)  # the boundary is at 0.25
      >>> attack.run(jax.random.key(0), lambda x: (x - 0.5) @ weights, x, y).is_right.item()
      False
      >>> attack.run(jax.random.key(0), lambda x: (x - 0.5) @ weights, x, y, epsilon=0.24).is_right.item()
      True
    """
    check_number("epsilon", epsilon)

    def limited(part: Any) -> Any:
        base = base_of(check_stepwise("at_radius", part))
        if not hasattr(base, "norm") or getattr(part, "epsilon", getattr(base, "epsilon", 0)) is not None:
            raise ValueError(
                f"at_radius needs minimum-norm attacks without a radius (fab, fmn, deepfool, carlini_wagner), "
                f"not {type(base).__name__} with one"
            )
        return AtRadius(part, epsilon)

    check_attack("at_radius", attack)
    return over_parts(limited, attack) if isinstance(attack, Composed) else limited(attack)
