"""Estimated margins: against closed forms, and against the accuracy of the same attack at each radius."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain import attacks
from jax_advtrain.data import Dataset
from jax_advtrain.evaluation import margin_survey as survey
from jax_advtrain.evaluation.attack_dataset import attack_dataset, name_seed
from jax_advtrain.evaluation.margin_survey import survey_margins

COUNT, FEATURES = 60, 6
RADII = (0.01, 0.02, 0.04, 0.08)


def apply(kernel, points):
    return (points - 0.5) @ kernel


@pytest.fixture(scope="module")
def linear() -> jax.tree_util.Partial:
    return jax.tree_util.Partial(apply, jnp.asarray(np.random.default_rng(0).normal(size=(FEATURES, 2)), jnp.float32))


@pytest.fixture(scope="module")
def data(linear) -> Dataset:
    """Points far from the box, so that only the ball bounds the search; every tenth label is wrong."""
    points = np.random.default_rng(1).uniform(0.3, 0.7, (COUNT, FEATURES)).astype(np.float32)
    labels = np.array(jnp.argmax(linear(points), axis=-1), np.int32)
    labels[::10] = 1 - labels[::10]
    return Dataset("toy", points, labels, np.arange(COUNT) * 3, ("a", "b"), split="test")


def true_margin(linear, data, norm: str) -> np.ndarray:
    """|w . x + b| over the dual norm of w."""
    logits = np.asarray(linear(jnp.asarray(data.images)), np.float64)
    kernel = np.asarray(linear.args[0], np.float64)
    direction = kernel[:, 0] - kernel[:, 1]
    dual = np.abs(direction).sum() if norm == "linf" else np.linalg.norm(direction)
    return np.abs(logits[:, 0] - logits[:, 1]) / dual


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_linear_model(linear, data, norm):
    found = survey_margins(linear, data, RADII, norm=norm, batch_size=16)
    true = true_margin(linear, data, norm)
    right = np.arange(COUNT) % 10 != 0
    assert (found.clean_right == right).all()
    assert (found.margin[~right] == 0).all() and not found.censored[~right].any()
    # Censored are those beyond the largest radius, and they stand at it.
    clear = right & (np.abs(true / RADII[-1] - 1) > 0.01)
    assert (found.censored[clear] == (true > RADII[-1])[clear]).all()
    assert found.censored.any() and (found.margin[found.censored] == np.float32(RADII[-1])).all()
    # An estimate is the distance of a wrong image, never below the truth; on a linear model hardly above it.
    inside = right & ~found.censored
    assert (found.margin[inside] >= true[inside] * (1 - 1e-5)).all()
    assert (found.margin[inside] <= true[inside] * 1.03).all()
    assert np.median(found.margin[inside] / true[inside]) < 1.005


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_agrees_with_the_accuracy_of_the_same_attack(norm):
    """PGD with the survey's own starts: what it breaks at a radius has at most that margin, at every radius."""
    kernels = np.random.default_rng(2).normal(size=(2, FEATURES, 12)).astype(np.float32)

    def curved(points):
        return jnp.tanh((points - 0.5) @ kernels[0] * 3) @ kernels[1][:3].T[:, :3]

    points = np.random.default_rng(3).uniform(0, 1, (COUNT, FEATURES)).astype(np.float32)
    labels = np.array(jnp.argmax(curved(points), axis=-1), np.int32)
    data = Dataset("toy", points, labels, np.arange(COUNT), ("a", "b", "c"))
    found = survey_margins(curved, data, RADII, norm=norm, batch_size=16, seed=5)
    margin = np.where(found.censored, np.inf, found.margin)
    attack = attacks.pgd(norm=norm, epsilon=0.0, num_steps=20, alpha=4.0, loss="slm")
    accuracy = []
    for radius in RADII:
        same = attack_dataset(
            attack, curved, data, norm=norm, epsilon=radius, seed=name_seed(5, "margins"), batch_size=7
        )
        assert (margin[~same.is_right] <= radius * 1.001).all()
        accuracy.append(same.is_right.mean())
    read_off = [(margin > radius).mean() for radius in RADII]
    # The survey counts every iterate, the attack its last one: the survey can only be stronger, and hardly is.
    assert all(low <= high + 1e-9 for low, high in zip(read_off, accuracy, strict=True))
    assert np.mean(np.subtract(accuracy, read_off)) < 0.03


def test_batches_and_order_change_nothing(linear, data):
    found = survey_margins(linear, data, RADII, batch_size=16)
    order = np.random.default_rng(4).permutation(COUNT)
    mixed = dataclasses.replace(data, images=data.images[order], labels=data.labels[order], ids=data.ids[order])
    again = survey_margins(linear, mixed, RADII, batch_size=60)
    np.testing.assert_allclose(again.margin, found.margin[order], rtol=1e-4, atol=1e-6)
    assert (again.censored == found.censored[order]).all() and (again.clean_right == found.clean_right[order]).all()


def test_compiled_once_for_all_radii_and_checkpoints(linear, data):
    survey._survey_batch.clear_cache()
    survey_margins(linear, data, RADII, batch_size=16)
    survey_margins(jax.tree_util.Partial(apply, 2 * linear.args[0]), data, (0.1, 0.3), batch_size=16, seed=9)
    assert survey._survey_batch._cache_size() == 1


def test_any_function_and_one_logit(linear, data):
    kernel = linear.args[0]
    two = survey_margins(lambda points: apply(kernel, points), data, RADII, batch_size=16)
    one = survey_margins(lambda points: apply(kernel[:, 1] - kernel[:, 0], points), data, RADII, batch_size=16)
    assert (one.clean_right == two.clean_right).all()
    np.testing.assert_allclose(one.margin, two.margin, rtol=0.05, atol=1e-3)


def test_refused(linear, data):
    for radii in ((), (0.2, 0.1), (0.1, 0.1), (0.0, 0.1), (-0.1, 0.1), (0.1, float("inf")), (float("nan"),)):
        with pytest.raises(ValueError, match="give rising finite numbers above 0"):
            survey_margins(linear, data, radii)
    with pytest.raises(ValueError, match="norm is 'l3'"):
        survey_margins(linear, data, RADII, norm="l3")
    with pytest.raises(ValueError, match="the model gives 1 logits"):
        survey_margins(lambda points: linear(points)[:, :1], data, RADII)
    nobody = dataclasses.replace(data, images=data.images[:0], labels=data.labels[:0], ids=data.ids[:0])
    with pytest.raises(ValueError, match="has no samples"):
        survey_margins(linear, nobody, RADII)
