"""Which runs a comparison is made of: methods, each with its seeds and radii, on one config.

A grid is plain values, as a config file of `python -m jax_advtrain.compare` gives them.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from jax_advtrain import command_line, config_check
from jax_advtrain import config as configs
from jax_advtrain.attacks.norms import NORMS
from jax_advtrain.attacks.registry import unknown_name
from jax_advtrain.defenses.registry import DEFENSES
from jax_advtrain.errors import ConfigError

# The field that is a method's training radius; of a method with a radius a sample, its ceiling.
_RADIUS_FIELDS = ("epsilon", "eps_max", "d_max")
# What all runs of a grid share, so that they can be compared.
_SHARED = ("data", "eval", "one_logit", "beside", "margins", "seed")
_DEFAULTS = {
    "names": (),
    "seeds": (0,),
    "radii": (),
    "reference": "",
    "autoattack": {"epsilons_linf": (), "epsilons_l2": (), "epsilons_l1": (), "num_samples": 500},
}


class Run(NamedTuple):
    """One run of a grid: the method's name in the table, and the config and workdir of an ordinary run."""

    method: str
    seed: int
    config: Any
    folder: Path


def grid(config: ml_collections.ConfigDict, methods: Mapping[str, Mapping[str, Any]]) -> ml_collections.ConfigDict:
    """All fields of a grid with their defaults.

    Args:
      config: of a run; what all runs share.
      methods: {name: fields}, the fields of a run that are this method's own: {"defense": {"epsilon": 0.3}, "epochs":
        30}; besides "seeds" and "radii" of its own, and "config", a config file whose defense is taken. The defense is
        called as the method, unless it says "name". None of data, eval, one_logit can be a method's own.

    Fields:
      base, methods: the arguments.
      names: which of the methods are compared, in the order of the table; all of them as given.
      seeds: of every method that gives none.
      radii: of training, for every method that has such a field (epsilon, eps_max, d_max) and gives none; () = what the
        method's fields say.
      reference: the method that the others are tested against in the table ("" = the first).
      autoattack: another evaluation, by AutoAttack, at radii of each norm on the first num_samples; no radii = none.
    """
    fields = {"base": config, "methods": dict(methods), **copy.deepcopy(_DEFAULTS), "names": tuple(methods)}
    return ml_collections.ConfigDict(fields)


def runs(asked: Any, folder: Path) -> list[Run]:
    """All runs of a grid, checked as far as they can be without data.

    Raises:
      ConfigError: one line: no runs, an unknown field, method or value, a method that would not be comparable.
    """
    _check(asked)
    found = []
    for name in asked.names:
        fields = asked.methods[name]
        radii, seeds = (tuple(fields.get(field, asked[field])) for field in ("radii", "seeds"))
        variant = _variant(asked.base, name, fields)
        own = next((field for field in _RADIUS_FIELDS if field in variant.defense), "")
        if not own and "radii" in fields and radii:
            raise ConfigError(f"methods.{name}.radii is {radii}; defense {variant.defense.name!r} has no radius")
        for radius in radii if own else ():
            label = f"{name}-{radius:g}"
            found += [_run(variant, label, seed, folder, {own: radius}) for seed in seeds]
        if not radii or not own:
            found += [_run(variant, name, seed, folder, {}) for seed in seeds]
    if not found:
        raise ConfigError("the grid holds no runs; give one method or more, each with a seed or more")
    names = list(dict.fromkeys(run.method for run in found))
    if len({(run.method, run.seed) for run in found}) < len(found):
        raise ConfigError("the grid holds a run twice; give each seed and each radius once")
    if asked.reference and asked.reference not in names:
        raise ConfigError(unknown_name("reference", asked.reference, names))
    return found


def _check(asked: Any) -> None:
    valid = ("base", "methods", *_DEFAULTS)
    for name in asked:
        if name not in valid:
            raise ConfigError(unknown_name("grid field", name, valid))
    for name in valid:
        if name not in asked:
            raise ConfigError(f"grid field {name!r} is missing; make the grid by jax_advtrain.studies.grid.grid()")
    if asked.base.get("dice_threshold") is not None:
        raise ConfigError("a grid compares classifiers, and base.dice_threshold is set: train its methods one by one")
    for name in asked.autoattack:
        if name not in _DEFAULTS["autoattack"]:
            raise ConfigError(unknown_name("autoattack field", name, list(_DEFAULTS["autoattack"])))
    _seeds_and_radii("", asked)
    for name in asked.names:
        if name not in asked.methods:
            raise ConfigError(unknown_name("names: method", name, list(asked.methods)))
    for name, fields in asked.methods.items():
        if not isinstance(fields, (Mapping, ml_collections.ConfigDict)):
            raise ConfigError(f"methods.{name} is {fields!r}; give the fields that are its own: {{'defense': {{...}}}}")
        if not config_check.is_folder_name(name):
            raise ConfigError(f"methods holds {name!r}; give a name of letters, digits and _ . + -")
        _seeds_and_radii(f"methods.{name}.", fields)


def _seeds_and_radii(where: str, fields: Any) -> None:
    for name in ("seeds", "radii"):
        values = fields.get(name, ())
        if not isinstance(values, (list, tuple)):
            raise ConfigError(f"{where}{name} is {values!r}; give a list of numbers")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int if name == "seeds" else (int, float)) or value < 0:
                raise ConfigError(f"{where}{name} holds {value!r}; give {'whole ' * (name == 'seeds')}numbers from 0")


def _variant(base: Any, name: str, fields: Mapping[str, Any]) -> Any:
    """The config of a method's runs, but for seed and radius."""
    own = {field: value for field, value in fields.items() if field not in ("seeds", "radii", "config")}
    defense: dict[str, Any] = dict(own.pop("defense", {}))
    if "config" in fields:
        given: Any = command_line.read_config(fields["config"])
        defense = {**given.defense, **defense}
    defense = {"name": name, **defense}
    if defense["name"] not in DEFENSES:
        raise ConfigError(unknown_name(f"methods.{name}: defense", defense["name"], list(DEFENSES)))
    defaults: Any = configs.base(defense["name"])
    whole = {**defaults.defense, **defense}
    variant = copy.deepcopy(base)
    with variant.unlocked():
        variant.defense = ml_collections.ConfigDict(whole)
        for field, value in own.items():
            if field in _SHARED:
                hint = "give seeds" if field == "seed" else "all runs of a grid share it: set it in base"
                raise ConfigError(f"methods.{name} sets {field}; {hint}")
            if field not in variant:
                raise ConfigError(unknown_name(f"methods.{name}: field", field, list(variant)))
            if isinstance(variant[field], ml_collections.ConfigDict) and field != "model":
                if not isinstance(value, (Mapping, ml_collections.ConfigDict)):
                    raise ConfigError(f"methods.{name}.{field} is {value!r}; it is a section of fields")
                for part in value:
                    if part not in variant[field]:
                        raise ConfigError(unknown_name(f"methods.{name}: field", f"{field}.{part}", variant[field]))
                variant[field].update(value)
            else:
                variant[field] = value
        # Evaluated by the grid, in a folder of its own; the workdir's config must not lead others there.
        variant.eval.after_training = variant.eval.name = ""
    return variant


def _run(variant: Any, method: str, seed: int, folder: Path, radius: Mapping[str, float]) -> Run:
    config = copy.deepcopy(variant)
    with config.unlocked():
        config.seed = seed
        config.defense.update(radius)
    return Run(method, seed, config, folder / method / f"seed-{seed}")


def evaluations(run: Run, asked: Any) -> list[Any]:
    """The configs of a run's evaluations: the main one, and AutoAttack's where the grid asks for it."""
    radii = {f"epsilons_{norm}": tuple(asked.autoattack[f"epsilons_{norm}"]) for norm in NORMS}
    name = asked.base.eval.name or "compare"
    main, other = copy.deepcopy(run.config), copy.deepcopy(run.config)
    with main.unlocked(), other.unlocked():
        main.eval.name, other.eval.name = name, f"{name}-autoattack"
        other.eval.update({**radii, "num_samples": asked.autoattack.num_samples, "attacks": "autoattack"})
    return [main, other] if any(radii.values()) else [main]
