"""The configuration of a run: all fields with their defaults, and what of it says which run it is.

A config file in `configs/` starts from `base()` and sets fields; the command line overrides them. Only plain values.
`config_check.validate` looks at every value before any work.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from jax_advtrain import data
from jax_advtrain.defenses.registry import DEFENSES, remedy_fields
from jax_advtrain.errors import ConfigError
from jax_advtrain.training import optim
from jax_advtrain.training.monitor import monitored_radius

# A run is what these fields say: a workdir refuses others. All else may change when it is resumed or evaluated.
IDENTITY = (
    *("data", "model", "defense", "optimizer", "batch_size", "num_shards", "seed", "ema_decay", "one_logit"),
    *("init_from", "label_smoothing", "accumulate", "classwise", "dice_threshold"),
)
# May be None, whatever their default is.
OPTIONAL = (
    *("eval.num_samples", "margins.num_samples", "analysis.num_samples", "equilibrium.num_samples"),
    *("correction.num_samples", "patience"),
)
# Where data lie, and how they are read, is no identity: the fingerprint tells whether they are the same.
_FREE_DATA_FIELDS = ("data_dir", "path", "max_ram_gb", "streaming", "num_workers", "on_bad_record")


def base(defense: str = "ima", model: str = "small_cnn", classwise: str = "") -> ml_collections.ConfigDict:
    """All fields with their defaults.

    Args:
      defense, model, classwise: names, whose own fields the config gets.

    Fields:
      data: of `data.load`. model, defense: a name and its own fields. optimizer: of `training.optim`.
      classwise: a remedy for the most vulnerable class around the defense: a name ("" = none) and its own fields.
      epochs; batch_size, a multiple of num_shards; num_shards, virtual shards of the data, a multiple of the devices.
      seed; ema_decay: None, or the decay of averaged weights, which evaluation then uses.
      accumulate: in how many parts a step works through its batch, one after the other: less memory, the same update
        (but for BatchNorm's statistics); divides batch_size / num_shards.
      label_smoothing: of the training loss, from 0, below 1.
      patience: None, or training ends where no epoch of the last so many was the best by checkpoint.best_by.
      one_logit: for sets of 2 classes, a network with one logit.
      dice_threshold: None; of segmentation (labels one a pixel), an image is right where the mean foreground Dice of
        its prediction is at least this (0.6 in IMA's published runs).
      init_from: "", or where weights of the same network lie to start from: a workdir (its best checkpoint, else last),
        a checkpoint (RUN/checkpoints/last, RUN/checkpoints/best/STEP), a folder of --mode=export or models.convert.
        Optimizer and per-sample state begin anew. A run that goes on does not look there again.
      beside: {name: {defense fields}}: other defenses, trained alike in runs of their own and drawn beside this one
        (data of two dimensions only).
      monitor: every so many epochs, robust accuracy of num_samples validation samples under attacks (texts as in
        eval.attacks) at one norm and radius; None = the defense's. Here and below so many samples are the first ones
        (`data.first_positions`; where samples belong to cases, those of so many cases).
      checkpoint: keep = how many of the last are kept (the best is kept besides); every_epochs; best_by = what makes
        one the best: the monitor's robust accuracy, "mean" of all, of the "worst" class, or their "sum".
      eval: after_training = which checkpoints are evaluated at the end, each in the folder of its name; checkpoint =
        which one --mode=evaluate takes, name = its folder ("" = that of the checkpoint); split; attacks, texts such as
        "pgd:num_steps=100:loss=lm:restarts=5"; radii of each norm; num_samples (None = all);
        correction = the one of --mode=correct that is part of the predictor ("" = none; of --mode=evaluate, diagnose);
        batch_size; figures = images in the gallery; check_samples = on how many samples `check_model` looks for
        signs that the attacks fail on this model, at the monitor's norm and radius (0 = not; it costs time).
      margins: of --mode=margins: norm, rising radii, num_steps, split, num_samples.
      analysis: of --mode=diagnose and homing (checkpoint: eval.checkpoint). name = folder diagnosis-<name> ("" =
        diagnosis); attacks, from weak to strong, at one norm and radius (None = the monitor's); split, num_samples
        (None = all); temperatures of the sweep (() = none) of PGD with temperature_steps;
        superclasses = a JSON file {"super-class": ["class", ...]} ("" = those known for the set); resamples of every
        bootstrap; leave_out = the class, or "all", that homing trains without; homing_attacks = what it attacks with.
      equilibrium: of --mode=equilibrium: attack, a minimum-norm one as text; num_samples, of the training samples (None
        = all).
      correction: of --mode=correct, which fits one number a class to be added to the logits (checkpoint:
        eval.checkpoint). name, of its file; attack, as text, at one norm and radius (None = the monitor's); split and
        num_samples (None = all), held out from what is evaluated later; rounds of attack and fit; most_loss, of mean
        accuracy under that attack, that the worst class may cost.
      report: enabled = whether every command that leaves results ends with the workdir's report.html; images = whether
        samples are kept for it (eval/<name>/gallery.npz) and shown in it: False where they may not leave, as patients'.
    """
    return ml_collections.ConfigDict(_settable(_defaults(defense, model, classwise)))


def from_plain(kept: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config that a workdir keeps as JSON; fields that it lacks take their defaults.

    Raises:
      ConfigError: it is no config of this program.
    """
    try:
        filled = dict(_defaults(kept["defense"]["name"], kept["model"]["name"]))
        for name, value in kept.items():
            whole = name in ("defense", "model", "classwise", "beside") or not isinstance(filled.get(name), dict)
            filled[name] = value if whole else {**filled[name], **value}
    except (KeyError, TypeError, AttributeError):
        raise ConfigError("it holds no config of this program") from None
    return ml_collections.ConfigDict(_settable(filled))


def grid_from_plain(kept: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The grid that a comparison.json keeps; fields that its base lacks take their defaults.

    Raises:
      ConfigError: it is no grid of this program.
    """
    try:
        grid = dict(kept["grid"])
        return ml_collections.ConfigDict({**_settable(grid), "base": from_plain(grid["base"])})
    except (KeyError, TypeError, AttributeError):
        raise ConfigError("it holds no grid of this program") from None


def _defaults(defense: str, model: str, classwise: str = "") -> dict[str, Any]:
    fields = {field.name: field.default for field in dataclasses.fields(DEFENSES[defense])}
    return {
        "data": data.default_config(),
        "model": {"name": model},
        "defense": {"name": defense, **fields},
        "classwise": {"name": classwise, **remedy_fields(classwise)},
        "optimizer": dict(optim.DEFAULTS),
        "epochs": 20,
        "batch_size": 128,
        "num_shards": 8,
        "seed": 0,
        "ema_decay": None,
        "accumulate": 1,
        "label_smoothing": 0.0,
        "patience": None,
        "one_logit": False,
        "dice_threshold": None,
        "init_from": "",
        "beside": {},
        "monitor": {
            "every": 1,
            "num_samples": 500,
            "norm": None,
            "epsilon": None,
            "attacks": "pgd:num_steps=10, pgd:num_steps=10:loss=lm",
        },
        "checkpoint": {"keep": 2, "every_epochs": 1, "best_by": "mean"},
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
            "epsilons_l1": (),
            "num_samples": None,
            "correction": "",
            "batch_size": 256,
            "figures": 8,
            "check_samples": 0,
        },
        "margins": {
            "norm": "linf",
            "radii": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
            "num_steps": 20,
            "split": "test",
            "num_samples": None,
        },
        "analysis": {
            "name": "",
            "attacks": ("fgsm, pgd:num_steps=20, pgd:num_steps=100, pgd:temperature=0.2:num_steps=100, autoattack"),
            "norm": None,
            "epsilon": None,
            "split": "test",
            "num_samples": 2000,
            "temperatures": (1.0, 0.2, 0.1, 0.02),
            "temperature_steps": 20,
            "superclasses": "",
            "resamples": 1000,
            "leave_out": "",
            "homing_attacks": "pgd:num_steps=20, pgd:num_steps=20:loss=lm",
        },
        "equilibrium": {"attack": "fmn", "num_samples": 1000},
        "correction": {
            "name": "correction",
            "attack": "pgd:num_steps=40",
            "norm": None,
            "epsilon": None,
            "split": "validation",
            "num_samples": None,
            "rounds": 3,
            "most_loss": 0.01,
        },
        "report": {"enabled": True, "images": True},
    }


def _settable(value: Any) -> Any:
    """None becomes a placeholder, which the command line can set; a bare None it cannot. JSON's lists become tuples."""
    if isinstance(value, dict):
        return {name: _settable(part) for name, part in value.items()}
    if isinstance(value, list):
        return tuple(value)
    return config_dict.placeholder(object) if value is None else value


def plain(config: Any) -> dict[str, Any]:
    """Nested dicts, lists and numbers, as JSON keeps them."""
    as_dict = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    return json.loads(json.dumps(as_dict))


def identity(config: Any) -> dict[str, Any]:
    """The part of a plain config that says which run it is."""
    whole = plain(config)
    whole["data"] = {name: value for name, value in whole["data"].items() if name not in _FREE_DATA_FIELDS}
    kept = {name: whole[name] for name in IDENTITY}
    if whole["classwise"]["name"]:
        # A remedy's numbers, and so the weights, follow what the monitor finds.
        norm, epsilon = monitored_radius(config_dict.ConfigDict(whole))
        kept["monitor"] = {**whole["monitor"], "norm": norm, "epsilon": epsilon}
    if whole["optimizer"]["schedule"] in optim.UNTIL_THE_END:
        # Its rate at every step depends on where training ends.
        kept["epochs"] = whole["epochs"]
    return kept


def moved(kept: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The plain config of a complete run, which says by which rules it was made, with the place where data lie now."""
    now = plain(config)["data"]
    return {**kept, "data": {**kept["data"], **{name: now[name] for name in _FREE_DATA_FIELDS if name in now}}}


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


def nearest(name: str, valid: list[str]) -> str:
    """The valid name nearest to an unknown one, as a hint; "" where none is near."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""
