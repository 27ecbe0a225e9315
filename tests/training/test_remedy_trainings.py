"""Remedies in the real loop on digits: their state in the checkpoints, FAWA's average, what is learnt."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import tiny_config, train

from jax_advtrain import devices
from jax_advtrain.defenses import DEFENSES, REMEDIES, HeldOut, remedy_fields
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import workdir
from jax_advtrain.training.state import epoch_ended

SETTINGS = {
    "reweight": {"strength": 1.0},
    "cfa": {"begin": 1, "fawa_threshold": 0.3, "fawa_decay": 0.5},
    "frl": {"tau": 0.02, "rate": 0.3},
}


def config(digits_dir, remedy, name="pgd_at", epochs=3):
    made = tiny_config(digits_dir, epochs=epochs)
    with made.unlocked():
        fields = {field.name: field.default for field in dataclasses.fields(DEFENSES[name])}
        made.defense = {**fields, "name": name, "num_steps": 3}
        made.defense.update({"eps_max": 0.2, "delta": 0.02, "compact": False} if name == "ima" else {"epsilon": 0.1})
        made.classwise = {"name": remedy, **remedy_fields(remedy), **SETTINGS[remedy]}
    made.monitor.epsilon = 0.05
    return made


@pytest.mark.slow
@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("name", ["pgd_at", "trades", "ima"])
def test_resume_is_bit_exact_and_the_numbers_are_those_of_the_log(remedy, name, digits_dir, tmp_path):
    _, whole = train(config(digits_dir, remedy, name), tmp_path / "whole", 1)
    train(config(digits_dir, remedy, name, epochs=1), tmp_path / "parts", 1)
    _, resumed = train(config(digits_dir, remedy, name), tmp_path / "parts", 1)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    ours, others = (workdir.read_metrics(tmp_path / folder) for folder in ("whole", "parts"))
    assert [line["validation"] for line in ours] == [line["validation"] for line in others]
    numbers = whole.method_state["remedy"]
    of_class = (
        numbers["clean"] + numbers["boundary"]
        if remedy == "frl"
        else numbers["radius" if remedy == "cfa" else "weight"]
    )
    assert np.ptp(of_class) > 0
    if remedy == "reweight":
        error = None
        for line in ours:
            counts = line["validation"]["per_class"]["robust"]
            now = 1 - np.array(counts["correct"]) / np.array(counts["n"])
            error = now if error is None else 0.5 * error + 0.5 * now
        assert error is not None
        np.testing.assert_allclose(numbers["weight"], error / error.mean(), rtol=1e-5)
        assert np.mean(numbers["weight"]) == pytest.approx(1, abs=1e-6)


def told(*robust):
    count = np.full(len(robust), 100)
    return HeldOut(1, count, count, count, np.array(robust))


def test_fawa_averages_the_weights_of_fair_epochs_only(digits_dir):
    """Weights 1, 2, 3, 4 at the ends of four epochs, the third unfair: 1 (none fair yet), 2, 2, 2 / 2 + 4 / 2."""
    mesh = devices.make_mesh(jax.devices()[:1])
    experiment = experiments.build(config(digits_dir, "cfa"), mesh)
    state, fair, unfair = experiment.template, told(*[30] * 10), told(*[90] * 9, 29)
    averages = []
    for value, one in ((1.0, unfair), (2.0, fair), (3.0, unfair), (4.0, fair)):
        state = state._replace(params=jax.tree.map(lambda leaf, v=value: np.full_like(leaf, v), state.params))
        state = epoch_ended(experiment.recipe.defense, mesh, state, one)
        averages.append({float(number) for leaf in jax.tree.leaves(state.averaged) for number in np.unique(leaf)})
    assert averages == [{1.0}, {2.0}, {2.0}, {3.0}]


def test_a_remedy_without_validation_data_says_so(digits_dir):
    made = config(digits_dir, "reweight")
    made.data.validation_size = 0
    with pytest.raises(ValueError, match="classwise 'reweight' needs validation data"):
        experiments.build(made, devices.make_mesh(jax.devices()[:1]))


@pytest.mark.slow
def test_steps_leave_the_average_of_epochs_alone_and_the_log_is_of_it(digits_dir, tmp_path):
    """A threshold that no epoch reaches: the average is the weights, and the run that of CFA without it."""
    never, without = (config(digits_dir, "cfa", epochs=2) for _ in range(2))
    never.classwise.fawa_threshold, without.classwise.fawa = 1.0, False
    (_, one), (_, other) = train(never, tmp_path / "never", 1), train(without, tmp_path / "without", 1)
    jax.tree.map(np.testing.assert_array_equal, one.params, one.averaged)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert other.averaged is None
    logs = [[line["validation"] for line in workdir.read_metrics(tmp_path / name)] for name in ("never", "without")]
    assert logs[0] == logs[1]


@pytest.mark.slow
@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("name", ["pgd_at", "ima"])
def test_each_trains_a_robust_network(remedy, name, digits_dir, tmp_path):
    made = config(digits_dir, remedy, name, epochs=20)
    made.monitor.every, made.model.hidden = 2, (64,)
    train(made, tmp_path, 1)
    found = workdir.read_metrics(tmp_path)[-1]["validation"]
    counts = found["per_class"]["robust"]
    worst = min(right / n for right, n in zip(counts["correct"], counts["n"], strict=True) if n)
    clean, robust = found["clean_accuracy"], found["robust_accuracy"]
    print(f"{remedy} {name}: clean {clean:.3f}, robust {robust:.3f}, worst {worst:.3f}")
    assert clean > 0.85 and robust > 0.6
