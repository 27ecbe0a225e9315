"""Attacks from plain config values: {"name": "pgd", "norm": "linf", "epsilon": 0.3, ...}."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jax_advtrain.attacks import losses
from jax_advtrain.attacks.apgd import apgd
from jax_advtrain.attacks.at_radius import at_radius
from jax_advtrain.attacks.autoattack import autoattack
from jax_advtrain.attacks.carlini_wagner import carlini_wagner
from jax_advtrain.attacks.compose import restarts
from jax_advtrain.attacks.deepfool import deepfool
from jax_advtrain.attacks.fab import fab
from jax_advtrain.attacks.fmn import fmn
from jax_advtrain.attacks.mim import mim
from jax_advtrain.attacks.noise import noise
from jax_advtrain.attacks.norms import NORMS
from jax_advtrain.attacks.pgd import fgsm, ifgsm, pgd
from jax_advtrain.attacks.protocol import Attack
from jax_advtrain.attacks.rounded import rounded
from jax_advtrain.attacks.square import square
from jax_advtrain.attacks.targeting import targeted_at
from jax_advtrain.attacks.temperature import temperature_sweep
from jax_advtrain.attacks.until_success import until_success

ATTACKS: dict[str, Callable[..., Any]] = {
    "pgd": pgd,
    "fgsm": fgsm,
    "ifgsm": ifgsm,
    "mim": mim,
    "apgd": apgd,
    "square": square,
    "fab": fab,
    "deepfool": deepfool,
    "fmn": fmn,
    "carlini_wagner": carlini_wagner,
    "autoattack": autoattack,
    "noise": noise,
}
# Attacks that look for the nearest adversarial image; a config asks them for one within epsilon.
MINIMUM_NORM = ("fab", "deepfool", "fmn", "carlini_wagner")
_NORMS = {"deepfool": ("linf", "l2"), "carlini_wagner": ("l2",)}

# Fields that any attack takes: what it is composed with.
COMPOSED = ("temperature", "temperatures", "targets", "restarts", "rounded", "until_success")

# What a config may not hold, since it holds plain values only.
_NOT_PLAIN = ("optimizer", "is_right", "score", "settings")


def norms_of(name: str) -> tuple[str, ...]:
    """The norms that an attack knows and an evaluation can measure."""
    return _NORMS.get(name, NORMS)


def fields_of(name: str) -> tuple[str, ...]:
    """The fields of an attack in a config, without those of `COMPOSED`."""
    parameters = inspect.signature(ATTACKS[name]).parameters
    names = [field for field in parameters if field not in _NOT_PLAIN]
    if "settings" in parameters:
        names += [field for field in inspect.signature(pgd).parameters if field not in (*names, *_NOT_PLAIN)]
        if name == "fgsm":
            names = [field for field in names if field in ("norm", "epsilon", "loss", "project")]
        if name == "ifgsm":
            names.remove("start")
    return tuple(names) if "norm" in names else ("norm", *names)


def unknown_name(what: str, name: Any, valid) -> str:
    """One line that says what was not known, the nearest valid name, and all valid ones."""
    near = difflib.get_close_matches(str(name), list(valid), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{what} {name!r} is not known{hint}; valid: {', '.join(valid)}"


def from_config(spec: Mapping[str, Any], **task: Any) -> Attack:
    """Builds an attack from plain values.

    Args:
      spec: "name", the fields of that attack, and for any attack what it is composed with, from the inside out:
        "temperature" (divides the logits inside the loss) or "temperatures" (a sweep over several), "targets" (a number
        of target classes, or "all"), "restarts", "rounded" (levels between 0 and 1, such as 255), "until_success".
        Minimum-norm attacks (fab, deepfool, fmn, carlini_wagner) are asked for images within "epsilon".
      **task: `is_right` and `score` functions, where the task is not classification.

    Raises:
      ValueError: an unknown name or field (the valid ones are listed), a missing field, or a bad value.

    Example:
      >>> attack = from_config({"name": "ifgsm", "norm": "linf", "epsilon": 0.1, "num_steps": 10, "restarts": 3})
      >>> attack.passes
      63
    """
    fields = dict(spec)
    name = fields.pop("name", None)
    if name not in ATTACKS:
        raise ValueError(unknown_name("attack", name, ATTACKS))
    factory = ATTACKS[name]
    composed = {field: fields.pop(field) for field in COMPOSED if field in fields}
    valid = fields_of(name)
    for field in fields:
        if field not in valid:
            raise ValueError(unknown_name(f"attack {name!r}: field", field, (*valid, *COMPOSED)))
    for field, parameter in inspect.signature(factory).parameters.items():
        needed = parameter.default is parameter.empty and field in valid
        if (needed or (field == "epsilon" and name in MINIMUM_NORM)) and field not in fields:
            raise ValueError(f"attack {name!r} needs the field {field!r}")
    if fields.get("norm", norms_of(name)[0]) not in norms_of(name):
        raise ValueError(f"attack {name!r} has no norm {fields['norm']!r}; its norms are {', '.join(norms_of(name))}")
    if name == "carlini_wagner":
        fields.pop("norm", None)
    if "temperature" in composed:
        if "loss" not in valid:
            raise ValueError(f"attack {name!r} ascends no loss, so it takes no temperature")
        usual = "lm" if name == "square" else "ce"
        fields["loss"] = losses.with_temperature(fields.get("loss") or usual, composed["temperature"])
    if name in MINIMUM_NORM:
        epsilon = fields.pop("epsilon")
        return _composed(at_radius(factory(**fields, **task), epsilon), composed)
    return _composed(factory(**fields, **task), composed)


def _composed(attack: Attack, composed: Mapping[str, Any]) -> Attack:
    if "temperatures" in composed:
        attack = temperature_sweep(attack, composed["temperatures"])
    if "targets" in composed:
        attack = targeted_at(attack, None if composed["targets"] == "all" else composed["targets"])
    if composed.get("restarts", 1) != 1:
        attack = restarts(attack, composed["restarts"])
    if "rounded" in composed:
        attack = rounded(attack, composed["rounded"])
    return until_success(attack) if composed.get("until_success") else attack
