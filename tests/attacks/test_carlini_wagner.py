"""The Carlini-Wagner attack finds known L2 distances, never less, and keeps samples apart."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from test_hyperplane import many_classes
from toy_problems import (
    FEATURES,
    SHAPE,
    compiled,
    keys,
    lengths,
    linear,
    pixels,
    poisoned_models,
    run,
    same_bits,
    smooth_model,
)
from toy_problems import two_classes as near_the_boundary

from jax_advtrain import attacks
from jax_advtrain.attacks.carlini_wagner import carlini_wagner
from jax_advtrain.attacks.fmn import fmn

BATCH = 8
STEPS = 900  # of the defaults


def test_the_distance_of_a_linear_model_is_found():
    logits_fn, images, labels, distances = near_the_boundary()
    found = run(carlini_wagner(), keys(BATCH), logits_fn, images, labels)
    distance, true = lengths(found.images - images, "l2"), distances["l2"]
    assert not np.any(found.is_right) and np.all(found.score >= 0) and np.all(found.hits > 0)
    np.testing.assert_allclose(distance, true, rtol=2e-3)
    assert np.all(distance >= true * (1 - 1e-4))


def test_the_nearest_of_many_boundaries_is_found_whichever_class_has_the_second_logit():
    logits_fn, images, labels, distances = many_classes(seed=5)
    true = distances["l2"].min(1)
    logits = np.array(logits_fn(images))
    logits[np.arange(BATCH), labels] = -np.inf
    assert np.any(distances["l2"].argmin(1) != logits.argmax(1))
    found = run(carlini_wagner(), keys(BATCH), logits_fn, images, labels)
    assert not np.any(found.is_right) and np.all(found.score >= 0)
    np.testing.assert_allclose(lengths(found.images - images, "l2"), true, rtol=2e-3)
    assert np.all(lengths(found.images - images, "l2") >= true * (1 - 1e-4))


def test_the_distance_is_found_from_images_on_the_ends_of_the_box():
    random = np.random.default_rng(1)
    matrix = random.normal(size=(FEATURES, 2)).astype(np.float32)
    normal = (matrix[:, 0] - matrix[:, 1]).astype(np.float64)
    images = pixels(BATCH, 1)
    flat = images.reshape(BATCH, -1).astype(np.float64)
    bias = np.float32(-np.median(flat @ normal))
    gap = flat @ normal + bias
    room = np.where(normal * np.sign(gap)[:, None] < 0, 1 - flat, flat)
    assert np.sum(room == 0) >= 2 and np.sum(room == 1) >= 5
    low, high = np.zeros(BATCH), np.full(BATCH, 1e3)
    for _ in range(80):  # the nearest point moves each pixel in proportion to its weight, as far as its end
        middle = (low + high) / 2
        moved = np.minimum(middle[:, None] * np.abs(normal), room)
        reached = moved @ np.abs(normal) >= np.abs(gap)
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    true = np.linalg.norm(moved, axis=1)
    logits_fn = jax.tree_util.Partial(linear, (jnp.asarray(matrix), jnp.asarray([bias, 0], jnp.float32)))
    found = run(carlini_wagner(), keys(BATCH), logits_fn, images, np.where(gap > 0, 0, 1))
    assert not np.any(found.is_right)
    assert np.all((found.images >= 0) & (found.images <= 1))
    distance = lengths(found.images - images, "l2")
    np.testing.assert_allclose(distance, true, rtol=2e-3)
    assert np.all(distance >= true * (1 - 1e-4))


def kinked(parameters, images):
    """Two layers: class 1 grows slowly with |u x - b|, ten times faster beyond 0.3, and wins from `level` on."""
    direction, offset, level = parameters
    along = images.reshape(len(images), -1) @ direction - offset
    hidden = jax.nn.relu(jnp.stack([along, -along, along - 0.3, -along - 0.3], axis=1))
    return jnp.stack([jnp.full_like(along, level), hidden @ jnp.array([1.0, 1.0, 9.0, 9.0])], axis=1)


def test_the_nearer_of_two_boundaries_of_a_piecewise_linear_network():
    direction = np.array([1.0, -0.5, 0.25, 0.8, -0.3, 0.6])
    images = pixels(BATCH, low=0.4, high=0.6)
    flat = images.reshape(BATCH, -1).astype(np.float64)
    offset = np.median(flat @ direction)
    parameters = (jnp.asarray(direction, jnp.float32), jnp.float32(offset), jnp.float32(1.5))
    model = jax.tree_util.Partial(kinked, parameters)
    found = run(carlini_wagner(), keys(BATCH), model, images, np.zeros(BATCH, np.int32))
    true = (0.42 - np.abs(flat @ direction - offset)) / np.linalg.norm(direction)
    distance = lengths(found.images - images, "l2")
    assert not np.any(found.is_right)
    np.testing.assert_allclose(distance, true, rtol=1e-2)
    assert np.all(distance >= true * (1 - 1e-4))


def test_targets_are_reached_at_their_distance_and_labels_stay_the_truth():
    # Class j has the logit of pixel j alone.
    logits_fn = jax.tree_util.Partial(linear, (jnp.eye(FEATURES, 3), jnp.zeros(3)))
    truth, targets = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    flat = np.full((9, FEATURES), 0.5, np.float32)
    flat[np.arange(9), truth] += 0.1
    images = flat.reshape(9, *SHAPE)
    found = run(carlini_wagner(), keys(9), logits_fn, images, truth, targets=targets)
    np.testing.assert_array_equal(np.asarray(attacks.predict(logits_fn(found.images))), targets)
    np.testing.assert_array_equal(found.is_right, targets == truth)
    true = np.where(targets == truth, 0, 0.1 / 2**0.5)
    np.testing.assert_allclose(lengths(found.images - images, "l2"), true, rtol=1e-2)
    assert same_bits(found.images[targets == truth], images[targets == truth])


def test_confidence_is_a_margin_that_the_result_has():
    logits_fn, images, labels, distances = near_the_boundary()
    matrix = np.asarray(logits_fn.args[0][0], np.float64)
    slope = np.linalg.norm(matrix[:, 0] - matrix[:, 1])
    found = run(carlini_wagner(confidence=0.3), keys(BATCH), logits_fn, images, labels)
    assert np.all(found.score >= 0.3)
    np.testing.assert_allclose(lengths(found.images - images, "l2"), distances["l2"] + 0.3 / slope, rtol=1e-2)


def test_one_logit_models_are_attacked_as_those_of_two_classes():
    logits_fn, images, labels, distances = near_the_boundary()
    matrix, bias = logits_fn.args[0]
    one = jax.tree_util.Partial(
        lambda weights, images: linear(weights, images)[:, 0], (matrix[:, 1:] - matrix[:, :1], bias[1:] - bias[:1])
    )
    found = run(carlini_wagner(), keys(BATCH), one, images, labels.astype(np.int8))
    assert not np.any(found.is_right)
    np.testing.assert_allclose(lengths(found.images - images, "l2"), distances["l2"], rtol=1e-2)


def test_wrong_from_the_start_means_the_clean_image_and_so_does_nothing_found():
    logits_fn, images, labels, _ = near_the_boundary()
    flipped = np.where(np.arange(BATCH) % 2, labels, 1 - labels)
    found = run(carlini_wagner(), keys(BATCH), logits_fn, images, flipped)
    assert same_bits(found.images[flipped != labels], images[flipped != labels])
    assert not np.any(found.is_right)

    flat = jax.tree_util.Partial(linear, (jnp.zeros((FEATURES, 2)), jnp.array([1.0, 0.0])))
    found = run(carlini_wagner(), keys(BATCH), flat, images, np.zeros(BATCH, np.int32))
    assert same_bits(found.images, images)
    assert np.all(found.is_right) and np.all(found.score == -1) and np.all(found.hits == 0)
    assert np.all(found.zero_gradients == STEPS)


@jax.jit
def stepped(attack, logits_fn, state):
    return attack.step(logits_fn, state)


def test_the_constant_grows_tenfold_until_a_round_succeeds_and_is_bisected_then():
    logits_fn, images, labels, distances = near_the_boundary()
    matrix = np.asarray(logits_fn.args[0][0], np.float64)
    # The minimum of ||d||^2 + c (slope (distance - |d|)) lies across the boundary from c = 2 distance / slope on.
    needed = 2 * distances["l2"] / np.linalg.norm(matrix[:, 0] - matrix[:, 1])
    attack = carlini_wagner(inner_steps=40, binary_search_steps=7)
    state = jax.jit(attack.init)(keys(BATCH), logits_fn, images, labels)
    tried = []
    for step in range(attack.num_steps):
        if step % 40 == 0:
            tried.append(np.asarray(state.constant, np.float64))
            np.testing.assert_array_equal(state.modifier, 0)
            np.testing.assert_array_equal(state.optimizer_state.count, 0)
            assert not np.any(state.found)
        state = stepped(attack, logits_fn, state)
        np.testing.assert_array_equal(state.steps, step + 1)
    expected, low, high = np.full(BATCH, 1e-3), np.zeros(BATCH), np.full(BATCH, np.inf)
    for number, constant in enumerate(tried):
        if number < 4:  # later ones come so near to the threshold that 40 steps do not tell
            np.testing.assert_allclose(constant, expected, rtol=1e-5)
        enough = constant >= needed
        low, high = np.where(enough, low, constant), np.where(enough, constant, high)
        expected = np.where(np.isfinite(high), (low + high) / 2, 10 * constant)
    assert np.all((tried[-1] < 2 * needed) & (tried[-1] > needed / 2))
    # Steps past the last do no harm.
    before = np.asarray(state.nearest.distance)
    for _ in range(5):
        state = stepped(attack, logits_fn, state)
    assert np.all(np.asarray(state.nearest.distance) <= before)


def test_samples_of_one_batch_may_stand_at_different_steps():
    images, model = pixels(BATCH + 1), smooth_model(scale=2.0)
    labels = np.arange(BATCH + 1) % 3
    attack = carlini_wagner(inner_steps=5, binary_search_steps=3)
    init = jax.jit(attack.init)
    state = init(keys(BATCH), model, images[:BATCH], labels[:BATCH])
    for _ in range(7):
        state = stepped(attack, model, state)
    fresh = init(keys(BATCH), model, images[1:], labels[1:])
    state = jax.jit(lambda *states: jax.tree.map(lambda old, new: old.at[2].set(new[-1]), *states))(state, fresh)
    for _ in range(15):
        state = stepped(attack, model, state)
    whole = run(attack, keys(BATCH), model, images[1:], labels[1:])
    np.testing.assert_allclose(attack.result(model, state).images[2], whole.images[-1], atol=1e-6)


@pytest.mark.slow
def test_a_radius_says_when_a_sample_is_finished_and_is_honoured():
    logits_fn, images, labels, distances = near_the_boundary()
    reach = np.where(np.arange(BATCH) % 2, 1.02, 0.98) * distances["l2"]
    reach[0] = 0
    found = run(carlini_wagner(), keys(BATCH), logits_fn, images, labels, epsilon=reach)
    np.testing.assert_array_equal(found.is_right, reach < distances["l2"])
    assert same_bits(found.images[found.is_right], images[found.is_right])
    assert np.all(lengths(found.images - images, "l2") <= reach * (1 + 1e-6))
    early = attacks.until_success(carlini_wagner())
    quick = run(early, keys(BATCH), logits_fn, images, labels, epsilon=reach)
    np.testing.assert_array_equal(quick.is_right, found.is_right)
    assert np.all(quick.hits[~quick.is_right] < found.hits[~quick.is_right])
    plain = carlini_wagner(inner_steps=5, binary_search_steps=2)
    state = jax.jit(plain.init)(keys(BATCH), logits_fn, images, 1 - labels)
    state = stepped(plain, logits_fn, state)
    assert np.all(state.nearest.distance == 0) and not np.any(plain.succeeded(state))


def test_a_given_start_is_where_every_round_begins():
    logits_fn, images, labels, distances = near_the_boundary()
    labels = labels.copy()
    labels[3] = 1 - labels[3]
    start = np.clip(np.roll(images, 1, axis=0), 0, 1)
    found = run(carlini_wagner(), keys(BATCH), logits_fn, images, labels, start=start)
    assert not np.any(found.is_right)
    assert same_bits(found.images[3], images[3])
    expected = np.where(np.arange(BATCH) == 3, 0, distances["l2"])
    np.testing.assert_allclose(lengths(found.images - images, "l2"), expected, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 2**31 - 1))
def test_results_stay_in_the_box_and_in_each_samples_radius(dtype, seed):
    images = pixels(BATCH, seed).astype(dtype)
    labels = np.asarray(attacks.predict(smooth_model()(images)))
    epsilon = np.array([0, 1e-6, 0.01, 0.1, 0.3, 0.5, 1, 5]).astype(dtype)
    attack = carlini_wagner(inner_steps=10, binary_search_steps=4, step_size=0.1)
    found = run(attack, keys(BATCH), smooth_model(), images, labels, epsilon=epsilon)
    assert found.images.dtype == dtype and found.images.shape == images.shape
    assert np.all((found.images >= 0) & (found.images <= 1))
    distance = lengths(found.images.astype(np.float32) - images.astype(np.float32), "l2")
    assert np.all(distance <= epsilon.astype(np.float64) * (1 + 1e-5))
    np.testing.assert_array_equal(found.is_right, distance == 0)
    order = np.random.default_rng(seed).permutation(BATCH)
    permuted = run(attack, keys(BATCH, 5), smooth_model(), images[order], labels[order], epsilon=epsilon[order])
    assert same_bits(permuted.images, found.images[order])


def test_bad_gradients_stay_where_they_are_and_are_counted():
    logits_fn, images, labels, _ = near_the_boundary()
    factor, added = np.ones_like(images), np.zeros_like(images)
    factor[1], factor[6] = 0, 1e38
    added[2], added[3] = np.nan, np.inf
    bad, good = poisoned_models(logits_fn, factor, added)
    found, healthy = (run(carlini_wagner(), keys(BATCH), model, images, labels) for model in (bad, good))
    assert np.all(np.isfinite(found.images))
    np.testing.assert_array_equal(found.zero_gradients, np.where(np.arange(BATCH) == 1, STEPS, 0))
    assert np.all(found.nonfinite_gradients[2:4] == STEPS)
    assert np.all(found.nonfinite_gradients[[0, 1, 4, 5, 7]] == 0)
    assert np.all(found.is_right[1:4]) and same_bits(found.images[1:4], images[1:4])
    for row in (0, 4, 5, 7):
        assert same_bits(found.images[row], healthy.images[row])


def test_distances_are_no_larger_than_those_of_a_boundary_search_and_near_those_of_fmn():
    model, images = smooth_model(seed=2, scale=2.0), pixels(BATCH, seed=2)
    labels = np.asarray(attacks.predict(model(images)))
    ascent = attacks.pgd(norm="l2", epsilon=1.6, alpha=2, num_steps=40, loss="lm", start="clean")
    boundary = run(attacks.on_boundary(ascent, placement="outside"), keys(BATCH), model, images, labels)
    found = run(carlini_wagner(), keys(BATCH), model, images, labels)
    fast = run(fmn(norm="l2"), keys(BATCH), model, images, labels)
    both = (boundary.hits > 0) & ~found.is_right & ~fast.is_right
    assert both.sum() >= 5 and not np.any((boundary.hits > 0) & found.is_right)
    distance = lengths(found.images - images, "l2")[both]
    assert np.all(distance <= boundary.distance[both] * 1.02)
    assert distance.mean() <= lengths(fast.images - images, "l2")[both].mean() * 1.02


@pytest.mark.slow
def test_vmap_jit_and_no_retrace_on_new_values():
    images, labels = pixels(BATCH), np.arange(BATCH) % 3
    radii = jnp.array([0.1, 0.5])
    attack = carlini_wagner(inner_steps=4, binary_search_steps=2, step_size=0.1)

    def at(radius):
        return attack.run(keys(BATCH), smooth_model(), images, labels, epsilon=radius)

    together = jax.jit(jax.vmap(at))(radii)
    alone = run(attack, keys(BATCH), smooth_model(), images, labels, epsilon=radii[0])
    traced = compiled._cache_size()
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one[0], other, atol=1e-5)
    other_values = carlini_wagner(
        inner_steps=4, binary_search_steps=2, step_size=0.2, confidence=0.1, initial_constant=1.0
    )
    run(other_values, keys(BATCH), smooth_model(1), images, labels, epsilon=radii[1])
    assert compiled._cache_size() == traced
    for one, other in zip(at(radii[0]), alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("start", [None, pixels(BATCH, seed=3)], ids=["clean", "given"])
def test_shard_map_equals_without(start):
    images, labels = pixels(BATCH), np.arange(BATCH) % 3
    attack = carlini_wagner(inner_steps=2, binary_search_steps=2)
    rows, everywhere = PartitionSpec("data"), PartitionSpec()

    def attacked(logits_fn, key, images, labels, start):
        return attack.run(key, logits_fn, images, labels, start=start)

    spread = functools.partial(jax.shard_map, check_vma=True)(
        attacked,
        mesh=Mesh(np.array(jax.devices()[:1]), ("data",)),
        in_specs=(everywhere, rows, rows, rows, rows),
        out_specs=rows,
    )
    found = jax.jit(spread)(smooth_model(), keys(BATCH), images, labels, start)
    for one, other in zip(run(attack, keys(BATCH), smooth_model(), images, labels, start=start), found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_steps": 0}, "inner_steps is 0; give a whole number from 1"),
        ({"binary_search_steps": 2.0}, "binary_search_steps is 2.0; give a whole number from 1"),
        ({"epsilon": -1.0}, "epsilon is -1.0; give finite numbers from 0"),
        ({"step_size": 0.0}, "step_size is 0.0; give finite numbers above 0"),
        ({"confidence": -0.1}, "confidence is -0.1; give finite numbers from 0"),
        ({"initial_constant": 0.0}, "initial_constant is 0.0; give finite numbers above 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        carlini_wagner(**settings)


def test_passes_and_models_that_answer_at_random():
    assert carlini_wagner().num_steps == STEPS and carlini_wagner().passes == 2 * STEPS + 39
    random = attacks.stochastic(lambda images, keys: images.reshape(BATCH, -1))
    with pytest.raises(ValueError, match="always answers alike"):
        carlini_wagner().run(keys(BATCH), random, pixels(BATCH), np.zeros(BATCH, np.int32))
