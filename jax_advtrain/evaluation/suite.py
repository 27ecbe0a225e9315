"""Which attacks an evaluation runs, from short plain texts: "pgd:num_steps=100:loss=lm:restarts=5"."""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jax_advtrain import attacks
from jax_advtrain.attacks.registry import ATTACKS, COMPOSED, norms_of
from jax_advtrain.tasks import BINARY, CLASSIFICATION, Task

# Losses for models with one logit, in place of those for several.
_BINARY_LOSSES = {"ce": "bce", "lm": "lmb", "slm": "lmb", "dlr": "lmb"}
# What shows in a label although the text does not say it: the losses and the steps that differ most often.
_DEFAULT_STEPS = {"pgd": 20, "ifgsm": 10, "mim": 10, "apgd": 100, "square": 5000, "fab": 100}
_WITH_LOSS = ("pgd", "fgsm", "ifgsm", "mim", "apgd")
# Attacks that ascend any task's loss to their end. APGD and Square keep the first image that is wrong: its Dice lies
# just below the threshold and says nothing of how low the attack can bring it.
_OF_SEGMENTATION = ("pgd", "fgsm", "ifgsm", "mim", "noise")


class Member(NamedTuple):
    """One attack of a suite: its label in results, its plain settings, and how to build it for a norm.

    Attributes:
      task: of dense labels, what the attack ascends and when an image is right; None: of classifiers, which attacks
        know by themselves.
    """

    label: str
    settings: dict[str, Any]
    task: Task | None = None

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms that the attack knows; it runs at no radius of another."""
        return norms_of(self.settings["name"])

    def build(self, norm: str) -> attacks.Attack:
        """The attack, with radius 0: the radius is given at the call."""
        settings = {**self.settings, "norm": norm, "epsilon": 0.0}
        if self.task is None:
            return attacks.from_config(settings)
        if "loss" in settings:
            settings["loss"] = self.task.loss
        return attacks.from_config(settings, is_right=self.task.is_right, score=self.task.score)


def texts(value: str) -> tuple[str, ...]:
    """The attacks of one text with commas; those inside brackets part nothing: "pgd:temperatures=[0.1,1]"."""
    parts = re.split(r",(?![^\[(]*[\])])", value)
    return tuple(part.strip() for part in parts if part.strip())


def parse_all(attack_texts: Iterable[str], *, task: Task = CLASSIFICATION, where: str = "eval.attacks") -> list[Member]:
    """Reads several attacks, each as `parse`; no two get the same label.

    Attacks that differ only in what the label does not show get it added: "pgd-20-ce-alpha=4.0".

    Raises:
      ValueError: as `parse`; the same attack twice.
    """
    members = [parse(text, task=task, where=where) for text in attack_texts]
    labels = [member.label for member in members]
    members = [_told_apart(member) if labels.count(member.label) > 1 else member for member in members]
    seen: set[str] = set()
    for member in members:
        if member.label in seen:
            raise ValueError(f"{where} holds {member.label} twice; give each attack once")
        seen.add(member.label)
    return members


def check_norms(members: Iterable[Member], epsilons: Mapping[str, Sequence[float]], where: str = "members") -> None:
    """Raises ValueError where there are radii ({norm: radii}), but none of a norm that an attack knows."""
    norms = {norm for norm, radii in epsilons.items() if radii}
    for member in members:
        if norms and not norms & set(member.norms):
            raise ValueError(
                f"{where}: {member.label} knows the norms {', '.join(member.norms)}; give radii of one of them"
            )


def parse(text: str, *, task: Task = CLASSIFICATION, where: str = "eval.attacks") -> Member:
    """Reads "name:field=value:field=value".

    `num_steps` and `loss` show in the label, as do restarts and temperature: "pgd-100-lm-x5".

    Args:
      task: of one logit, losses for several logits become those for one. Of dense labels the loss is "task": what
        training descends.
      where: the config field that the text comes from, for messages.

    Raises:
      ValueError: no such attack or field, a value that it does not take.
    """
    name, *parts = (piece.strip() for piece in text.split(":"))
    settings: dict[str, Any] = {"name": name}
    for part in parts:
        field, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not field or not value:
            raise ValueError(f"{where}: {text!r} has {part!r}; write field=value")
        if field in settings:
            raise ValueError(f"{where}: {text!r} sets {field} twice")
        settings[field] = _value(value)
    for given in ("norm", "epsilon"):
        if given in settings:
            raise ValueError(f"{where}: {text!r} sets {given}; the radii of each norm are fields of the config")
    if task.is_dense:
        _check_dense(text, settings, where)
    if name in _WITH_LOSS:
        settings.setdefault("loss", "task" if task.is_dense else "ce")
    if task is BINARY and "loss" in settings:
        settings["loss"] = _BINARY_LOSSES.get(settings["loss"], settings["loss"])
    if name in _DEFAULT_STEPS:
        settings.setdefault("num_steps", _DEFAULT_STEPS[name])
    try:
        member = Member(_label(settings), settings, task if task.is_dense else None)
        member.build(member.norms[0] if name in ATTACKS else "linf")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {text!r}: {error}") from error
    return member


def _check_dense(text: str, settings: dict[str, Any], where: str) -> None:
    """Raises ValueError where an attack of dense labels is none that knows such."""
    if settings["name"] in ATTACKS and settings["name"] not in _OF_SEGMENTATION:
        raise ValueError(
            f"{where}: {text!r}: {settings['name']} is of classifiers; segmentation, where the lowest Dice counts, has "
            f"{', '.join(_OF_SEGMENTATION)}"
        )
    if settings.get("loss", "task") != "task":
        raise ValueError(
            f"{where}: {text!r}: of segmentation the loss is 'task', what training descends (Dice and cross entropy)"
        )
    for field in ("targets", "until_success"):
        if field in settings:
            raise ValueError(f"{where}: {text!r} sets {field}, which is of classifiers; leave it out for segmentation")


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


_SHOWN = ("name", "version", "num_steps", "loss", *COMPOSED)


def _label(settings: dict[str, Any]) -> str:
    if settings["name"] == "noise":
        return f"{settings.get('distribution', 'uniform')}-noise"
    parts = [settings["name"]]
    parts += [str(settings[field]) for field in ("version", "num_steps", "loss") if field in settings]
    parts += [f"t{settings['targets']}"] if "targets" in settings else []
    parts += [f"x{settings['restarts']}"] if settings.get("restarts", 1) != 1 else []
    parts += [f"T{settings['temperature']}"] if "temperature" in settings else []
    if "temperatures" in settings:
        parts.append("T" + "+".join(str(value) for value in settings["temperatures"]))
    parts += [f"rounded{settings['rounded']}"] if "rounded" in settings else []
    parts += ["until-success"] if settings.get("until_success") else []
    return _as_label(parts)


def _told_apart(member: Member) -> Member:
    hidden = [f"{field}={value}" for field, value in sorted(member.settings.items()) if field not in _SHOWN]
    return member._replace(label=_as_label([member.label, *hidden]))


def _as_label(parts: Iterable[str]) -> str:
    """One word of what results.json allows in the name of an attack."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "+", "-".join(parts)).strip("+")
