"""The config: its fields and defaults, what says which run it is, and the answer to each bad value."""

import json

import ml_collections
import numpy as np
import pytest

from jax_advtrain import config as configs
from jax_advtrain.config import base
from jax_advtrain.config_check import validate
from jax_advtrain.defenses import DEFENSES
from jax_advtrain.errors import ConfigError

NAN = float("nan")


def changed(changes: dict, defense: str = "ima", model: str = "small_cnn") -> ml_collections.ConfigDict:
    config = base(defense, model)
    config.data.name = "digits"
    with config.ignore_type():
        for dotted, value in changes.items():
            place = config
            *sections, name = dotted.split(".")
            for section in sections:
                place = place[section]
            place[name] = value
    return config


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("model", ["small_cnn", "mlp"])
def test_defaults_are_valid(defense, model):
    validate(changed({}, defense, model), 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epoch": 3}, "config field 'epoch' is not known (did you mean 'epochs'?)"),
        ({"eval.atacks": "fgsm"}, "config field 'eval.atacks' is not known (did you mean 'eval.attacks'?)"),
        ({"eval": 3}, "eval is 3; it is a section of fields"),
        ({"eval": ml_collections.ConfigDict({"name": ""})}, "config field 'eval.after_training' is missing"),
        ({"epochs": 0}, "epochs is 0; give a whole number from 1"),
        ({"epochs": 2.0}, "epochs is 2.0; give a whole number from 1"),
        ({"epochs": True}, "epochs is True; give a whole number from 1"),
        ({"batch_size": 100}, "batch_size is 100; give a multiple of num_shards = 8"),
        ({"num_shards": 0}, "num_shards is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "below 2**32"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5; give a number between 0 and 1, or None"),
        ({"ema_decay": "0.9"}, "ema_decay is '0.9'"),
        ({"ema_decay": NAN}, "ema_decay is nan"),
        ({"accumulate": 3}, "accumulate is 3; it must divide batch_size / num_shards = 16"),
        ({"accumulate": 0}, "accumulate is 0; give a whole number from 1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; give a number from 0, and below 1"),
        ({"label_smoothing": "0.1"}, "label_smoothing is '0.1'"),
        ({"patience": 0}, "patience is 0; give a whole number from 1"),
        ({"patience": 2, "monitor.every": 3}, "patience is 2, monitor.every 3: give a patience of at least as many"),
        ({"optimizer.decay_kernels_only": 1}, "optimizer.decay_kernels_only is 1; give True or False"),
        ({"optimizer.schedule": "cyclical"}, "(did you mean 'cyclic'?)"),
        ({"optimizer.schedule": "cyclic", "optimizer.peak": -0.1}, "optimizer.peak is -0.1"),
        ({"defense.awp_gamma": 0.01}, "weight perturbation combines with pgd_at, trades, mart"),
        ({"model.name": "small_cn"}, "model.name 'small_cn' is not known (did you mean 'small_cnn'?)"),
        ({"model.chanels": (3,)}, "field 'chanels' is not known (did you mean 'channels'?)"),
        ({"defense.name": "imaa"}, "defense: defense 'imaa' is not known (did you mean 'ima'?)"),
        ({"defense.name": "pgd_at"}, "another defense needs a config file that starts from base(NAME)"),
        ({"defense.dleta": 0.1}, "field 'dleta' is not known (did you mean 'delta'?)"),
        ({"defense.norm": "l3"}, "norm is 'l3'; the norms are linf, l2"),
        ({"defense.norm": 2}, "defense.norm is 2; give a str"),
        ({"defense.delta": -0.1}, "defense.delta is -0.1"),
        ({"defense.delta": NAN}, "defense.delta is nan"),
        ({"defense.delta": "0.1"}, "defense.delta is '0.1'; give a finite number from 0"),
        ({"defense.delta": 0.5}, "delta is 0.5 and eps_max 0.3; delta must not exceed eps_max"),
        ({"defense.eps_max": float("inf")}, "defense.eps_max is inf"),
        ({"defense.alpha": -1.0}, "defense.alpha is -1.0; give a finite number from 0"),
        ({"defense.alpha": NAN}, "defense.alpha is nan"),
        ({"defense.num_steps": 0}, "num_steps is 0; give a whole number from 1"),
        ({"defense.num_steps": 2.5}, "defense.num_steps is 2.5"),
        ({"defense.beta": 2.0}, "beta is 2.0; give a number from 0 to 1"),
        ({"defense.freeze_epoch": "never"}, "defense.freeze_epoch is 'never'"),
        ({"defense.compact": "yes"}, "defense.compact is 'yes'; give True or False"),
        ({"defense.attack_loss": "sml"}, "'sml' is not known"),
        ({"defense.attack_bn": "both"}, "attack_bn is 'both'"),
        ({"one_logit": True}, "defense.attack_loss is 'slm'; with one_logit give one of bce, lmb"),
        ({"defense.attack_loss": "lmb"}, "with several logits give one of ce, lm, slm"),
        ({"defense.placement": "edge"}, "placement is 'edge'"),
        ({"defense.start": "somewhere"}, "start is 'somewhere'"),
        ({"optimizer.name": "adm"}, "optimizer.name 'adm' is not known (did you mean 'adam'?)"),
        ({"optimizer.schedule": "cosin"}, "(did you mean 'cosine'?)"),
        ({"optimizer.learning_rate": -1e-3}, "optimizer.learning_rate is -0.001"),
        ({"optimizer.learning_rate": NAN}, "optimizer.learning_rate is nan"),
        ({"optimizer.learning_rate": "fast"}, "wrong type"),
        ({"optimizer.clip_norm": "1"}, "optimizer.clip_norm is '1'"),
        ({"optimizer.clip_norm": 0}, "optimizer.clip_norm is 0"),
        ({"optimizer.schedule": "piecewise", "optimizer.boundaries": (3,)}, "give as many values as rising epochs"),
        ({"optimizer.boundaries": (1,), "optimizer.values": (NAN,)}, "optimizer.values holds nan"),
        ({"monitor.norm": "l3"}, "monitor.norm 'l3' is not known"),
        ({"monitor.epsilon": -0.1}, "monitor.epsilon holds -0.1"),
        ({"monitor.attacks": "pdg"}, "monitor.attacks: 'pdg': attack 'pdg' is not known (did you mean 'pgd'?)"),
        ({"eval.epsilons_linf": (0.1, -0.1)}, "eval.epsilons_linf holds -0.1; radii are finite numbers above 0"),
        ({"eval.epsilons_l2": (NAN,)}, "eval.epsilons_l2 holds nan"),
        ({"eval.epsilons_l2": ("0.5",)}, "eval.epsilons_l2 holds '0.5'"),
        ({"eval.epsilons_l2": (0.5, 0.5)}, "give each radius once"),
        ({"eval.split": "tset"}, "eval.split 'tset' is not known (did you mean 'test'?)"),
        ({"eval.checkpoint": "bets"}, "(did you mean 'best'?)"),
        ({"eval.after_training": "last, fist"}, "eval.after_training 'fist' is not known"),
        ({"eval.num_samples": 0}, "eval.num_samples is 0"),
        ({"eval.name": "../up"}, "eval.name is '../up'; give one folder name"),
        ({"eval.attacks": "fgsm, fgsm"}, "eval.attacks holds fgsm-ce twice"),
        (
            {"eval.attacks": "carlini_wagner", "eval.epsilons_l2": ()},
            "eval.attacks: carlini_wagner knows the norms l2; give radii of one of them",
        ),
        ({"monitor.attacks": "carlini_wagner"}, "monitor.attacks: carlini_wagner knows the norms l2"),
        ({"eval.attacks": "pgd:temperatures=[1, -2]"}, "temperatures ranges over [-2, 1]; give finite numbers above 0"),
        ({"eval.check_samples": -1}, "eval.check_samples is -1; give a whole number from 0"),
        ({"margins.norm": "l3"}, "margins.norm 'l3' is not known"),
        ({"margins.radii": (0.2, 0.1)}, "margins.radii are (0.2, 0.1); give rising finite numbers above 0"),
        ({"margins.radii": ()}, "margins.radii are ()"),
        ({"data.augment": ("flop",)}, "did you mean 'flip'"),
        ({"beside": {"pgd": {"name": "pgd_at", "epsilon": "0.3"}}}, "beside.pgd.epsilon is '0.3'"),
        ({"beside": {"pgd": 3}}, "beside.pgd is 3"),
        ({"beside": {"ima": {"name": "pgd_at"}}}, "beside holds 'ima'; give a folder name other than"),
        ({"beside": {"a/b": {"name": "pgd_at"}}}, "beside holds 'a/b'"),
        ({"classwise.name": "cfaa"}, "classwise.name 'cfaa' is not known (did you mean 'cfa'?)"),
        ({"classwise": 3}, "classwise is 3; it is a section of fields"),
        ({"classwise.tau": 0.1}, "classwise.tau is set and classwise.name is ''; give one of reweight, cfa, frl"),
        (
            {"classwise": ml_collections.ConfigDict({"name": "frl", "tau": "0.1"})},
            "classwise.tau is '0.1'; give a finite number from 0",
        ),
        ({"classwise.name": "cfa", "ema_decay": 0.9}, "ema_decay and classwise.fawa both average the weights"),
        (
            {"classwise.name": "frl", "beside": {"pgd": {"name": "pgd_at"}}},
            "classwise is 'frl' and beside holds other defenses",
        ),
        ({"checkpoint.best_by": "wors"}, "checkpoint.best_by 'wors' is not known (did you mean 'worst'?)"),
        ({"model.mean": np.float32(0.5)}, "model.mean holds a float32; give plain values"),
        ({"defense.attack_loss": len}, "defense.attack_loss holds a builtin_function_or_method"),
    ],
)
def test_bad_values(changes, expected):
    with pytest.raises(ConfigError) as caught:
        validate(changed(changes), 1)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_values_of_other_defenses():
    for defense, changes, expected in (
        ("trades", {"defense.beta": -1.0}, "defense.beta is -1.0; give a finite number from 0"),
        ("trades", {"defense.sigma": 0.0}, "sigma is 0.0"),
        ("mart", {"label_smoothing": 0.1}, "label_smoothing does not reach defense 'mart'"),
        ("fat", {"defense.tau_epochs": (3, -1)}, "tau_epochs holds"),
        ("fat", {"defense.tau_epochs": 3}, "defense.tau_epochs is 3; give a tuple"),
        ("gairat", {"defense.shift": "left"}, "defense.shift is 'left'; give a finite number"),
        ("fast_at", {"defense.num_steps": 5}, "this method takes 1 step"),
        ("iaat", {"defense.eps_start": 0.5}, "eps_min, eps_start, eps_max are (0.0, 0.5, 0.3)"),
        ("iaat", {"defense.smoothing": 1.5}, "smoothing is 1.5; give a number from 0 to 1"),
        ("mma", {"defense.eps_start": 0.5}, "eps_start must not exceed d_max"),
        ("mma", {"defense.clean_weight": 2.0}, "clean_weight is 2.0; give a number from 0 to 1"),
        ("ame", {"defense.delta": 0.0}, "delta is 0.0"),
        ("mma", {"classwise.name": "cfa"}, "classwise: 'cfa' gives each class its own radius, 'mma' has none"),
        ("ame", {"defense.eps_max": 0.3}, "'eps_max' is not known"),
        ("pgd_at", {"defense.awp_gamma": -0.1}, "defense.awp_gamma is -0.1"),
    ):
        with pytest.raises(ConfigError) as caught:
            validate(changed(changes, defense), 1)
        assert expected in str(caught.value) and "\n" not in str(caught.value)
    validate(changed({"defense.shift": -2.0}, "gairat"), 1)


@pytest.mark.parametrize("remedy", ["", "reweight", "cfa", "frl"])
def test_remedies_are_a_section_of_the_config(remedy):
    for defense in ("pgd_at", "trades", "ima"):
        config = base(defense, "mlp", remedy)
        config.data.name = "digits"
        validate(config, 1)
        assert configs.plain(configs.from_plain(configs.plain(config))) == configs.plain(config)
    assert (configs.identity(config) == configs.identity(changed({}, "ima", "mlp"))) == (remedy == "")


def test_devices_must_divide_shards():
    validate(changed({}), 4)
    with pytest.raises(ConfigError, match="num_shards is 8; give a multiple of the 3 devices here"):
        validate(changed({}), 3)


def test_plain_is_json_and_comes_back():
    config = changed({"model.hidden": (16,), "optimizer.clip_norm": 1.0, "beside": {"pgd": {"name": "pgd_at"}}})
    kept = configs.plain(config)
    again = configs.from_plain(json.loads(json.dumps(kept)))
    assert configs.plain(again) == kept
    validate(again, 1)
    assert again.eval.epsilons_linf == (0.05, 0.1, 0.2, 0.3)  # a tuple again, so that the command line can set it


def test_from_plain_fills_in_fields_that_are_newer_than_the_run():
    kept = configs.plain(changed({}))
    del kept["ema_decay"], kept["eval"]["figures"], kept["margins"], kept["classwise"], kept["checkpoint"]["best_by"]
    assert configs.plain(configs.from_plain(kept)) == configs.plain(changed({}))


@pytest.mark.parametrize("kept", [{}, {"defense": 3, "model": 4}, {"defense": {"name": "x"}, "model": {"name": "mlp"}}])
def test_from_plain_refuses_what_is_no_config(kept):
    with pytest.raises(ConfigError, match="no config of this program"):
        configs.from_plain(kept)


def test_identity():
    one = changed({})
    free = {"epochs": 99, "eval.batch_size": 7, "checkpoint.keep": 9, "data.data_dir": "/elsewhere", "monitor.every": 3}
    assert configs.identity(changed(free)) == configs.identity(one)
    for field, value in {
        "seed": 1,
        "defense.delta": 0.01,
        "optimizer.learning_rate": 0.1,
        "data.validation_size": 5,
        "ema_decay": 0.99,
        "batch_size": 64,
    }.items():
        different = configs.differences(configs.identity(one), configs.identity(changed({field: value})))
        assert [name.partition(" ")[0] for name in different] == [field]


def test_epochs_are_part_of_the_run_where_the_schedule_depends_on_them():
    cosine = {"optimizer.schedule": "cosine"}
    one, other = (configs.identity(changed({**cosine, "epochs": epochs})) for epochs in (20, 30))
    assert configs.differences(one, other) == ["epochs (20 there, 30 here)"]
