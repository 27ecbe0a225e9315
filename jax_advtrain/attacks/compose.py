"""Attacks made from attacks."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.pgd import PGD
from jax_advtrain.attacks.protocol import Attack, AttackResult, LogitsFn, per_sample_keys, zeros_per_sample
from jax_advtrain.attacks.stepwise import Part, Stepwise, fold_in, parts


def stronger(first: AttackResult, second: AttackResult) -> AttackResult:
    """Per sample the stronger of two results: a wrong prediction beats a right one, then the larger score; a tie keeps
    the first. Counts of hits and of bad gradients add up."""
    better = jnp.where(first.is_right == second.is_right, second.score > first.score, first.is_right)

    def pick(old, new):
        return jnp.where(norms.per_sample(better, new) > 0 if new.ndim > 1 else better, new, old)

    return AttackResult(
        images=pick(first.images, second.images),
        is_right=pick(first.is_right, second.is_right),
        score=pick(first.score, second.score),
        hits=first.hits + second.hits,
        zero_gradients=first.zero_gradients + second.zero_gradients,
        nonfinite_gradients=first.nonfinite_gradients + second.nonfinite_gradients,
        winner=pick(first.winner, second.winner),
    )


@partial(jax.tree_util.register_dataclass, data_fields=["attack"], meta_fields=["num_restarts"])
@dataclasses.dataclass(frozen=True, eq=False)
class Restarts:
    """An attack run several times, each with its own keys; see `restarts`."""

    attack: Attack
    num_restarts: int

    def run(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> AttackResult:
        """Runs all restarts one after the other; memory does not grow with their number. `winner` is the restart."""
        keys = per_sample_keys(key, images.shape[0])

        def once(number):
            found = self.attack.run(
                fold_in(keys, number),
                logits_fn,
                images,
                labels,
                targets=targets,
                epsilon=epsilon,
                start=start,
            )
            return found._replace(winner=jnp.zeros_like(found.winner) + number)

        def improve(number, best):
            found = once(number)
            return jax.tree.map(lambda new, kept: jnp.where(number == 0, new, kept), found, stronger(best, found))

        # The loop starts from blanks, so that the attack is compiled once and not a second time for the first run.
        blank = jax.tree.map(lambda leaf: zeros_per_sample(images, leaf.dtype), jax.eval_shape(once, 0))
        return jax.lax.fori_loop(0, self.num_restarts, improve, blank._replace(images=images))

    def __call__(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> jax.Array:
        """The attacked images."""
        return self.run(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start).images

    def parts(self, num_classes: int) -> tuple[Part, ...]:
        inner = parts(self.attack, num_classes)
        return tuple(
            Part(part.attack, (number, *part.path), number) for number in range(self.num_restarts) for part in inner
        )

    @property
    def passes(self) -> int:
        return self.num_restarts * self.attack.passes


def restarts(attack: Attack, num_restarts: int) -> Attack:
    """The per-sample strongest of `num_restarts` runs; restart r of a sample uses fold_in(its key, r).

    Raises:
      ValueError: num_restarts < 1.
    """
    if isinstance(num_restarts, bool) or not isinstance(num_restarts, int) or num_restarts < 1:
        raise ValueError(f"num_restarts is {num_restarts!r}; give a whole number from 1")
    return Restarts(attack, num_restarts)


@partial(jax.tree_util.register_dataclass, data_fields=["members"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class WorstOf:
    """Several attacks on the same samples; see `worst_of`."""

    members: tuple[Attack, ...]

    def run(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> AttackResult:
        """Runs all members; `winner` is the position of the one whose result is returned."""
        keys = per_sample_keys(key, images.shape[0])
        best = None
        for number, member in enumerate(self.members):
            found = member.run(
                fold_in(keys, number),
                logits_fn,
                images,
                labels,
                targets=targets,
                epsilon=epsilon,
                start=start,
            )
            found = found._replace(winner=jnp.full_like(found.winner, number))
            best = found if best is None else stronger(best, found)
        assert best is not None
        return best

    def __call__(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> jax.Array:
        """The attacked images."""
        return self.run(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start).images

    def parts(self, num_classes: int) -> tuple[Part, ...]:
        return tuple(
            Part(part.attack, (number, *part.path), number)
            for number, member in enumerate(self.members)
            for part in parts(member, num_classes)
        )

    @property
    def passes(self) -> int:
        return sum(member.passes for member in self.members)


def worst_of(*members: Attack) -> Attack:
    """Per sample the strongest result of several attacks; ties keep the earlier one.

    Raises:
      ValueError: no members.

    Example:
      >>> from jax_advtrain.attacks import pgd
      >>> ascent = pgd(norm="linf", epsilon=0.3, num_steps=20)
      >>> worst_of(restarts(ascent, 10), pgd(norm="linf", epsilon=0.3, num_steps=100, loss="lm")).passes
      611
    """
    if not members:
        raise ValueError("worst_of needs at least one attack")
    return WorstOf(tuple(members))


@partial(jax.tree_util.register_dataclass, data_fields=["attack"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class UntilSuccess(Stepwise):
    """An attack whose samples rest once they are fooled; see `until_success`."""

    attack: Stepwise
    stops_early: ClassVar[bool] = True

    @property
    def num_steps(self) -> int:
        return self.attack.num_steps

    def init(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> Any:
        return self.attack.init(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)

    def step(self, logits_fn: LogitsFn, state: Any) -> Any:
        """One step of the samples that are not finished; the others stay as they are."""
        finished = self.attack.finished(state)

        def kept(old, new):
            return jnp.where(finished.reshape(finished.shape + (1,) * (new.ndim - 1)), old, new)

        return jax.tree.map(kept, state, self.attack.step(logits_fn, state))

    def succeeded(self, state: Any) -> jax.Array:
        return self.attack.succeeded(state)

    def result(self, logits_fn: LogitsFn, state: Any) -> AttackResult:
        return self.attack.result(logits_fn, state)

    @property
    def passes(self) -> int:
        return self.attack.passes


def until_success(attack: Attack) -> Attack:
    """The attack, but a sample that is fooled moves no further, and the loop ends when all are.

    No sample is fooled that was not before, and none is missed: PGD alone returns its last iterate, which may be right
    again where an earlier one was not. Composed attacks pass it on to their members.

    Raises:
      ValueError: an attack without steps.
    """
    if isinstance(attack, Restarts):
        return dataclasses.replace(attack, attack=until_success(attack.attack))
    if isinstance(attack, WorstOf):
        return WorstOf(tuple(until_success(member) for member in attack.members))
    if isinstance(attack, PGD):
        return dataclasses.replace(attack, stops_early=True)
    if isinstance(attack, UntilSuccess):
        return attack
    if not isinstance(attack, Stepwise):
        raise ValueError(f"until_success needs an attack that goes step by step, not {type(attack).__name__}")
    return UntilSuccess(attack)
