"""APGD: what it finds, and that its states are safe to stop, mix and spread."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from toy_problems import (
    SHAPE,
    compiled,
    keys,
    linear,
    pixels,
    poisoned_models,
    run,
    same_bits,
    smooth_model,
    tanh_network,
    two_classes,
)

from jax_advtrain import attacks
from jax_advtrain.attacks.apgd import apgd

NORMS = ("linf", "l2", "l1")
KINDS = (*NORMS, "l1 large radii")
BATCH = 6
LABELS = np.arange(BATCH) % 3
slowly = functools.partial(pytest.param, marks=pytest.mark.slow)


def attack_of(kind, epsilon=0.3, num_steps=8, **settings):
    return apgd(norm=kind.split()[0], large_radii=" " in kind, epsilon=epsilon, num_steps=num_steps, **settings)


def lengths(perturbation, norm):
    flat = np.abs(np.asarray(perturbation, np.float64)).reshape(len(perturbation), -1)
    return {"linf": flat.max(axis=1), "l2": np.sqrt((flat**2).sum(axis=1)), "l1": flat.sum(axis=1)}[norm]


@pytest.mark.parametrize("norm", NORMS)
def test_the_random_start_has_norm_epsilon(norm):
    images = pixels(BATCH, low=0.4, high=0.6)
    epsilon = np.linspace(0, 0.3, BATCH, dtype=np.float32)
    state = jax.jit(lambda images: apgd(norm=norm, epsilon=epsilon).init(keys(BATCH), None, images, LABELS))(images)
    np.testing.assert_allclose(lengths(state.iterate - images, norm), epsilon, atol=1e-6)
    if norm == "l1":
        np.testing.assert_array_equal(state.rule.width, 1)
        np.testing.assert_array_equal(state.rule.moved, 6)


# What it finds


def problem_of(norm):
    """A linear model, images, labels, the distances, and how fast the margin grows with the radius."""
    logits_fn, images, labels, distances = two_classes()
    matrix, bias = (np.asarray(weights, np.float64) for weights in logits_fn.args[0])
    normal = matrix[:, 1] - matrix[:, 0]
    slope = {"linf": np.abs(normal).sum(), "l2": np.linalg.norm(normal), "l1": np.abs(normal).max()}[norm]
    if norm == "l1":
        # Nearer to the boundary, so that the one pixel which is best finds room in the box.
        flat = images.reshape(8, -1)
        gaps = flat @ normal + bias[1] - bias[0]
        images = (flat - 0.6 * (gaps / (normal @ normal))[:, None] * normal).reshape(images.shape).astype(np.float32)
        distances["l1"] = 0.4 * np.abs(gaps) / slope
        assert np.all(np.abs(images - 0.5) + distances["l1"][:, None, None, None] < 0.5)
    return logits_fn, images, labels, distances[norm], slope


@pytest.mark.parametrize("kind", KINDS)
def test_succeeds_exactly_above_the_distance(kind):
    norm = kind.split()[0]
    logits_fn, images, labels, true, slope = problem_of(norm)
    attack = attack_of(kind, epsilon=0.0, num_steps=60, loss="ce" if norm == "l2" else "lm")
    below = run(attack, keys(8), logits_fn, images, labels, epsilon=0.99 * true)
    above = run(attack, keys(8), logits_fn, images, labels, epsilon=1.01 * true)
    assert np.all(below.is_right) and np.all(below.hits == 0) and np.all(below.score < 0)
    assert not np.any(above.is_right) and np.all(above.hits > 0) and np.all(above.score > 0)
    assert not np.any(attacks.is_right(logits_fn(above.images), labels))
    # What is not fooled is returned at its highest loss.
    np.testing.assert_allclose(below.score, -0.01 * true * slope, rtol=0.1, atol=2e-6)


@pytest.mark.parametrize("loss", ["ce", slowly("lm"), "dlr"])
def test_targets_are_reached_and_any_wrong_prediction_counts(loss):
    # Class j has the logit of pixel j alone; a pixel is 0.1 above the others.
    logits_fn = jax.tree_util.Partial(linear, (jnp.eye(6), jnp.zeros(6)))
    truth, targets = np.arange(6), (np.arange(6) + 2) % 6
    flat = np.full((6, 6), 0.5, np.float32)
    flat[np.arange(6), truth] += 0.1
    images = flat.reshape(6, *SHAPE)
    attack = apgd(norm="linf", epsilon=0.0, num_steps=12, loss=loss)
    found = run(attack, keys(6), logits_fn, images, truth, targets=targets, epsilon=0.055)
    below = run(attack, keys(6), logits_fn, images, truth, targets=targets, epsilon=0.0495)
    assert not np.any(found.is_right) and np.all(found.hits > 0) and np.all(found.score > 0)
    assert np.all(below.is_right) and np.all(below.hits == 0)
    # The loss leads to the target, as far as the radius allows.
    logits = np.asarray(logits_fn(below.images))
    np.testing.assert_allclose(logits[np.arange(6), targets], 0.5495, atol=1e-6)
    np.testing.assert_allclose(logits[np.arange(6), truth], 0.5505, atol=1e-6)


@pytest.mark.parametrize("kind", [slowly("linf"), "l2"])
def test_fools_at_least_as_many_as_pgd_of_equal_passes(kind):
    fooled = {"apgd": 0, "pgd": 0}
    radius = {"linf": 0.08, "l2": 0.16}[kind]
    ours = apgd(norm=kind, epsilon=radius, num_steps=20)
    theirs = attacks.pgd(norm=kind, epsilon=radius, num_steps=20)
    assert ours.passes == theirs.passes == 41
    images = pixels(128, seed=1)
    for seed in range(4):
        logits_fn = smooth_model(seed, scale=4.0)
        labels = np.asarray(attacks.predict(logits_fn(images)))
        for name, attack in (("apgd", ours), ("pgd", theirs)):
            found = run(attack, keys(128, seed), logits_fn, images, labels)
            fooled[name] += np.sum(~found.is_right)
            if name == "apgd":
                np.testing.assert_array_equal(found.is_right, attacks.is_right(logits_fn(found.images), labels))
    assert 0 < fooled["apgd"] < 4 * 128
    assert fooled["apgd"] >= fooled["pgd"]


# What holds for every attack


few = hypothesis.settings(max_examples=5, deadline=None, derandomize=True)
radii = st.lists(st.sampled_from([0.0, 1e-6, 0.01, 8 / 255, 0.3, 1.0, 5.0]), min_size=BATCH, max_size=BATCH)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, jnp.float32) for kind in KINDS), ("l2", jnp.bfloat16), slowly("l1 large radii", jnp.bfloat16)],
)
@few
@hypothesis.given(seed=st.integers(0, 2**31 - 1), radius=radii)
def test_results_stay_in_ball_and_box_and_radius_0_changes_no_bit(kind, dtype, seed, radius):
    images, norm = pixels(BATCH, seed).astype(dtype), kind.split()[0]
    epsilon = np.array(radius).astype(dtype)
    found = run(attack_of(kind), keys(BATCH, seed), smooth_model(), images, LABELS, epsilon=epsilon)
    assert found.images.shape == images.shape and found.images.dtype == dtype
    assert np.all((found.images >= 0) & (found.images <= 1))
    moved = lengths(found.images.astype(np.float32) - images.astype(np.float32), norm)
    ulp = float(jnp.finfo(dtype).eps)
    rounding = ulp * {"linf": 1, "l2": 6**0.5, "l1": 6}[norm]
    assert np.all(moved <= epsilon.astype(np.float32) * (1 + 4 * ulp) + rounding)
    still = np.array(radius) == 0
    assert same_bits(found.images[still], images[still])
    # In bfloat16 a small radius spread over several pixels is less than their rounding.
    assert np.all(moved[np.array(radius) >= (0.01 if dtype == jnp.float32 else 0.3)] > 0)
    # Facts are those of the returned image; bfloat16 models are too coarse to be asked twice.
    if dtype == jnp.float32:
        outputs = smooth_model()(found.images)
        np.testing.assert_allclose(found.score, attacks.classification_margin(outputs, LABELS), atol=1e-5)
        sure = np.abs(found.score) > 1e-4
        np.testing.assert_array_equal(found.is_right[sure], attacks.is_right(outputs, LABELS)[sure])


@jax.jit
def first(attack, key, logits_fn, images, labels):
    return attack.init(key, logits_fn, images, labels)


@jax.jit
def step(attack, logits_fn, state):
    return attack.step(logits_fn, state)


@jax.jit
def result(attack, logits_fn, state):
    return attack.result(logits_fn, state)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["l2", "l1 large radii"])
def test_samples_at_different_steps_equal_samples_alone(kind):
    attack = attack_of(kind, epsilon=0.2)
    images, key, logits_fn = pixels(BATCH + 1), keys(BATCH + 1), smooth_model()
    labels = np.asarray(attacks.predict(logits_fn(images)))
    state = first(attack, key[:BATCH], logits_fn, images[:BATCH], labels[:BATCH])
    whole_images = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.size >= images[:BATCH].size}
    assert whole_images == {images[:BATCH].shape}
    assert sum(leaf.shape == images[:BATCH].shape for leaf in jax.tree.leaves(state)) <= 6
    fresh = first(attack, key[1:], logits_fn, images[1:], labels[1:])
    state = step(attack, logits_fn, step(attack, logits_fn, state))
    state = jax.jit(lambda *states: jax.tree.map(lambda old, new: old.at[0].set(new[-1]), *states))(state, fresh)
    np.testing.assert_array_equal(state.steps, [0, 2, 2, 2, 2, 2])
    for done in range(attack.num_steps):
        if done == attack.num_steps - 2:
            others = result(attack, logits_fn, state)
        state = step(attack, logits_fn, state)
    alone = run(attack, key[1:], logits_fn, images[1:], labels[1:], epsilon=np.full(BATCH, 0.2, np.float32))
    assert 0 < np.sum(alone.hits > 0) < BATCH
    for one, other, expected in zip(result(attack, logits_fn, state), others, alone, strict=True):
        np.testing.assert_allclose(one[0], expected[-1], atol=2e-6)
        np.testing.assert_allclose(other[1:], expected[:-1], atol=2e-6)
    # What was held once stays, whatever steps follow.
    held = np.asarray(attack.succeeded(state))
    assert same_bits(step(attack, logits_fn, state).found[held], state.found[held])


@pytest.mark.parametrize("kind", ["linf", "l1 large radii"])
def test_jit_order_and_early_stops_change_nothing(kind):
    attack, images, key, logits_fn = attack_of(kind), pixels(BATCH), keys(BATCH), smooth_model()
    labels, epsilon = np.asarray(attacks.predict(logits_fn(images))), np.full(BATCH, 0.2, np.float32)
    found = run(attack, key, logits_fn, images, labels, epsilon=epsilon)
    assert 0 < np.sum(found.is_right) < BATCH
    order = np.array([3, 1, 5, 0, 4, 2])
    permuted = run(attack, key[order], logits_fn, images[order], labels[order], epsilon=epsilon)
    for one, other in zip(found, permuted, strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-5)
    if kind == "linf":
        plain = attack.run(key, logits_fn, images, labels, epsilon=epsilon)
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    early = run(attacks.until_success(attack), key, logits_fn, images, labels, epsilon=epsilon)
    np.testing.assert_allclose(early.images, found.images, atol=1e-6)
    np.testing.assert_array_equal(early.is_right, found.is_right)
    assert np.any(early.hits < found.hits)


def test_results_before_the_last_stage_are_in_the_ball():
    attack, images, logits_fn = attack_of("l1 large radii", epsilon=0.2), pixels(BATCH), smooth_model()
    state = first(attack, keys(BATCH), logits_fn, images, LABELS)
    for _ in range(2):
        found = result(attack, logits_fn, state)
        moved = lengths(found.images - images, "l1")
        assert np.all(moved <= 0.2 + 1e-5) and np.all(moved > 0)
        np.testing.assert_array_equal(found.is_right, attacks.is_right(logits_fn(found.images), LABELS))
        state = step(attack, logits_fn, state)


def test_one_pass_a_step_and_no_new_programs_for_new_numbers():
    calls = []

    def counted(weights, images):
        calls.append(images.shape)
        return tanh_network(weights, images)

    attack, images = attack_of("l2"), pixels(BATCH)
    logits_fn = jax.tree_util.Partial(counted, smooth_model().args[0])
    state = jax.eval_shape(lambda: attack.init(keys(BATCH), logits_fn, images, LABELS))
    assert len(calls) == 0
    jax.eval_shape(lambda state: attack.step(logits_fn, state), state)
    assert len(calls) == 1
    results = []
    for epsilon, rho, given in ((0.1, 0.75, 0.1), (0.2, 0.5, 0.3), (0.3, 1.0, 0.0)):
        renewed = dataclasses.replace(attack, epsilon=epsilon, rho=rho)
        results.append(compiled(renewed, keys(BATCH), logits_fn, images, LABELS, epsilon=given).images)
        if len(results) == 1:
            calls.clear()
    assert len(calls) == 0
    assert not np.allclose(results[0], results[1]) and same_bits(results[2], images)
    assert attack.passes == 17 and attack_of("l1 large radii").passes == 21
    assert attack_of("linf", eot_passes=3).passes == 49


def test_vmap_over_models_and_radii():
    attack, images, radii = attack_of("l2"), pixels(BATCH), np.array([0.0, 0.1, 0.5], np.float32)
    models = [smooth_model(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    together = jax.jit(jax.vmap(lambda model, radius: attack.run(keys(BATCH), model, images, LABELS, epsilon=radius)))(
        stacked, radii
    )
    for number, (model, radius) in enumerate(zip(models, radii, strict=True)):
        alone = run(attack, keys(BATCH), model, images, LABELS, epsilon=np.full(BATCH, radius))
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one[number], other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["l2", "l1 large radii"])
def test_shard_map_checks_its_carries(kind):
    attack, images, logits_fn = attack_of(kind), pixels(BATCH), smooth_model()
    rows, everywhere = PartitionSpec("data"), PartitionSpec()

    def attacked(attack, logits_fn, key, images, labels):
        return attack.run(key, logits_fn, images, labels)

    spread = jax.jit(
        functools.partial(jax.shard_map, check_vma=True)(
            attacked,
            mesh=Mesh(np.array(jax.devices()[:1]), ("data",)),
            in_specs=(everywhere, everywhere, rows, rows, rows),
            out_specs=rows,
        )
    )
    plain = run(attack, keys(BATCH), logits_fn, images, LABELS, epsilon=np.full(BATCH, 0.3, np.float32))
    for one, other in zip(spread(attack, logits_fn, keys(BATCH), images, LABELS), plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# Models that answer badly or at random


@pytest.mark.parametrize("norm", ["linf", slowly("l1")])
def test_bad_gradients_stay_where_they_are_and_are_counted(norm):
    logits_fn, images, labels, _ = two_classes()
    added, factor = np.zeros(images.shape, np.float32), np.ones(images.shape, np.float32)
    factor[1], added[2], added[3], added[4, 0, 0, 0] = 0, np.nan, np.inf, np.nan
    attack = apgd(norm=norm, epsilon=0.5, num_steps=6, loss="lm")
    models = poisoned_models(logits_fn, factor, added)
    found, healthy = (run(attack, keys(8), model, images, labels) for model in models)
    assert np.all(np.isfinite(found.images)) and np.all(np.isfinite(found.score))
    np.testing.assert_array_equal(found.zero_gradients, 6 * np.array([0, 1, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(found.nonfinite_gradients, 6 * np.array([0, 0, 1, 1, 1, 0, 0, 0]))
    others = [0, 5, 6, 7]
    np.testing.assert_array_equal(found.images[others], healthy.images[others])
    assert not np.any(healthy.is_right)


def test_a_model_that_answers_nan_fools_itself():
    logits_fn, images, labels, _ = two_classes()

    def broken(images):
        return logits_fn(images).at[2].set(jnp.nan)

    found = run(apgd(epsilon=0.3, num_steps=4), keys(8), jax.tree_util.Partial(broken), images, labels)
    assert np.all(np.isfinite(found.images)) and not found.is_right[2] and np.isnan(found.score[2])
    assert not np.any(np.isnan(found.score[np.arange(8) != 2]))


def test_a_stochastic_model_is_averaged_and_draws_per_sample():
    weights = smooth_model().args[0]

    def noisy(weights, images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
        return tanh_network(weights, images + noise)

    model = attacks.stochastic(jax.tree_util.Partial(noisy, weights))
    images = pixels(BATCH)
    attack = attack_of("linf", epsilon=0.1, num_steps=2, eot_passes=3)
    found = run(attack, keys(BATCH), model, images, LABELS)
    turned = run(attack, keys(BATCH)[::-1], model, images[::-1], LABELS[::-1])
    for one, other in zip(found, turned, strict=True):
        np.testing.assert_allclose(one[::-1], other, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l3"}, "norm is 'l3'"),
        ({"loss": "hinge"}, "attack loss 'hinge' is not known"),
        ({"num_steps": 0}, "num_steps is 0; give a whole number from 1"),
        ({"eot_passes": 1.5}, "eot_passes is 1.5; give a whole number from 1"),
        ({"epsilon": -1}, "epsilon is -1; give finite numbers from 0"),
        ({"rho": float("nan")}, "rho is nan; give finite numbers from 0"),
        ({"num_steps": 4, "large_radii": True}, "num_steps is 4, too few for large_radii; give 5 or more"),
    ],
)
def test_bad_settings_are_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=message):
        apgd(**{"epsilon": 0.1, **settings})


def test_a_bad_start_is_refused():
    with pytest.raises(ValueError, match="give images of shape"):
        apgd(epsilon=0.1)(keys(BATCH), smooth_model(), pixels(BATCH), LABELS, start=pixels(BATCH)[:, :1])
