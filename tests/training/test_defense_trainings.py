"""A real training of every registered defense on scikit-learn's digits: each is far more robust than standard training.

`-rP` prints the accuracies; the thresholds have slack.
"""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import tiny_config, train

from jax_advtrain import attacks
from jax_advtrain.defenses import DEFENSES
from jax_advtrain.evaluation.attack_dataset import attack_dataset

pytestmark = pytest.mark.slow

# Robust accuracy on the digits' test images at this radius (L-inf) under PGD-20 on two losses.
RADIUS, EPOCHS = 0.1, 25
SETTINGS = {
    "iaat": {"eps_max": 0.15, "eps_start": 0.02, "gamma": 0.02},
    "mma": {"d_max": 0.2, "eps_start": 0.05},
    "ame": {"delta": 0.02},
    "ima": {"eps_max": 0.2, "delta": 0.02},
    "gairat": {"burn_in_epochs": 15},
}


def robust_accuracy(name, folder, digits_dir, dtype=None, **more):
    config = tiny_config(digits_dir, epochs=EPOCHS)
    with config.unlocked():
        fields = {field.name: field.default for field in dataclasses.fields(DEFENSES[name])}
        config.defense = {**fields, "name": name, **SETTINGS.get(name, {}), **more}
    if "epsilon" in config.defense:
        config.defense.epsilon = 0.12
    if "num_steps" in config.defense and name not in ("fast_at", "n_fgsm"):
        config.defense.num_steps = 5
    config.model.hidden = (64,)
    if dtype is not None:
        config.model.dtype = dtype
    config.monitor.every = EPOCHS
    experiment, state = train(config, folder, 1)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.opt_state))} <= {"float32", "int32"}
    logits_fn, test, mesh = experiment.logits_fn(state), experiment.splits.test, experiment.mesh
    clean = attack_dataset(None, logits_fn, test, mesh).is_right
    robust = clean
    for loss in ("ce", "lm"):
        attack = attacks.pgd(norm="linf", epsilon=RADIUS, num_steps=20, loss=loss)
        robust = robust & attack_dataset(attack, logits_fn, test, mesh, norm="linf", epsilon=RADIUS).is_right
    return float(np.mean(clean)), float(np.mean(robust))


@pytest.fixture(scope="module")
def standard(tmp_path_factory, digits_dir):
    return robust_accuracy("standard", tmp_path_factory.mktemp("standard"), digits_dir)


@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, {}) for name in DEFENSES if name != "standard"), ("pgd_at", {"awp_gamma": 0.01})],
    ids=str,
)
def test_each_trains_a_robust_network(name, more, standard, tmp_path, digits_dir):
    clean, robust = robust_accuracy(name, tmp_path, digits_dir, **more)
    print(f"{name} {more}: clean {clean:.3f}, robust {robust:.3f}; standard {standard[0]:.3f}, {standard[1]:.3f}")
    assert clean > 0.8
    assert robust > standard[1] + 0.25


def test_a_training_in_bfloat16_is_about_as_robust(standard, tmp_path, digits_dir):
    clean, robust = robust_accuracy("trades", tmp_path, digits_dir, dtype="bfloat16")
    print(f"trades in bfloat16: clean {clean:.3f}, robust {robust:.3f}")
    assert clean > 0.8
    assert robust > standard[1] + 0.2
