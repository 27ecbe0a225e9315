"""Attacks from plain config values: {"name": "pgd", "norm": "linf", "epsilon": 0.3, ...}."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jax_advtrain.attacks import losses
from jax_advtrain.attacks.compose import restarts
from jax_advtrain.attacks.noise import noise
from jax_advtrain.attacks.pgd import fgsm, ifgsm, pgd
from jax_advtrain.attacks.protocol import Attack

ATTACKS: dict[str, Callable[..., Any]] = {"pgd": pgd, "fgsm": fgsm, "ifgsm": ifgsm, "noise": noise}

# What a config may not hold, since it holds plain values only.
_NOT_PLAIN = ("optimizer", "is_right", "score", "settings")


def _fields(factory: Callable[..., Any]) -> tuple[str, ...]:
    names = [name for name in inspect.signature(factory).parameters if name not in _NOT_PLAIN]
    if "settings" in inspect.signature(factory).parameters:
        names += [name for name in inspect.signature(pgd).parameters if name not in (*names, *_NOT_PLAIN)]
        if factory is fgsm:
            names = [name for name in names if name in ("norm", "epsilon", "loss", "project")]
        if factory is ifgsm:
            names.remove("start")
    return tuple(names)


def unknown_name(what: str, name: Any, valid) -> str:
    """One line that says what was not known, the nearest valid name, and all valid ones."""
    near = difflib.get_close_matches(str(name), list(valid), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{what} {name!r} is not known{hint}; valid: {', '.join(valid)}"


def from_config(spec: Mapping[str, Any], **task: Any) -> Attack:
    """Builds an attack from plain values.

    Args:
      spec: "name", the fields of that attack, and for any attack "temperature" (divides the logits inside the loss)
        and "restarts".
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
    num_restarts = fields.pop("restarts", 1)
    temperature = fields.pop("temperature", None)
    valid = _fields(factory)
    for field in fields:
        if field not in valid:
            raise ValueError(unknown_name(f"attack {name!r}: field", field, (*valid, "temperature", "restarts")))
    for field, parameter in inspect.signature(factory).parameters.items():
        if parameter.default is parameter.empty and field in valid and field not in fields:
            raise ValueError(f"attack {name!r} needs the field {field!r}")
    if temperature is not None:
        if "loss" not in valid:
            raise ValueError(f"attack {name!r} ascends no loss, so it takes no temperature")
        fields["loss"] = losses.with_temperature(fields.get("loss", "ce"), temperature)
    attack = factory(**fields, **task)
    return attack if num_restarts == 1 else restarts(attack, num_restarts)
