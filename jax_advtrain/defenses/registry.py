"""Defenses from plain config values: {"name": "ima", "eps_max": 0.3, ...}, and the remedies around them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax_advtrain.attacks.registry import unknown_name
from jax_advtrain.defenses.ame import Ame
from jax_advtrain.defenses.awp import Perturbed
from jax_advtrain.defenses.cfa import CFA
from jax_advtrain.defenses.classwise import Classwise, has_radius
from jax_advtrain.defenses.fast_at import NFGSM, FastAT
from jax_advtrain.defenses.fat import Fat
from jax_advtrain.defenses.frl import FRL
from jax_advtrain.defenses.gairat import Gairat
from jax_advtrain.defenses.iaat import Iaat
from jax_advtrain.defenses.ima import IMA
from jax_advtrain.defenses.madry import Madry
from jax_advtrain.defenses.mart import Mart
from jax_advtrain.defenses.mma import Mma
from jax_advtrain.defenses.protocol import Defense
from jax_advtrain.defenses.reweight import Reweight
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
# Methods that know dense labels: their loss and attack are the task's, of whole images. The others weigh, or stop at,
# the class that an image is taken for.
OF_SEGMENTATION = ("standard", "pgd_at", "trades", "fast_at", "n_fgsm", "ame", "ima")
# Of the most vulnerable class; each is put around a method.
REMEDIES: dict[str, type[Classwise]] = {"reweight": Reweight, "cfa": CFA, "frl": FRL}
_OWN_RADII = (CFA, FRL)
ATTACK_BN = ("eval", "train")
_AWP_FIELDS = {field.name for field in dataclasses.fields(Perturbed)} & {"awp_gamma", "awp_warmup_epochs"}


def from_config(spec: Mapping[str, Any], classwise: Mapping[str, Any] | None = None) -> Defense:
    """Builds a defense from plain values.

    Args:
      spec: a name and its own fields.
      classwise: None, or a remedy around it: a name ("" = none) and its own fields.

    Raises:
      ValueError: an unknown name or field (the valid ones are listed), a bad value, weight perturbation or a remedy
        of a method that it does not compose with.
    """
    method = _method(spec)
    return method if not (classwise and classwise.get("name")) else _around(method, spec["name"], classwise)


def remedy_fields(name: str) -> dict[str, Any]:
    """The own fields of a remedy with their defaults; {} of "" = none."""
    fields = dataclasses.fields(REMEDIES[name]) if name else ()
    return {field.name: field.default for field in fields if field.name != "method"}


def _around(method: Defense, method_name: str, classwise: Mapping[str, Any]) -> Defense:
    fields = dict(classwise)
    name = fields.pop("name")
    if name not in REMEDIES:
        raise ValueError(unknown_name("classwise", name, REMEDIES))
    valid = remedy_fields(name)
    for field in fields:
        if field not in valid:
            raise ValueError(unknown_name(f"classwise {name!r}: field", field, list(valid)))
    if issubclass(REMEDIES[name], _OWN_RADII) and not has_radius(type(method)):
        combine = ", ".join(other for other, one in DEFENSES.items() if has_radius(one))
        raise ValueError(f"{name!r} gives each class its own radius, {method_name!r} has none; it goes with {combine}")
    return REMEDIES[name](method, **fields)


def _method(spec: Mapping[str, Any]) -> Defense:
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
