"""Attacks that aim at the other classes one after the other."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_advtrain.attacks.combine import (
    Composed,
    Wrapped,
    check_attack,
    check_stepwise,
    over_parts,
    run_awake,
    strongest_of,
)
from jax_advtrain.attacks.gradients import outputs_of
from jax_advtrain.attacks.protocol import Attack, AttackResult, LogitsFn, check_count, make_problem, per_sample_keys
from jax_advtrain.attacks.pytrees import register_dataclass
from jax_advtrain.attacks.stepwise import Part, fold_in, parts

# The draw of a stochastic model that ranks the classes: apart from those of the steps, which count from 0.
_RANKING_DRAW = 2**31 - 2


def num_classes_of(logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, key: jax.Array) -> int:
    """How many classes a model tells apart, by the shape of its outputs; nothing is computed.

    Raises:
      ValueError: outputs that are neither one logit a label nor two or more.
    """
    problem = make_problem(key, images, labels, None, 0)
    outputs = jax.eval_shape(lambda images: outputs_of(logits_fn, images, problem, 0), images)
    if outputs.ndim == labels.ndim:
        return 2
    if outputs.ndim != labels.ndim + 1 or outputs.shape[-1] < 2:
        raise ValueError(
            f"outputs of shape {outputs.shape} for labels of shape {labels.shape}: give one logit a class on the last "
            "axis, or one a label"
        )
    return outputs.shape[-1]


def ranked_target(
    outputs: Float[Array, "batch *outputs"], labels: Int[Array, "batch *dense"], rank: jax.typing.ArrayLike
) -> Int[Array, "batch *dense"]:
    """The class of the rank-th largest logit beside the label (0 = the largest); equal logits in the order of the
    classes. For one-logit models the other class."""
    if outputs.ndim == labels.ndim:
        return 1 - labels
    is_label = jax.nn.one_hot(labels, outputs.shape[-1], dtype=bool)
    # The label sorts behind even those classes whose logit is minus infinity.
    order = jnp.lexsort((-outputs, is_label), axis=-1)
    return jnp.take(order, rank, axis=-1).astype(labels.dtype)


@partial(register_dataclass, data_fields=["attack", "rank"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class AtTarget(Wrapped):
    """An attack aimed at the class of the rank-th largest clean logit beside the label; see `targeted_at`."""

    attack: Any
    rank: jax.typing.ArrayLike

    def init(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> Any:
        """Chooses the targets by a forward pass of the clean images; arguments as of the attack.

        Raises:
          ValueError: targets are given.
        """
        if targets is not None:
            raise ValueError("targeted_at chooses the targets itself: leave out targets=, and put no other inside it")
        problem = make_problem(key, images, labels, None, 0)
        targets = ranked_target(outputs_of(logits_fn, images, problem, _RANKING_DRAW), labels, self.rank)
        return self.attack.init(problem.keys, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)

    @property
    def passes(self) -> int:
        return self.attack.passes + 1


@partial(register_dataclass, data_fields=["attack"], meta_fields=["num_targets", "stops_early"])
@dataclasses.dataclass(frozen=True, eq=False)
class TargetedAt(Composed):
    """An attack run once for each of several target classes; see `targeted_at`."""

    attack: Any
    num_targets: int | None
    stops_early: bool = False

    def _at(self, rank: jax.typing.ArrayLike) -> Any:
        return over_parts(lambda part: AtTarget(part, rank), self.attack)

    def _count(self, num_classes: int) -> int:
        return num_classes - 1 if self.num_targets is None else min(self.num_targets, num_classes - 1)

    def run(
        self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None, resting=None
    ) -> AttackResult:
        """Runs all targets one after the other; memory does not grow with their number. `winner` is the target's rank.

        Raises:
          ValueError: targets are given.
        """
        keys = per_sample_keys(key, images.shape[0])
        given = {"targets": targets, "epsilon": epsilon, "start": start}

        def once(rank, resting):
            return run_awake(self._at(rank), resting, fold_in(keys, rank), logits_fn, images, labels, **given)

        count = self._count(num_classes_of(logits_fn, images, labels, keys))
        return strongest_of(once, count, images, stops_early=self.stops_early, resting=resting)

    def parts(self, num_classes: int) -> tuple[Part, ...]:
        return tuple(
            Part(part.attack, (rank, *part.path), rank)
            for rank in range(self._count(num_classes))
            for part in parts(self._at(rank), num_classes)
        )

    @property
    def passes(self) -> int:
        """Forward plus backward passes a sample; those of a single target where their number is left to the model."""
        return (self.num_targets or 1) * self._at(0).passes


def targeted_at(attack: Attack, num_targets: int | None = None) -> Attack:
    """The per-sample strongest of one run for each target class, the likeliest classes first.

    The targets are the classes with the largest logits on the clean image, without the label; target r of a sample
    uses fold_in(its key, r). A sample counts as fooled whatever wrong class it is taken for. Models of two classes, or
    of one logit, have one target.

    Args:
      attack: goes step by step and takes targets; or a composition of such (`restarts`).
      num_targets: None for all other classes; more than there are is cut to their number.

    Returns:
      An attack; it costs the passes of `attack` and one more for each target.

    Raises:
      ValueError: num_targets < 1, or an attack without steps.

    Example:
      >>> from jax_advtrain.attacks import pgd
      >>> targeted_at(pgd(norm="linf", epsilon=0.3, num_steps=20, loss="lm"), 9).passes
      378

    References:
      Gowal et al., An alternative surrogate loss for PGD-based adversarial testing, 2019 (the multi-targeted attack);
      Croce & Hein, Reliable evaluation of adversarial robustness, ICML 2020.
    """
    check_attack("targeted_at", attack)
    over_parts(lambda part: check_stepwise("targeted_at", part), attack)
    if num_targets is not None:
        check_count("num_targets", num_targets)
    return TargetedAt(attack, num_targets)
