"""AutoAttack (Croce & Hein 2020): four to six attacks one after the other, each on the samples that are still right."""

import dataclasses
import warnings
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.apgd import apgd
from jax_advtrain.attacks.at_radius import at_radius
from jax_advtrain.attacks.combine import Composed, Wrapped, over_parts, picked
from jax_advtrain.attacks.compose import restarts, worst_of
from jax_advtrain.attacks.fab import fab
from jax_advtrain.attacks.gradients import Stochastic, outputs_of
from jax_advtrain.attacks.protocol import (
    Attack,
    AttackResult,
    LogitsFn,
    check_count,
    check_number,
    make_problem,
    zeros_per_sample,
)
from jax_advtrain.attacks.pytrees import register_dataclass
from jax_advtrain.attacks.square import square
from jax_advtrain.attacks.stepwise import Part
from jax_advtrain.attacks.targeting import num_classes_of, targeted_at
from jax_advtrain.attacks.until_success import until_success

Version = Literal["standard", "plus", "rand"]
VERSIONS: tuple[str, ...] = get_args(Version)

# The draw of a stochastic model that classifies the clean images: apart from those of the steps, counted from 0.
_CLEAN_DRAW = 2**31 - 4


@partial(register_dataclass, data_fields=["attack"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class OnClassLogits(Wrapped):
    """An attack to which a one-logit model speaks in class logits [0, z]; other models as they do."""

    attack: Any

    def init(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> Any:
        logits_fn = _in_class_logits(logits_fn)
        return self.attack.init(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)

    def step(self, logits_fn: LogitsFn, state: Any) -> Any:
        return self.attack.step(_in_class_logits(logits_fn), state)

    def result(self, logits_fn: LogitsFn, state: Any) -> AttackResult:
        return self.attack.result(_in_class_logits(logits_fn), state)


def _in_class_logits(logits_fn: LogitsFn) -> LogitsFn:
    if isinstance(logits_fn, Stochastic):
        function = logits_fn.function
        return Stochastic(lambda images, keys: losses.class_logits(function(images, keys)))
    return lambda images: losses.class_logits(logits_fn(images))


@partial(
    register_dataclass,
    data_fields=["epsilon"],
    meta_fields=["norm", "version", "num_steps", "num_queries", "eot_passes"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class AutoAttack(Composed):
    """The ensemble; see `autoattack`."""

    epsilon: jax.typing.ArrayLike
    norm: str
    version: str
    num_steps: int
    num_queries: int
    eot_passes: int
    stops_early: ClassVar[bool] = True  # type: ignore[override]

    def members(self, num_classes: int) -> tuple[tuple[str, Attack], ...]:
        """What runs on a model of so many classes, in this order: (name, attack).

        The names say what the attack does: "apgd-lm" and "apgd-t-lm" ascend the logit margin.

        Raises:
          ValueError: fewer than 2 classes.
        """
        check_count("num_classes (2 for one-logit models)", num_classes, least=2)
        binary, l1 = num_classes == 2, self.norm == "l1" and self.version == "standard"
        steps = {"norm": self.norm, "num_steps": self.num_steps}

        def ascent(loss: str, eot_passes: int = 1) -> Attack:
            return apgd(**steps, epsilon=self.epsilon, loss=loss, large_radii=l1, eot_passes=eot_passes)

        def boundary(start: str) -> Attack:
            return at_radius(fab(**steps, start=start), self.epsilon)

        query = ("square", square(norm=self.norm, epsilon=self.epsilon, num_steps=self.num_queries, schedule="fixed"))
        margin = "lm" if binary else "dlr"
        if self.version == "rand":
            attacks = [(f"apgd-{loss}", ascent(loss, self.eot_passes)) for loss in ("ce", margin)]
        else:
            targeted = ("apgd-lm", ascent("lm"))
            if num_classes > 2:
                name, loss = ("apgd-t", "dlr") if num_classes > 3 else ("apgd-t-lm", "lm")
                targeted = (name, targeted_at(ascent(loss), 5 if l1 else 9))
            to_targets = ("fab-t", targeted_at(boundary("clean"), 9))
            if self.version == "standard":
                first = restarts(ascent("ce"), 5) if l1 else ascent("ce")
                attacks = [("apgd-ce", first), targeted, to_targets, query]
            else:
                attacks = [(f"apgd-{loss}", restarts(ascent(loss), 5)) for loss in ("ce", margin)]
                # The first run of FAB is from the clean image, and only its restarts are from random ones.
                attacks += [("fab", worst_of(boundary("clean"), restarts(boundary("random"), 4))), query]
                attacks += [] if binary else [targeted, to_targets]
        if binary:
            attacks = [(name, over_parts(OnClassLogits, attack)) for name, attack in attacks]
        return tuple((name, until_success(attack)) for name, attack in attacks)

    def _ensemble(self, num_classes: int) -> Any:
        said = _what_replaces_what(self.version, num_classes)
        if said:
            warnings.warn(f"autoattack on {num_classes} classes: {said}", stacklevel=3)
        return until_success(worst_of(*(attack for _, attack in self.members(num_classes))))

    def run(
        self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None, resting=None
    ) -> AttackResult:
        """Runs the members in their order; `winner` is the first that fooled a sample (0 if none did).

        A sample that is wrong already keeps its clean image.

        Raises:
          ValueError: targets are given, or a stochastic model and another version than "rand".
        """
        if targets is not None:
            raise ValueError("autoattack chooses its targets itself: leave out targets=")
        if isinstance(logits_fn, Stochastic) and self.version != "rand":
            raise ValueError(f'version is "{self.version}", for models that always answer alike; give version="rand"')
        problem = make_problem(key, images, labels, None, self.epsilon if epsilon is None else epsilon)
        ensemble = self._ensemble(num_classes_of(logits_fn, images, labels, problem.keys))
        outputs = outputs_of(logits_fn, images, problem, _CLEAN_DRAW)
        right, score = losses.is_right(outputs, labels), losses.classification_margin(outputs, labels)
        found = ensemble.run(
            problem.keys,
            logits_fn,
            images,
            labels,
            epsilon=epsilon,
            start=start,
            resting=~right if resting is None else ~right | resting,
        )
        zeros = zeros_per_sample(images, jnp.int32)
        clean = AttackResult(images, right, score.astype(found.score.dtype), zeros, zeros, zeros, zeros)
        return picked(clean, found, better=right, counted=right)

    def parts(self, num_classes: int) -> tuple[Part, ...]:
        """The attacks that run; each for samples that all before it left right, the clean image included."""
        return self._ensemble(num_classes).parts(num_classes)

    def over(self, function: Any) -> Any:
        raise ValueError(
            "autoattack is made for the model's number of classes; compose its members instead: "
            "worst_of(*[attack for _, attack in autoattack(...).members(num_classes)])"
        )

    @property
    def passes(self) -> int:
        """Forward plus backward passes of a sample that nothing fools, on 10 classes or more."""
        return 1 + sum(attack.passes for _, attack in self.members(10))


def _what_replaces_what(version: str, num_classes: int) -> str:
    if num_classes > 3 or (num_classes == 3 and version == "rand"):
        return ""
    if num_classes == 3:
        return "apgd-t-lm (logit margin, 2 targets) in place of apgd-t, whose targeted DLR needs 4 classes"
    if version == "standard":
        return "apgd-lm (logit margin) in place of apgd-t, whose targeted DLR needs 4 classes; fab-t has one target"
    said = "apgd-lm (logit margin) in place of apgd-dlr, whose DLR needs 3 classes"
    return said if version == "rand" else f"{said}; without apgd-t and fab-t, which would repeat apgd-lm and fab"


def autoattack(
    *,
    norm: str = "linf",
    epsilon: jax.typing.ArrayLike,
    version: Version = "standard",
    num_steps: int = 100,
    num_queries: int = 5000,
    eot_passes: int = 20,
) -> AutoAttack:
    """AutoAttack: a sample counts as robust if none of these, in this order, fools the model.

    ==========  =========================================================================================
    "standard"  apgd-ce, apgd-t (targeted DLR, 9 targets), fab-t (9 targets), square; in "l1" apgd-ce with 5 restarts,
                apgd-t with 5 targets, both through the balls of 3 and 2 epsilon first
    "plus"      apgd-ce and apgd-dlr with 5 restarts each, fab (5 starts), square, apgd-t, fab-t
    "rand"      apgd-ce and apgd-dlr with gradients averaged over 20 passes, for stochastic models
    ==========  =========================================================================================

    Any number of classes: there are min(9, classes - 1) targets; below 4 classes the logit margin "lm" stands in for
    the targeted DLR, below 3 for DLR too, so that "standard" on 2 classes is apgd-ce, apgd-lm, fab-t with one target,
    square; a one-logit model counts as the class logits [0, z]. It warns then, once a trace, and `members(num_classes)`
    says by name what runs.

    Each member runs through `until_success`, on the samples that are right after all members before it: `winner` is the
    number of the one that fooled a sample. A batch pays for its hardest sample: whole data sets are attacked faster
    by a driver that fills the places of fooled samples, to which `parts(num_classes)` says the runs.

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: radius in pixel units of [0, 1]: a scalar or one a sample. 0 returns the image bit for bit.
      version: see the table.
      num_steps: of apgd and fab, each.
      num_queries: of square.
      eot_passes: passes that "rand" averages.

    Returns:
      An attack: call it as `attack(key, logits_fn, images, labels)`.

    Raises:
      ValueError: unknown norm or version, a bad number; at the call, targets, or a stochastic model without "rand".

    Example:
      >>> attack = autoattack(norm="linf", epsilon=8 / 255)
      >>> [name for name, _ in attack.members(10)]
      ['apgd-ce', 'apgd-t', 'fab-t', 'square']
      >>> [name for name, _ in attack.members(2)]
      ['apgd-ce', 'apgd-lm', 'fab-t', 'square']

    References:
      Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks,
      ICML 2020; "l1": Croce & Hein, Mind the box, ICML 2021. Settings as in the authors' code, which stops with an
      error below 4 classes. The clean image is classified once, not by each member; "plus" in "l1" has no special
      settings, as there.
    """
    norms.check_norm(norm)
    if version not in VERSIONS:
        raise ValueError(f"version is {version!r}; the versions are {', '.join(VERSIONS)}")
    check_number("epsilon", epsilon)
    for name, value in (("num_steps", num_steps), ("num_queries", num_queries), ("eot_passes", eot_passes)):
        check_count(name, value)
    attack = AutoAttack(epsilon, norm, version, num_steps, num_queries, eot_passes)
    attack.members(10)
    return attack
