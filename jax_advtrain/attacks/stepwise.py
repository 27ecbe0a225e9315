"""What attacks that go step by step have in common, and how composed attacks fall apart into such.

A driver (`evaluation.attack_dataset`) may take a finished sample out of its slot of the batch and put the next one in,
because all of an attack's state is per sample: leaves lead with the batch axis, `state.steps` counts each sample's own
steps, and what depends on time (checkpoints, schedules) is read off that count.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.protocol import Attack, AttackResult, LogitsFn, zeros_per_sample


class Stepwise(ABC):
    """Base of the attacks that have `init`, `step` and `result`; gives them `run` and the call.

    Attributes:
      num_steps: `step`s after which a sample is finished; further ones do no harm.
      stops_early: whether `run` stops as soon as every sample is finished.
    """

    num_steps: int
    stops_early: bool = False

    @abstractmethod
    def init(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> Any:
        """The state before the first step; has the fields `problem` and `steps`."""

    @abstractmethod
    def step(self, logits_fn: LogitsFn, state: Any) -> Any:
        """One step of every sample."""

    @abstractmethod
    def succeeded(self, state: Any) -> Bool[Array, "batch"]:
        """Whether the state holds an adversarial image that `result` returns, whatever steps follow."""

    @abstractmethod
    def result(self, logits_fn: LogitsFn, state: Any) -> AttackResult:
        """What was found so far."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Forward plus backward passes a sample, if it takes all steps."""

    def finished(self, state: Any) -> Bool[Array, "batch"]:
        """Whether more steps are of no use to a sample."""
        return (state.steps >= self.num_steps) | self.succeeded(state)

    def run(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> AttackResult:
        """All steps in one loop, and what came of it; arguments as in `init`."""
        state = self.init(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)
        if self.stops_early:
            state = jax.lax.while_loop(
                lambda state: jnp.any(~self.finished(state)), lambda state: self.step(logits_fn, state), state
            )
        else:
            state = jax.lax.fori_loop(0, self.num_steps, lambda _, state: self.step(logits_fn, state), state)
        return self.result(logits_fn, state)

    def __call__(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> jax.Array:
        """The attacked images; arguments as in `init`."""
        return self.run(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start).images


class Part(NamedTuple):
    """One attack of a composed one.

    Attributes:
      attack: what runs.
      path: numbers that the sample's key is folded with, one after the other.
      winner: what `AttackResult.winner` says where this part is the strongest.
    """

    attack: Attack
    path: tuple[int, ...]
    winner: int


def parts(attack: Attack, num_classes: int) -> tuple[Part, ...]:
    """The parts of an attack, in their order: the strongest of their results, ties to the earlier, is its result.

    Composed attacks say them themselves in `parts(num_classes)`; any other attack is its own only part.
    """
    own = getattr(attack, "parts", None)
    return (Part(attack, (), 0),) if own is None else own(num_classes)


def fresh_state(optimizer: optax.GradientTransformation, iterate: Float[Array, "batch *image"]) -> Any:
    """An optax state a sample before its first step, all of it varying over devices as the iterate does: so must a
    loop's carry under `shard_map`, and Adam's count would not."""
    nobody = zeros_per_sample(iterate, bool)
    return jax.tree.map(lambda leaf: norms.select(nobody, leaf, leaf), jax.vmap(optimizer.init)(iterate))


def fold_in(keys: jax.Array, number: jax.typing.ArrayLike) -> jax.Array:
    """Each sample's key folded with one number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
