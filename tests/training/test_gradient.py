"""What a step descends: weighted samples, a batch in parts, perturbed weights."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import CLASSES, SGD, assert_near, host_batch, tiny

from jax_advtrain import defenses
from jax_advtrain.defenses import IMA, Madry, Mart, Standard, Trades, awp

BATCH = host_batch(5, 8)
VALID = BATCH.slots < 12
PIXELS = BATCH.images.astype(np.float32) / 255
RATE = SGD["learning_rate"]


def one_step(defense, batch=BATCH, epoch=0, **how):
    state, step = tiny(defense, **how).start(batch)
    before = jax.tree.map(np.array, state)
    state, loss = step(state, batch, jnp.int32(epoch))
    return before, jax.tree.map(np.array, state), float(loss)


def plain_losses(params, images, labels):
    hidden = images.reshape(len(images), -1) @ params["dense0"]["kernel"] + params["dense0"]["bias"]
    logits = jnp.maximum(hidden, 0) @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    return jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(labels)), labels]


@dataclasses.dataclass(frozen=True)
class Weighted(Standard):
    """Standard training in which class k weighs k."""

    def loss(self, model, batch_stats, batch, crafted, rows, method_state):
        found = super().loss(model, batch_stats, batch, crafted, rows, method_state)
        return found._replace(weights=batch.labels.astype(jnp.float32))


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_weights_are_normalised_over_the_whole_batch(accumulate):
    before, after, loss = one_step(Weighted(), accumulate=accumulate)
    images, labels = PIXELS[VALID], BATCH.labels[VALID]
    assert labels.sum() != len(labels)

    def mean(params):
        return jnp.sum(labels * plain_losses(params, images, labels)) / labels.sum()

    expected, gradient = jax.value_and_grad(mean)(before.params)
    assert loss == pytest.approx(float(expected), abs=1e-6)
    assert_near(after.params, jax.tree.map(lambda w, g: w - RATE * g, before.params, gradient))
    assert after.sums["loss"] == pytest.approx(float(expected) * VALID.sum(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("defense", [Trades(num_steps=2, epsilon=0.1), IMA(num_steps=3)], ids=["trades", "ima"])
@pytest.mark.parametrize("accumulate", [2, 8])
def test_a_batch_in_parts_makes_the_same_step(defense, accumulate):
    """Weights, rows, sums; some parts hold no valid row of a shard."""
    whole, parts = (one_step(defense, accumulate=number) for number in (1, accumulate))
    assert_near(whole[1], parts[1], atol=1e-5)
    assert whole[2] == pytest.approx(parts[2], abs=1e-5)


@pytest.mark.slow
def test_a_batch_in_parts_takes_less_memory_and_keeps_batch_norm_apart():
    sizes, batch = {}, host_batch(12, 128)
    for accumulate in (1, 4):
        made = tiny(Madry(num_steps=2), "batch_norm", accumulate=accumulate)
        state, step = made.start(batch)
        sizes[accumulate] = step.lower(state, batch, jnp.int32(0)).compile().memory_analysis().temp_size_in_bytes
        state, loss = step(state, batch, jnp.int32(0))
        assert np.isfinite(float(loss)) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
    print(f"bytes of temporaries by parts {sizes}")
    assert sizes[4] < 0.6 * sizes[1]


def test_parts_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(ValueError, match="accumulate is 3; it must divide batch_size / num_shards = 8"):
        tiny(Standard(), accumulate=3).start(BATCH)


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_weight_perturbation_descends_the_loss_at_perturbed_weights(accumulate):
    """With radius 0 the crafted images are the clean ones; the second writing is a few lines."""
    gamma = 0.1
    defense = Madry(epsilon=0.0, num_steps=1, awp_gamma=gamma, awp_warmup_epochs=2)
    before, after, loss = one_step(defense, epoch=2, accumulate=accumulate)
    images, labels = PIXELS[VALID], BATCH.labels[VALID]

    def mean(params):
        return jnp.mean(plain_losses(params, images, labels))

    perturbed = jax.tree.map(np.copy, before.params)
    for layer, slope in jax.grad(mean)(before.params).items():
        kernel, gradient = perturbed[layer]["kernel"], np.asarray(slope["kernel"])
        kernel += gamma * np.linalg.norm(kernel) * gradient / np.linalg.norm(gradient)
    expected, gradient = jax.value_and_grad(mean)(perturbed)
    assert loss == pytest.approx(float(expected), abs=1e-6)
    assert loss > float(mean(before.params))
    assert_near(after.params, jax.tree.map(lambda w, g: w - RATE * g, before.params, gradient))
    # In its warm-up it is the method alone.
    gradient = jax.grad(mean)(before.params)
    plain = jax.tree.map(lambda w, g: w - RATE * g, before.params, gradient)
    assert_near(one_step(defense, epoch=1, accumulate=accumulate)[1].params, plain)


@pytest.mark.slow
@pytest.mark.parametrize("method", [Madry, Trades, Mart])
def test_weight_perturbation_moves_batch_norm_once_and_raises_the_loss(method):
    losses = {}
    for gamma in (0.0, 0.05):
        _, after, losses[gamma] = one_step(method(num_steps=2, epsilon=0.1, awp_gamma=gamma), model="batch_norm")
        moved = jax.tree.leaves(after.batch_stats)
        assert all(np.all(np.isfinite(leaf)) for leaf in moved)
    assert losses[0.05] > losses[0.0]


def test_the_size_of_the_perturbation_is_relative_layer_by_layer():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3), "other": 1e-3 * rng.normal(size=(2, 2, 5))}
    slope = {name: 1e-6 * rng.normal(size=values.shape) for name, values in params.items()}
    moved = awp.moved(jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, slope), jnp.asarray(0.01))
    np.testing.assert_array_equal(moved["bias"], jnp.asarray(params["bias"]))
    for name in ("kernel", "other"):
        change = np.asarray(moved[name] - jnp.asarray(params[name]))
        assert np.linalg.norm(change) / np.linalg.norm(params[name]) == pytest.approx(0.01, rel=1e-3)
        cosine = np.sum(change * slope[name]) / np.linalg.norm(change) / np.linalg.norm(slope[name])
        assert cosine == pytest.approx(1, abs=1e-4)
    still = awp.moved({"kernel": jnp.ones((2, 2))}, {"kernel": jnp.zeros((2, 2))}, jnp.asarray(0.01))
    np.testing.assert_array_equal(still["kernel"], 1)


@pytest.mark.parametrize("name", [name for name in defenses.DEFENSES if name not in ("pgd_at", "trades", "mart")])
def test_other_combinations_with_weight_perturbation_are_refused(name):
    said = f"defense {name!r} has no awp_gamma: weight perturbation combines with pgd_at, trades, mart"
    with pytest.raises(ValueError, match=re.escape(said)):
        defenses.from_config({"name": name, "awp_gamma": 0.01})


def test_classes_are_what_the_tests_take_them_for():
    assert set(BATCH.labels[VALID]) <= set(range(CLASSES))
