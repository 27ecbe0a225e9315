"""The configuration of a run: all fields with their defaults, and the check of every value before any work.

A config file in `configs/` starts from `base()` and sets fields; the command line overrides them. Only plain values.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from jax_advtrain import data, defenses, models
from jax_advtrain.attacks.registry import unknown_name
from jax_advtrain.defenses.registry import DEFENSES
from jax_advtrain.evaluation import suite
from jax_advtrain.training import optim


class ConfigError(ValueError):
    """Something the user gave cannot be used; its text is one line that says what, where, and what would be right."""


# A run is what these fields say: a workdir refuses others. All else may change when it is resumed or evaluated.
IDENTITY = ("data", "model", "defense", "optimizer", "batch_size", "num_shards", "seed", "ema_decay", "one_logit")
# Where data lie is no identity: the fingerprint tells whether they are the same.
_FREE_DATA_FIELDS = ("data_dir", "path", "max_ram_gb")


def base(defense: str = "ima", model: str = "small_cnn") -> ml_collections.ConfigDict:
    """All fields with their defaults.

    Args:
      defense, model: names, whose own fields the config gets.

    Fields:
      data: of `data.load`. model, defense: a name and its own fields. optimizer: of `training.optim`.
      epochs; batch_size, a multiple of num_shards; num_shards, virtual shards of the data, a multiple of the devices.
      seed; ema_decay: None, or the decay of averaged weights, which evaluation then uses.
      one_logit: for sets of 2 classes, a network with one logit.
      beside: {name: {defense fields}}: other defenses, trained alike in runs of their own and drawn beside this one
        (data of two dimensions only).
      monitor: every so many epochs, robust accuracy of num_samples validation samples under attacks (texts as in
        eval.attacks) at one norm and radius; None = the defense's.
      checkpoint: keep = how many of the last are kept (the best is kept besides); every_epochs.
      eval: after_training = which checkpoints are evaluated at the end, each in the folder of its name; checkpoint =
        which one --mode=evaluate takes, name = its folder ("" = that of the checkpoint); split; attacks, texts such as
        "pgd:num_steps=100:loss=lm:restarts=5"; radii of both norms; num_samples (None = all), from the front;
        batch_size; figures = images in the gallery.
      margins: of --mode=margins: norm, rising radii, num_steps, split, num_samples.
    """
    fields = {field.name: field.default for field in dataclasses.fields(DEFENSES[defense])}
    return ml_collections.ConfigDict(
        _settable(
            {
                "data": data.default_config(),
                "model": {"name": model},
                "defense": {"name": defense, **fields},
                "optimizer": dict(optim.DEFAULTS),
                "epochs": 20,
                "batch_size": 128,
                "num_shards": 8,
                "seed": 0,
                "ema_decay": None,
                "one_logit": False,
                "beside": {},
                "monitor": {
                    "every": 1,
                    "num_samples": 500,
                    "norm": None,
                    "epsilon": None,
                    "attacks": "pgd:num_steps=10, pgd:num_steps=10:loss=lm",
                },
                "checkpoint": {"keep": 2, "every_epochs": 1},
                "eval": {
                    "name": "",
                    "checkpoint": "best",
                    "after_training": "last, best",
                    "split": "test",
                    "attacks": (
                        "fgsm, ifgsm:num_steps=10, pgd:alpha=4.0, pgd:num_steps=100:alpha=4.0:restarts=2,"
                        " pgd:num_steps=100:alpha=4.0:loss=lm:restarts=2, noise, noise:distribution=gaussian"
                    ),
                    "epsilons_linf": (0.05, 0.1, 0.2, 0.3),
                    "epsilons_l2": (0.5, 1.0, 2.0),
                    "num_samples": None,
                    "batch_size": 256,
                    "figures": 8,
                },
                "margins": {
                    "norm": "linf",
                    "radii": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
                    "num_steps": 20,
                    "split": "test",
                    "num_samples": None,
                },
            }
        )
    )


def _settable(value: Any) -> Any:
    """None becomes a placeholder, which the command line can set; a bare None it cannot."""
    if isinstance(value, dict):
        return {name: _settable(part) for name, part in value.items()}
    return ml_collections.config_dict.placeholder(object) if value is None else value


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, lists and numbers, as JSON keeps them."""
    as_dict = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    return json.loads(json.dumps(as_dict))


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plain config that says which run it is."""
    whole = plain(config)
    whole["data"] = {name: value for name, value in whole["data"].items() if name not in _FREE_DATA_FIELDS}
    kept = {name: whole[name] for name in IDENTITY}
    if whole["optimizer"]["schedule"] == "cosine":
        # Its rate at every step depends on where training ends.
        kept["epochs"] = whole["epochs"]
    return kept


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two plain configs differ."""
    found = []
    for name in sorted({*one, *other}):
        first, second = one.get(name), other.get(name)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += differences(first, second, f"{prefix}{name}.")
        elif first != second:
            found.append(f"{prefix}{name} ({first!r} there, {second!r} here)")
    return found


def validate(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Checks every field that can be checked without data.

    Raises:
      ConfigError: one line.
    """
    _known_fields(config)
    _whole("seed", config.seed, 0)
    for name in (
        *("epochs", "batch_size", "num_shards", "monitor.every", "monitor.num_samples", "checkpoint.keep"),
        *("checkpoint.every_epochs", "eval.batch_size", "margins.num_steps"),
    ):
        _whole(name, _at(config, name), 1)
    for name in ("eval.num_samples", "margins.num_samples"):
        if _at(config, name) is not None:
            _whole(name, _at(config, name), 1)
    if config.num_shards % num_devices:
        raise ConfigError(f"num_shards is {config.num_shards}; the {num_devices} devices here must divide it")
    if config.batch_size % config.num_shards:
        raise ConfigError(f"batch_size is {config.batch_size}; give a multiple of num_shards = {config.num_shards}")
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        raise ConfigError(f"ema_decay is {config.ema_decay}; give a number between 0 and 1, or None")
    for section, name in (("eval", "epsilons_linf"), ("eval", "epsilons_l2"), ("margins", "radii")):
        _radii(f"{section}.{name}", config[section][name])
    if config.monitor.epsilon is not None:
        _radii("monitor.epsilon", (config.monitor.epsilon,))
    for section in ("eval", "margins"):
        if config[section].split not in ("train", "validation", "test"):
            raise ConfigError(f"{section}.split is {config[section].split!r}; give train, validation or test")
    for name in (config.margins.norm, config.monitor.norm):
        if name not in (None, "linf", "l2"):
            raise ConfigError(f"norm is {name!r}; the norms are linf, l2")
    for field in ("checkpoint", "after_training"):
        for name in suite.texts(config.eval[field]):
            if name not in ("last", "best"):
                raise ConfigError(f"eval.{field} is {config.eval[field]!r}; give last or best")
    try:
        for defense in (config.defense, *config.beside.values()):
            defenses.from_config(defense)
        optim.build(config.optimizer, steps_per_epoch=1, epochs=config.epochs)
        for text in (*suite.texts(config.eval.attacks), *suite.texts(config.monitor.attacks)):
            suite.parse(text)
        data.augment.build(tuple(config.data.augment))
        _model_name(config.model)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def _model_name(model: Mapping[str, Any]) -> None:
    name = model["name"]
    if name not in models.NETWORKS:
        raise ConfigError(unknown_name("model.name", name, models.NETWORKS))
    for field in model:
        if field != "name" and field not in models.field_names(name):
            raise ConfigError(unknown_name(f"model {name!r}: field", field, models.field_names(name)))


def _known_fields(config: ml_collections.ConfigDict) -> None:
    """Fields that a config file made up; the command line cannot (the config is locked by then)."""
    template = base()
    for name in config:
        if name not in template:
            raise ConfigError(unknown_name("config field", name, list(template)))
        if name in ("model", "defense", "beside") or not isinstance(template[name], ml_collections.ConfigDict):
            continue
        for field in config[name]:
            if field not in template[name]:
                raise ConfigError(
                    unknown_name("config field", f"{name}.{field}", [f"{name}.{f}" for f in template[name]])
                )


def nearest(name: str, valid: list[str]) -> str:
    """The valid name nearest to an unknown one, as a hint; "" where none is near."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def _at(config: ml_collections.ConfigDict, dotted: str) -> Any:
    for name in dotted.split("."):
        config = config[name]
    return config


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; give a whole number from {least}")


def _radii(name: str, values: Any) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} holds {value!r}; radii are finite numbers above 0, in pixel units of [0, 1]")
