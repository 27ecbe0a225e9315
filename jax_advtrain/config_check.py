"""The check of every value of a config before any work; what only the data can tell is checked with the data."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from jax_advtrain import data, defenses, models
from jax_advtrain.attacks.norms import NORMS
from jax_advtrain.attacks.registry import unknown_name
from jax_advtrain.config import OPTIONAL, base
from jax_advtrain.defenses.registry import DEFENSES, OF_SEGMENTATION, REMEDIES, remedy_fields
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import suite
from jax_advtrain.evaluation.margin_survey import check_radii
from jax_advtrain.tasks import CLASSIFICATION
from jax_advtrain.training import optim
from jax_advtrain.training.checkpoints import BEST, LAST
from jax_advtrain.training.experiment import asked
from jax_advtrain.training.monitor import BEST_BY, monitored_radius
from jax_advtrain.training.state import averages_epochs

_WHOLE_NUMBERS = (
    *("epochs", "batch_size", "num_shards", "accumulate", "monitor.every", "monitor.num_samples", "checkpoint.keep"),
    *("checkpoint.every_epochs", "eval.batch_size", "margins.num_steps"),
    *("analysis.temperature_steps", "analysis.resamples", "correction.rounds"),
)
_LOSSES_OF_ONE_LOGIT, _LOSSES_OF_SEVERAL = ("bce", "lmb"), ("ce", "lm", "slm")
# Attacks that look for the nearest adversarial image, and need no radius.
MINIMUM_NORM = ("fmn", "fab", "deepfool", "carlini_wagner")
_SPLITS = ("train", "validation", "test")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*")


def validate(config: Any, num_devices: int) -> None:
    """Checks every field that can be checked without data.

    Raises:
      ConfigError: one line: which field, what it is, what it may be.
    """
    _plain_values("", config)
    _known_fields(config)
    _numbers(config, num_devices)
    _names(config)
    _segmentation(config)
    try:
        _defense("defense", config.defense, one_logit=config.one_logit)
        _classwise(config)
        for name, defense in config.beside.items():
            _beside(config, name, defense)
        if config.label_smoothing and "mart" in (config.defense.name, *(one["name"] for one in config.beside.values())):
            raise ConfigError("label_smoothing does not reach defense 'mart', whose loss is its own; set it to 0")
        optim.build(config.optimizer, steps_per_epoch=1, epochs=config.epochs)
        _in_pixel_units(config)
        norm, epsilon = monitored_radius(config)
        radii = {norm: tuple(config.eval[f"epsilons_{norm}"]) for norm in NORMS}
        analysed, corrected = (
            {norm: (epsilon,)} for norm, epsilon in (analysed_radius(config), correction_radius(config))
        )
        for section, field, epsilons in (
            ("eval", "attacks", radii),
            ("monitor", "attacks", {norm: (epsilon,)}),
            ("analysis", "attacks", analysed),
            ("analysis", "homing_attacks", analysed),
            ("correction", "attack", corrected),
        ):
            task = CLASSIFICATION if section == "analysis" else asked(config)
            members = suite.parse_all(suite.texts(config[section][field]), task=task, where=f"{section}.{field}")
            suite.check_norms(members, epsilons, where=f"{section}.{field}")
            if section == "analysis" and not members:
                raise ConfigError(f"{section}.{field} is empty; name one attack or more")
            if section == "correction" and len(members) != 1:
                raise ConfigError(f"{section}.{field} names {len(members)} attacks; name one")
        check_radii(tuple(config.margins.radii))
        nearest = suite.parse(config.equilibrium.attack, where="equilibrium.attack").settings["name"]
        if nearest not in MINIMUM_NORM:
            raise ConfigError(unknown_name("equilibrium.attack: minimum-norm attack", nearest, MINIMUM_NORM))
        data.fields.augmentation(config.data)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except TypeError as error:
        raise ConfigError(f"a config value has the wrong type: {error}") from error


def analysed_radius(config: Any) -> tuple[str, float]:
    """Norm and radius of the class-wise analysis: as given, else the monitor's.

    Raises:
      ConfigError: another norm than the monitor's, and no radius.
    """
    return _own_radius(config, "analysis")


def correction_radius(config: Any) -> tuple[str, float]:
    """Norm and radius at which a correction of the logits is fitted: as given, else the monitor's.

    Raises:
      ConfigError: another norm than the monitor's, and no radius.
    """
    return _own_radius(config, "correction")


def _own_radius(config: Any, section: str) -> tuple[str, float]:
    norm, epsilon = monitored_radius(config)
    given = config[section].norm or norm
    if given != norm and config[section].epsilon is None:
        raise ConfigError(f"{section}.norm is {given!r}, the monitor's {norm!r}; give {section}.epsilon too")
    return given, float(config[section].epsilon or epsilon)


def _in_pixel_units(config: Any) -> None:
    """No L-inf radius is larger than the range of pixels: such a one was meant in grey levels."""
    given = [("eval.epsilons_linf", "linf", tuple(config.eval.epsilons_linf))]
    given.append(("margins.radii", config.margins.norm, tuple(config.margins.radii)))
    given.append(("monitor.epsilon", monitored_radius(config)[0], (config.monitor.epsilon,)))
    for section in ("analysis", "correction"):
        given.append((f"{section}.epsilon", _own_radius(config, section)[0], (config[section].epsilon,)))
    for where, defense in (("defense", config.defense), *((f"beside.{n}", one) for n, one in config.beside.items())):
        radii = [(f"{where}.{field}", defense.get(field)) for field in ("epsilon", "eps_max", "d_max")]
        given += [(name, defense.get("norm"), (value,)) for name, value in radii]
    for name, norm, values in given:
        for value in values:
            if norm == "linf" and value is not None and value > 1:
                raise ConfigError(
                    f"{name} holds {value:g}; pixels lie in [0, 1], and an L-inf radius does too: "
                    f"{value:g} of 255 grey levels is {value / 255:.4g}"
                )


def is_folder_name(name: str) -> bool:
    """Whether a name can be that of a folder in a workdir: letters, digits and _ . + -."""
    return _FOLDER_NAME.fullmatch(name) is not None


def _plain_values(where: str, value: Any) -> None:
    """Only what JSON keeps: a workdir holds the config as JSON and never executes it."""
    if _is_section(value):
        for name, part in value.items():
            _plain_values(f"{where}.{name}" if where else str(name), part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _plain_values(where, part)
    elif not isinstance(value, (bool, int, float, str, type(None))):
        raise ConfigError(f"{where} holds a {type(value).__name__}; give plain values (numbers, text, lists of them)")


def _known_fields(config: Any) -> None:
    """Fields that a config file made up or lost; the command line cannot (the config is locked by then)."""
    template = base()
    for name in config:
        if name not in template:
            raise ConfigError(unknown_name("config field", name, list(template)))
    for name, whole in template.items():
        if name not in config:
            raise ConfigError(f"config field {name!r} is missing; start the config from jax_advtrain.config.base()")
        if not isinstance(whole, ml_collections.ConfigDict):
            continue
        if not isinstance(config[name], ml_collections.ConfigDict):
            raise ConfigError(f"{name} is {config[name]!r}; it is a section of fields: set {name}.FIELD")
        if name in ("model", "defense", "classwise", "beside"):
            continue
        for field in config[name]:
            if field not in whole:
                raise ConfigError(unknown_name("config field", f"{name}.{field}", [f"{name}.{f}" for f in whole]))
        for field in whole:
            if field not in config[name]:
                raise ConfigError(f"config field '{name}.{field}' is missing; set fields of base(), not whole sections")


def _numbers(config: Any, num_devices: int) -> None:
    if not isinstance(config.one_logit, bool):
        raise ConfigError(f"one_logit is {config.one_logit!r}; give True or False")
    if not isinstance(config.init_from, str):
        raise ConfigError(f"init_from is {config.init_from!r}; give a workdir, a checkpoint, an exported folder, or ''")
    _whole("seed", config.seed, 0)
    if config.seed >= 2**32:
        raise ConfigError(f"seed is {config.seed}; give a whole number below 2**32")
    for name in _WHOLE_NUMBERS:
        _whole(name, _at(config, name), 1)
    for name in ("eval.figures", "eval.check_samples"):
        _whole(name, _at(config, name), 0)
    for name in OPTIONAL:
        if _at(config, name) is not None:
            _whole(name, _at(config, name), 1)
    if config.num_shards % num_devices:
        raise ConfigError(f"num_shards is {config.num_shards}; give a multiple of the {num_devices} devices here")
    if config.batch_size % config.num_shards:
        raise ConfigError(f"batch_size is {config.batch_size}; give a multiple of num_shards = {config.num_shards}")
    rows = config.batch_size // config.num_shards
    if rows % config.accumulate:
        raise ConfigError(f"accumulate is {config.accumulate}; it must divide batch_size / num_shards = {rows}")
    if not (_is_number(config.label_smoothing) and 0 <= config.label_smoothing < 1):
        raise ConfigError(f"label_smoothing is {config.label_smoothing!r}; give a number from 0, and below 1")
    if config.patience is not None and config.patience < config.monitor.every:
        raise ConfigError(
            f"patience is {config.patience}, monitor.every {config.monitor.every}: give a patience of at least as many"
        )
    for name in ("optimizer.decay_kernels_only", "report.enabled", "report.images"):
        if not isinstance(_at(config, name), bool):
            raise ConfigError(f"{name} is {_at(config, name)!r}; give True or False")
    if config.ema_decay is not None and not (_is_number(config.ema_decay) and 0 < config.ema_decay < 1):
        raise ConfigError(f"ema_decay is {config.ema_decay!r}; give a number between 0 and 1, or None")
    if config.optimizer.clip_norm is not None and not _is_number(config.optimizer.clip_norm):
        raise ConfigError(f"optimizer.clip_norm is {config.optimizer.clip_norm!r}; give a number above 0, or None")
    for field in ("boundaries", "values"):
        for value in config.optimizer[field]:
            if not (_is_number(value) and value >= 0):
                raise ConfigError(f"optimizer.{field} holds {value!r}; give finite numbers from 0")
    for name in ("eval.epsilons_linf", "eval.epsilons_l2", "eval.epsilons_l1", "margins.radii"):
        _radii(name, _at(config, name))
    if not (_is_number(config.correction.most_loss) and 0 <= config.correction.most_loss < 1):
        raise ConfigError(f"correction.most_loss is {config.correction.most_loss!r}; give a number from 0, and below 1")
    for name in ("monitor.epsilon", "analysis.epsilon", "correction.epsilon"):
        if _at(config, name) is not None:
            _radii(name, (_at(config, name),))
    for value in config.analysis.temperatures:
        if not (_is_number(value) and value > 0):
            raise ConfigError(f"analysis.temperatures holds {value!r}; give finite numbers above 0")
    for name in ("analysis.superclasses", "analysis.leave_out"):
        if not isinstance(_at(config, name), str):
            raise ConfigError(f"{name} is {_at(config, name)!r}; give a text")


def _names(config: Any) -> None:
    for section in ("eval", "margins", "analysis", "correction"):
        if config[section].split not in _SPLITS:
            raise ConfigError(unknown_name(f"{section}.split", config[section].split, _SPLITS))
    for section in ("margins", "monitor", "analysis", "correction"):
        name = config[section].norm
        if name not in NORMS and not (name is None and section != "margins"):
            raise ConfigError(unknown_name(f"{section}.norm", name, NORMS))
    if config.checkpoint.best_by not in BEST_BY:
        raise ConfigError(unknown_name("checkpoint.best_by", config.checkpoint.best_by, BEST_BY))
    if config.eval.checkpoint not in (LAST, BEST):
        raise ConfigError(unknown_name("eval.checkpoint", config.eval.checkpoint, (LAST, BEST)))
    for name in suite.texts(config.eval.after_training):
        if name not in (LAST, BEST):
            raise ConfigError(unknown_name("eval.after_training", name, (LAST, BEST)))
    for field in ("eval.name", "analysis.name", "correction.name", "eval.correction"):
        name, of_file = _at(config, field), "correction" in field
        if (name or field == "correction.name") and not (isinstance(name, str) and _FOLDER_NAME.fullmatch(name)):
            what = "file" if of_file else "folder"
            raise ConfigError(f"{field} is {name!r}; give one {what} name of letters, digits and _ . + -")
    _model(config.model)


def _segmentation(config: Any) -> None:
    """What goes with labels of pixels, and what does not."""
    threshold = config.dice_threshold
    if threshold is None:
        return
    if not (_is_number(threshold) and 0 < threshold <= 1):
        raise ConfigError(f"dice_threshold is {threshold!r}; give a mean foreground Dice above 0, up to 1, or None")
    name = config.defense.get("name")
    if name in DEFENSES and name not in OF_SEGMENTATION:
        raise ConfigError(
            f"defense {name!r} is one of classification; of segmentation (dice_threshold is set) there are "
            f"{', '.join(OF_SEGMENTATION)}"
        )
    loss = config.defense.get("attack_loss", "task")
    if loss != "task":
        raise ConfigError(f"defense.attack_loss is {loss!r}; of segmentation give 'task', what training descends")
    for field, none in (("one_logit", False), ("label_smoothing", 0.0), ("eval.check_samples", 0)):
        if _at(config, field) != none:
            raise ConfigError(f"{field} is of classification, and dice_threshold of segmentation; set it to {none!r}")
    if config.classwise.get("name") or config.beside:
        field = "classwise" if config.classwise.get("name") else "beside"
        raise ConfigError(f"{field} is of classification, and dice_threshold of segmentation; leave one out")


def _model(model: Mapping[str, Any]) -> None:
    try:
        models.check(model)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _defense(where: str, spec: Any, *, one_logit: bool) -> None:
    """Types first, so that the defense itself need only look at ranges."""
    if not _is_section(spec):
        raise ConfigError(f"{where} is {spec!r}; give a name and the fields of that defense")
    if spec.get("name") in DEFENSES:
        for field in dataclasses.fields(DEFENSES[spec["name"]]):
            if field.name in spec:
                _like(f"{where}.{field.name}", spec[field.name], field.default)
    loss = spec.get("attack_loss")
    fitting = _LOSSES_OF_ONE_LOGIT if one_logit else _LOSSES_OF_SEVERAL
    if loss in (*_LOSSES_OF_ONE_LOGIT, *_LOSSES_OF_SEVERAL) and loss not in fitting:
        logits = "one_logit" if one_logit else "several logits"
        raise ConfigError(f"{where}.attack_loss is {loss!r}; with {logits} give one of {', '.join(fitting)}")
    try:
        defenses.from_config(spec)
    except ValueError as error:
        other = "; another defense needs a config file that starts from base(NAME)" if _of_another(spec) else ""
        raise ConfigError(f"{where}: {error}{other}") from error


def _classwise(config: Any) -> None:
    """The remedy for the most vulnerable class, by itself and with the defense."""
    spec, name = config.classwise, config.classwise.get("name")
    if name == "":
        if unused := [field for field in spec if field != "name"]:
            raise ConfigError(
                f"classwise.{unused[0]} is set and classwise.name is ''; give one of {', '.join(REMEDIES)}"
            )
        return
    if name not in REMEDIES:
        raise ConfigError(unknown_name("classwise.name", name, REMEDIES))
    for field, default in remedy_fields(name).items():
        if field in spec:
            _like(f"classwise.{field}", spec[field], default)
    if config.beside:
        raise ConfigError(f"classwise is {name!r} and beside holds other defenses; give one of the two")
    try:
        made = defenses.from_config(config.defense, spec)
    except ValueError as error:
        raise ConfigError(f"classwise: {error}") from error
    if config.ema_decay is not None and averages_epochs(made):
        raise ConfigError("ema_decay and classwise.fawa both average the weights; set one to None or False")
    if averages_epochs(made) and config.monitor.every > 1:
        raise ConfigError(f"monitor.every is {config.monitor.every}; classwise.fawa averages every epoch: set it to 1")


def _of_another(spec: Mapping[str, Any]) -> bool:
    """Whether the name of a defense was changed and the fields left as they were: some belong to another one only."""
    known = {name: {field.name for field in dataclasses.fields(method)} for name, method in DEFENSES.items()}
    own = known.get(spec.get("name", ""), set())
    return bool(own) and any(field in fields - own for fields in known.values() for field in spec)


def _beside(config: Any, name: str, defense: Any) -> None:
    if not _FOLDER_NAME.fullmatch(name) or name == config.defense.name:
        raise ConfigError(f"beside holds {name!r}; give a folder name other than that of the defense itself")
    _defense(f"beside.{name}", defense, one_logit=config.one_logit)


def _like(name: str, value: Any, default: Any) -> None:
    """Raises ConfigError where a value is not of its default's kind; None stands for "a whole number, or None"."""
    if default is None:
        if value is not None:
            _whole(name, value, 0)
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; give True or False")
    elif isinstance(default, int):
        _whole(name, value, 0)
    elif isinstance(default, float):
        if not _is_number(value) or value < 0 <= default:
            raise ConfigError(f"{name} is {value!r}; give a finite number{' from 0' if default >= 0 else ''}")
    elif not isinstance(value, type(default)):
        raise ConfigError(f"{name} is {value!r}; give a {type(default).__name__}")


def _is_section(value: Any) -> bool:
    return isinstance(value, (Mapping, ml_collections.ConfigDict))


def _at(config: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        config = config[name]
    return config


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; give a whole number from {least}")


def _radii(name: str, values: Any) -> None:
    for value in values:
        if not _is_number(value) or value <= 0:
            raise ConfigError(f"{name} holds {value!r}; radii are finite numbers above 0, in pixel units of [0, 1]")
    if len(set(values)) < len(values):
        raise ConfigError(f"{name} is {tuple(values)}; give each radius once")
