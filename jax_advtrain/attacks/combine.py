"""Attacks that hold attacks: what they share, and how results combine.

There are two kinds. A `Wrapped` attack goes step by step like the one that it holds, and changes what is asked of it or
made of its result. A `Composed` one runs several attacks one after the other and keeps each sample's strongest result;
it has no single state, but says its `parts`. Wrappers go inside: `rounded(restarts(attack, 5))` is
`restarts(rounded(attack), 5)`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.protocol import Attack, AttackResult, LogitsFn, zeros_per_sample
from jax_advtrain.attacks.stepwise import Part, Stepwise

Resting = Bool[Array, "batch"] | None


def picked(first: AttackResult, second: AttackResult, better: jax.Array, counted: jax.Array) -> AttackResult:
    """Per sample the second result where it is `better`; the second's counts are added where they are `counted`."""

    def pick(old, new):
        return norms.select(better, new, old)

    def add(old, new):
        return old + jnp.where(counted, new, 0)

    return AttackResult(
        images=pick(first.images, second.images),
        is_right=pick(first.is_right, second.is_right),
        score=pick(first.score, second.score),
        hits=add(first.hits, second.hits),
        zero_gradients=add(first.zero_gradients, second.zero_gradients),
        nonfinite_gradients=add(first.nonfinite_gradients, second.nonfinite_gradients),
        winner=pick(first.winner, second.winner),
    )


def stronger(first: AttackResult, second: AttackResult) -> AttackResult:
    """Per sample the stronger of two results: a wrong prediction beats a right one, then the larger score; a tie keeps
    the first. Counts of hits and of bad gradients add up."""
    better = jnp.where(first.is_right == second.is_right, second.score > first.score, first.is_right)
    return picked(first, second, better, jnp.ones_like(better))


def first_success(first: AttackResult, second: AttackResult) -> AttackResult:
    """As `stronger`, but a sample that the first result fooled takes nothing from the second, not even counts."""
    better = first.is_right & (~second.is_right | (second.score > first.score))
    return picked(first, second, better, first.is_right)


class Composed(ABC):
    """Base of the attacks that run others one after the other; dataclasses that hold them in `attack`.

    Attributes:
      stops_early: whether a sample that one of them fooled takes no part in the next (see `until_success`).
    """

    stops_early: bool

    @abstractmethod
    def run(
        self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None, resting: Resting = None
    ) -> AttackResult:
        """Runs all; results of `resting` samples mean nothing, and only attacks that stop early look at it."""

    @abstractmethod
    def parts(self, num_classes: int) -> tuple[Part, ...]:
        """The attacks that run, in their order; see `stepwise.parts`."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Forward plus backward passes a sample, if all run to their end."""

    def __call__(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> jax.Array:
        """The attacked images."""
        return self.run(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start).images

    def over(self, function: Callable[[Any], Any]) -> Any:
        """The same composition of function(attack) in place of each attack that it holds."""
        return dataclasses.replace(self, attack=function(self.attack))  # type: ignore[attr-defined]


class Wrapped(Stepwise):
    """Base of the attacks that go step by step as their `attack` does; everything is passed on to it."""

    attack: Any

    @property
    def num_steps(self) -> int:  # type: ignore[override]
        return self.attack.num_steps

    @property
    def stops_early(self) -> bool:  # type: ignore[override]
        return self.attack.stops_early

    def init(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> Any:
        return self.attack.init(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)

    def step(self, logits_fn: LogitsFn, state: Any) -> Any:
        return self.attack.step(logits_fn, state)

    def succeeded(self, state: Any) -> Bool[Array, "batch"]:
        return self.attack.succeeded(state)

    def finished(self, state: Any) -> Bool[Array, "batch"]:
        return self.attack.finished(state)

    def result(self, logits_fn: LogitsFn, state: Any) -> AttackResult:
        return self.attack.result(logits_fn, state)

    @property
    def passes(self) -> int:
        return self.attack.passes

    def over(self, function: Callable[[Any], Any]) -> Any:
        """The same wrapper around function(attack)."""
        return dataclasses.replace(self, attack=function(self.attack))  # type: ignore[type-var]


def over_parts(function: Callable[[Any], Any], attack: Any) -> Any:
    """The attack with function(part) in place of each attack that goes step by step (wrappers with what they hold)."""
    if isinstance(attack, Composed):
        return attack.over(lambda inner: over_parts(function, inner))
    return function(attack)


def over_bases(function: Callable[[Any], Any], attack: Any) -> Any:
    """The attack with function(base) in place of each attack that holds no other."""
    if isinstance(attack, Composed | Wrapped):
        return attack.over(lambda inner: over_bases(function, inner))
    return function(attack)


def base_of(attack: Any) -> Any:
    """What a wrapper wraps in the end; any other attack as it is."""
    return base_of(attack.attack) if isinstance(attack, Wrapped) else attack


def check_attack(name: str, attack: Any) -> Any:
    """Returns `attack`; raises ValueError where `name` cannot hold it."""
    if not isinstance(attack, Stepwise | Composed) and not (callable(attack) and hasattr(attack, "run")):
        raise ValueError(f"{name} needs an attack, not {attack!r}")
    if hasattr(attack, "placement"):
        raise ValueError(f"{name} cannot hold on_boundary, which places images at the boundary instead of attacking")
    return attack


def check_stepwise(name: str, attack: Any) -> Any:
    """Returns `attack`; raises ValueError where it does not go step by step."""
    if not isinstance(check_attack(name, attack), Stepwise):
        raise ValueError(f"{name} needs an attack that goes step by step, not {type(attack).__name__}")
    return attack


def run_awake(attack: Attack, resting: Resting, key, logits_fn: LogitsFn, images, labels, **given) -> AttackResult:
    """`attack.run`, but an attack that stops early does not wait for resting samples."""
    if resting is not None and isinstance(attack, Composed):
        return attack.run(key, logits_fn, images, labels, resting=resting, **given)
    if resting is None or not isinstance(attack, Stepwise) or not attack.stops_early:
        return attack.run(key, logits_fn, images, labels, **given)
    state = jax.lax.while_loop(
        lambda state: jnp.any(~(attack.finished(state) | resting)),
        lambda state: attack.step(logits_fn, state),
        attack.init(key, logits_fn, images, labels, **given),
    )
    return attack.result(logits_fn, state)


def if_any(wanted: Bool[Array, "batch"], function: Callable[[Any], Any], value: Any) -> Any:
    """function(value) where any is wanted, else `value`: a loop of one turn at most.

    `lax.cond` would do, but its batching rule fails under `vmap` in `shard_map` (JAX 0.10).
    """
    return jax.lax.while_loop(
        lambda carry: carry[0] & jnp.any(wanted),
        lambda carry: (jnp.zeros_like(carry[0]), function(carry[1])),
        (jnp.ones((), bool), value),
    )[1]


def strongest_of(
    once: Callable[[jax.typing.ArrayLike, Resting], AttackResult],
    count: int,
    images: jax.Array,
    *,
    stops_early: bool,
    resting: Resting,
) -> AttackResult:
    """The strongest of once(0), ..., once(count - 1); `winner` is the number. Compiled once, in the memory of one.

    Args:
      once: (number, samples that rest) -> what that run found.
      stops_early: fooled samples rest, and the loop ends when all do.
    """
    at_first = zeros_per_sample(images, bool) if resting is None else resting

    def rest(number, best):
        return at_first | (~best.is_right & (number > 0))

    def improve(number, best):
        found = once(number, rest(number, best) if stops_early else None)
        found = found._replace(winner=jnp.zeros_like(found.winner) + number)
        combined = first_success(best, found) if stops_early else stronger(best, found)
        return jax.tree.map(lambda new, kept: jnp.where(number == 0, new, kept), found, combined)

    # The loop starts from blanks, so that the attack is compiled once and not a second time for the first run.
    shapes = jax.eval_shape(lambda: once(0, at_first if stops_early else None))
    blank = jax.tree.map(lambda leaf: zeros_per_sample(images, leaf.dtype), shapes)._replace(images=images)
    if not stops_early:
        return jax.lax.fori_loop(0, count, improve, blank)
    return jax.lax.while_loop(
        lambda carry: (carry[0] < count) & jnp.any(~rest(*carry)),
        lambda carry: (carry[0] + 1, improve(*carry)),
        (jnp.zeros((), jnp.int32), blank),
    )[1]
