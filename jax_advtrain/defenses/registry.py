"""Defenses from plain config values: {"name": "ima", "eps_max": 0.3, ...}."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax_advtrain.attacks.registry import unknown_name
from jax_advtrain.defenses.ima import IMA
from jax_advtrain.defenses.madry import Madry
from jax_advtrain.defenses.protocol import Defense
from jax_advtrain.defenses.standard import Standard

DEFENSES: dict[str, type] = {"standard": Standard, "pgd_at": Madry, "ima": IMA}
ATTACK_BN = ("eval", "train")


def from_config(spec: Mapping[str, Any]) -> Defense:
    """Builds a defense from plain values.

    Raises:
      ValueError: an unknown name or field (the valid ones are listed), or a bad value.
    """
    fields = dict(spec)
    name = fields.pop("name", None)
    if name not in DEFENSES:
        raise ValueError(unknown_name("defense", name, DEFENSES))
    method = DEFENSES[name]
    valid = [field.name for field in dataclasses.fields(method)]
    for field in fields:
        if field not in valid:
            raise ValueError(unknown_name(f"defense {name!r}: field", field, valid))
    if fields.get("attack_bn", "eval") not in ATTACK_BN:
        raise ValueError(f"attack_bn is {fields['attack_bn']!r}; give one of {', '.join(ATTACK_BN)}")
    return method(**fields)
