"""Which attacks an evaluation runs, from short plain texts: "pgd:num_steps=100:loss=lm:restarts=5"."""

import ast
from typing import Any, NamedTuple

from jax_advtrain import attacks

# Losses for models with one logit, in place of those for several.
_BINARY_LOSSES = {"ce": "bce", "lm": "lmb", "slm": "lmb"}


class Member(NamedTuple):
    """One attack of a suite: its label in results, its plain settings, and how to build it for a norm."""

    label: str
    settings: dict[str, Any]

    def build(self, norm: str) -> attacks.Attack:
        """The attack, with radius 0: the radius is given at the call."""
        return attacks.from_config({**self.settings, "norm": norm, "epsilon": 0.0})


def texts(value: str) -> tuple[str, ...]:
    """The attacks of one text with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def parse(text: str, *, binary: bool = False) -> Member:
    """Reads "name:field=value:field=value".

    `num_steps` and `loss` show in the label, as do restarts and temperature: "pgd-100-lm-x5". With `binary`, losses
    for several logits become those for one.

    Raises:
      ValueError: no such attack or field, a value that it does not take.
    """
    name, *parts = text.strip().split(":")
    settings: dict[str, Any] = {"name": name}
    for part in parts:
        field, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"eval.attacks: {text!r} has {part!r}; write field=value")
        settings[field.strip()] = _value(value.strip())
    for given in ("norm", "epsilon"):
        if given in settings:
            raise ValueError(f"eval.attacks: {text!r} sets {given}; use eval.epsilons_linf and eval.epsilons_l2")
    if name in ("pgd", "fgsm", "ifgsm"):
        settings.setdefault("loss", "ce")
        if binary:
            settings["loss"] = _BINARY_LOSSES.get(settings["loss"], settings["loss"])
    if name in ("pgd", "ifgsm"):
        settings.setdefault("num_steps", 20 if name == "pgd" else 10)
    member = Member(_label(settings), settings)
    member.build("linf")
    return member


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _label(settings: dict[str, Any]) -> str:
    if settings["name"] == "noise":
        return f"{settings.get('distribution', 'uniform')}-noise"
    parts = [settings["name"]]
    parts += [str(settings[field]) for field in ("num_steps", "loss") if field in settings]
    parts += [f"x{settings['restarts']}"] if settings.get("restarts", 1) != 1 else []
    parts += [f"T{settings['temperature']:g}"] if "temperature" in settings else []
    return "-".join(parts)
