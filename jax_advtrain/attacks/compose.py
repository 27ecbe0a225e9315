"""The strongest of several runs of one attack, and of several attacks."""

import dataclasses
from functools import partial

import jax.numpy as jnp

from jax_advtrain.attacks.combine import (
    Composed,
    check_attack,
    first_success,
    if_any,
    run_awake,
    stronger,
    strongest_of,
)
from jax_advtrain.attacks.protocol import Attack, AttackResult, check_count, per_sample_keys, zeros_per_sample
from jax_advtrain.attacks.pytrees import register_dataclass
from jax_advtrain.attacks.stepwise import Part, fold_in, parts


@partial(register_dataclass, data_fields=["attack"], meta_fields=["num_restarts", "stops_early"])
@dataclasses.dataclass(frozen=True, eq=False)
class Restarts(Composed):
    """An attack run several times, each with its own keys; see `restarts`."""

    attack: Attack
    num_restarts: int
    stops_early: bool = False

    def run(
        self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None, resting=None
    ) -> AttackResult:
        """Runs all restarts one after the other; memory does not grow with their number. `winner` is the restart."""
        keys = per_sample_keys(key, images.shape[0])
        given = {"targets": targets, "epsilon": epsilon, "start": start}

        def once(number, resting):
            return run_awake(self.attack, resting, fold_in(keys, number), logits_fn, images, labels, **given)

        return strongest_of(once, self.num_restarts, images, stops_early=self.stops_early, resting=resting)

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
      ValueError: num_restarts < 1, or something that gives no `AttackResult`.
    """
    return Restarts(check_attack("restarts", attack), check_count("num_restarts", num_restarts))


@partial(register_dataclass, data_fields=["members"], meta_fields=["stops_early"])
@dataclasses.dataclass(frozen=True, eq=False)
class WorstOf(Composed):
    """Several attacks on the same samples; see `worst_of`."""

    members: tuple[Attack, ...]
    stops_early: bool = False

    def run(
        self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None, resting=None
    ) -> AttackResult:
        """Runs all members; `winner` is the position of the one whose result is returned."""
        keys = per_sample_keys(key, images.shape[0])
        given = {"targets": targets, "epsilon": epsilon, "start": start}
        at_first = zeros_per_sample(images, bool) if resting is None else resting

        def run(number, resting):
            member = self.members[number]
            found = run_awake(member, resting, fold_in(keys, number), logits_fn, images, labels, **given)
            return found._replace(winner=jnp.full_like(found.winner, number))

        best = run(0, at_first if self.stops_early else None)
        for number in range(1, len(self.members)):
            if self.stops_early:
                # A member that all samples have been spared costs nothing.
                best = if_any(
                    best.is_right & ~at_first,
                    lambda best, number=number: first_success(best, run(number, at_first | ~best.is_right)),
                    best,
                )
            else:
                best = stronger(best, run(number, None))
        return best

    def parts(self, num_classes: int) -> tuple[Part, ...]:
        return tuple(
            Part(part.attack, (number, *part.path), number)
            for number, member in enumerate(self.members)
            for part in parts(member, num_classes)
        )

    def over(self, function) -> "WorstOf":
        return dataclasses.replace(self, members=tuple(function(member) for member in self.members))

    @property
    def passes(self) -> int:
        return sum(member.passes for member in self.members)


def worst_of(*members: Attack) -> Attack:
    """Per sample the strongest result of several attacks; ties keep the earlier one.

    Raises:
      ValueError: no members, or something that gives no `AttackResult`.

    Example:
      >>> from jax_advtrain.attacks import pgd
      >>> ascent = pgd(norm="linf", epsilon=0.3, num_steps=20)
      >>> worst_of(restarts(ascent, 10), pgd(norm="linf", epsilon=0.3, num_steps=100, loss="lm")).passes
      611
    """
    if not members:
        raise ValueError("worst_of needs at least one attack")
    return WorstOf(tuple(check_attack("worst_of", member) for member in members))
