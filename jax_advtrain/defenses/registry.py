"""Defenses from plain config values: {"name": "ima", "eps_max": 0.3, ...}."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax_advtrain.attacks.registry import unknown_name
from jax_advtrain.defenses.ame import Ame
from jax_advtrain.defenses.awp import Perturbed
from jax_advtrain.defenses.fast_at import NFGSM, FastAT
from jax_advtrain.defenses.fat import Fat
from jax_advtrain.defenses.gairat import Gairat
from jax_advtrain.defenses.iaat import Iaat
from jax_advtrain.defenses.ima import IMA
from jax_advtrain.defenses.madry import Madry
from jax_advtrain.defenses.mart import Mart
from jax_advtrain.defenses.mma import Mma
from jax_advtrain.defenses.protocol import Defense
from jax_advtrain.defenses.standard import Standard
from jax_advtrain.defenses.trades import Trades

DEFENSES: dict[str, type] = {
    "standard": Standard,
    "pgd_at": Madry,
    "trades": Trades,
    "mart": Mart,
    "fat": Fat,
    "gairat": Gairat,
    "fast_at": FastAT,
    "n_fgsm": NFGSM,
    "iaat": Iaat,
    "mma": Mma,
    "ame": Ame,
    "ima": IMA,
}
ATTACK_BN = ("eval", "train")
_AWP_FIELDS = {field.name for field in dataclasses.fields(Perturbed)} & {"awp_gamma", "awp_warmup_epochs"}


def from_config(spec: Mapping[str, Any]) -> Defense:
    """Builds a defense from plain values.

    Raises:
      ValueError: an unknown name or field (the valid ones are listed), a bad value, weight perturbation of a method
        that it does not compose with.
    """
    fields = dict(spec)
    name = fields.pop("name", None)
    if name not in DEFENSES:
        raise ValueError(unknown_name("defense", name, DEFENSES))
    method = DEFENSES[name]
    valid = [field.name for field in dataclasses.fields(method)]
    for field in fields:
        if field in valid:
            continue
        if field in _AWP_FIELDS:
            combine = ", ".join(other for other, one in DEFENSES.items() if issubclass(one, Perturbed))
            raise ValueError(f"defense {name!r} has no {field}: weight perturbation combines with {combine}")
        raise ValueError(unknown_name(f"defense {name!r}: field", field, valid))
    if fields.get("attack_bn", "eval") not in ATTACK_BN:
        raise ValueError(f"attack_bn is {fields['attack_bn']!r}; give one of {', '.join(ATTACK_BN)}")
    return method(**fields)
