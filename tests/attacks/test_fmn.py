"""FMN finds known distances, never less, and holds nothing of a sample's batch."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_hyperplane import many_classes
from toy_problems import (
    FEATURES,
    SHAPE,
    keys,
    linear,
    pixels,
    run,
    same_bits,
    two_classes,
)

from jax_advtrain import attacks
from jax_advtrain.attacks.fmn import fmn, keep_largest

NORMS = ("linf", "l2", "l1", "l0")
BATCH = 8
few = hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


def lengths(images, clean, norm):
    """Distances, independently of the package, in float64."""
    flat = (np.asarray(images, np.float64) - np.asarray(clean, np.float64)).reshape(len(clean), -1)
    order = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    return np.linalg.norm(flat, ord=order, axis=1)


def box_distances(normal, flat, gap, norm):
    """How far a point of [0, 1] is from {z: normal z = its own value +- gap} within the box, by the known solutions."""
    weight = np.abs(normal)
    room = np.where(normal * np.sign(gap)[:, None] < 0, 1 - flat, flat)
    if norm == "l0":
        gain = np.sort(weight * room, axis=1)[:, ::-1].cumsum(axis=1)
        return (gain < np.abs(gap)[:, None]).sum(axis=1) + 1
    if norm == "l1":
        order = np.argsort(-weight)
        gain = (weight * room)[:, order].cumsum(axis=1)
        part = np.clip((np.abs(gap)[:, None] - gain + (weight * room)[:, order]) / weight[order], 0, room[:, order])
        return part.sum(axis=1)
    low, high = np.zeros(len(flat)), np.full(len(flat), 1e3)
    direction = np.ones_like(weight) if norm == "linf" else weight
    for _ in range(80):
        middle = (low + high) / 2
        reached = (weight * np.minimum(middle[:, None] * direction, room)).sum(axis=1) >= np.abs(gap)
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return lengths(np.minimum(high[:, None] * direction, room), np.zeros_like(room), norm)


def cornered(seed=0):
    """A linear model of two classes, images of which many pixels lie on the ends of the box, and the signed gap."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(FEATURES, 2)).astype(np.float32)
    normal = (matrix[:, 0] - matrix[:, 1]).astype(np.float64)
    images = pixels(BATCH, seed)
    flat = images.reshape(BATCH, -1).astype(np.float64)
    bias = np.float32(-np.median(flat @ normal))
    gap = flat @ normal + bias
    logits_fn = jax.tree_util.Partial(linear, (jnp.asarray(matrix), jnp.asarray([bias, 0], jnp.float32)))
    return logits_fn, images, np.where(gap > 0, 0, 1).astype(np.int32), normal, flat, gap


@pytest.mark.parametrize("norm", NORMS[:3])
def test_the_distance_of_a_linear_model_is_found(norm):
    logits_fn, images, labels, distances = two_classes()
    matrix = np.asarray(logits_fn.args[0][0], np.float64)
    normal = matrix[:, 0] - matrix[:, 1]
    true = distances["l2"] * np.linalg.norm(normal) / np.abs(normal).max() if norm == "l1" else distances[norm]
    found = run(fmn(norm=norm), keys(BATCH), logits_fn, images, labels)
    distance = lengths(found.images, images, norm)
    assert not np.any(found.is_right) and np.all(found.score >= 0) and np.all(found.hits > 0)
    np.testing.assert_allclose(distance, true, rtol=1e-3)
    assert np.all(distance >= true * (1 - 1e-4))
    assert np.all(found.zero_gradients == 0) and np.all(found.nonfinite_gradients == 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_nearest_of_many_boundaries_is_found_whichever_class_has_the_second_logit(norm):
    excess, is_second = [], []
    for seed in range(12):
        logits_fn, images, labels, distances = many_classes(3 + 7 * (seed % 2), seed)
        logits = np.array(logits_fn(images))
        logits[np.arange(BATCH), labels] = -np.inf
        is_second += list(distances[norm].argmin(1) == logits.argmax(1))
        found = run(fmn(norm=norm), keys(BATCH), logits_fn, images, labels)
        assert not np.any(found.is_right)
        excess += list(lengths(found.images, images, norm) / distances[norm].min(1) - 1)
    assert not np.all(is_second)
    assert np.all(np.abs(excess) < 2e-3), max(np.abs(excess))


@pytest.mark.parametrize("norm", NORMS)
def test_the_distance_is_found_where_the_box_is_in_the_way(norm):
    excess = []
    for seed in range(4):
        logits_fn, images, labels, normal, flat, gap = cornered(seed)
        true = box_distances(normal, flat, gap, norm)
        found = run(fmn(norm=norm), keys(BATCH), logits_fn, images, labels)
        distance = lengths(found.images, images, norm)
        assert not np.any(found.is_right)
        assert np.all((found.images >= 0) & (found.images <= 1))
        assert np.all(distance >= true - 1e-5)
        excess += list(distance / true - 1)
    # The fewest entries are a matter of choice, not of a gradient: there the attack is good, not exact.
    assert np.mean(np.array(excess) < 1e-2) >= (0.9 if norm == "l0" else 1)


def test_l0_finds_the_smallest_number_of_entries():
    # Each pixel may move by 0.5, so that the k first ones gain 0.5 (1 + 1/2 + ... + 1/2^(k-1)) = 1 - 1/2^k.
    weights = 0.5 ** np.arange(FEATURES)
    images = np.full((FEATURES, *SHAPE), 0.5, np.float32)
    number = np.arange(1, FEATURES + 1)
    reached = 1 - 0.5**number
    gap = reached - 0.3 * 0.5**number

    def logits_fn(matrix, gap, images):
        return jnp.stack([gap, (images.reshape(FEATURES, FEATURES) - 0.5) @ matrix], axis=1)

    model = jax.tree_util.Partial(logits_fn, jnp.asarray(weights, jnp.float32), jnp.asarray(gap, jnp.float32))
    found = run(fmn(norm="l0"), keys(FEATURES), model, images, np.zeros(FEATURES, np.int32))
    assert not np.any(found.is_right)
    np.testing.assert_array_equal(lengths(found.images, images, "l0"), number)


def test_l0_keeps_the_largest_entries_whatever_ties():
    random = np.random.default_rng(0)
    perturbation = random.integers(-3, 4, size=(40, *SHAPE)).astype(np.float32)
    count = random.integers(0, FEATURES + 2, size=40)
    kept = np.asarray(keep_largest(jnp.asarray(perturbation), jnp.asarray(count, jnp.float32)))
    for one, other, number in zip(perturbation.reshape(40, -1), kept.reshape(40, -1), count, strict=True):
        order = np.argsort(-np.abs(one), kind="stable")[:number]
        expected = np.zeros_like(one)
        expected[order] = one[order]
        np.testing.assert_array_equal(other, expected)


def kinked(parameters, images):
    """Two layers: class 1 grows slowly with |u x - b|, ten times faster beyond 0.3, and wins from `level` on."""
    direction, offset, level = parameters
    along = images.reshape(len(images), -1) @ direction - offset
    hidden = jax.nn.relu(jnp.stack([along, -along, along - 0.3, -along - 0.3], axis=1))
    return jnp.stack([jnp.full_like(along, level), hidden @ jnp.array([1.0, 1.0, 9.0, 9.0])], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS[:3])
def test_the_nearer_of_two_boundaries_of_a_piecewise_linear_network(norm):
    # By the slope at the clean image it is 1.5 - |u x|, in truth 0.3 + 1.2 / 10 - |u x|: the estimate is far off.
    direction = np.array([1.0, -0.5, 0.25, 0.8, -0.3, 0.6])
    images = pixels(BATCH, low=0.4, high=0.6)
    flat = images.reshape(BATCH, -1).astype(np.float64)
    offset = np.median(flat @ direction)
    parameters = (jnp.asarray(direction, jnp.float32), jnp.float32(offset), jnp.float32(1.5))
    gap = 0.42 - np.abs(flat @ direction - offset)
    dual = {"linf": np.abs(direction).sum(), "l2": np.linalg.norm(direction), "l1": np.abs(direction).max()}
    found = run(fmn(norm=norm), keys(BATCH), jax.tree_util.Partial(kinked, parameters), images, np.zeros(BATCH, int))
    distance = lengths(found.images, images, norm)
    assert not np.any(found.is_right)
    if norm == "l1":  # here the box is in the way of the largest entry
        side = np.where(flat @ direction > offset, -1.0, 1.0)
        true = box_distances(direction, flat, side * gap, "l1")
    else:
        true = gap / dual[norm]
    np.testing.assert_allclose(distance, true, rtol=1e-2)
    assert np.all(distance >= true * (1 - 1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "l0"])
def test_targets_are_reached_at_their_distance_and_labels_stay_the_truth(norm):
    # Class j has the logit of pixel j alone.
    logits_fn = jax.tree_util.Partial(linear, (jnp.eye(FEATURES, 3), jnp.zeros(3)))
    truth, targets = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    flat = np.full((9, FEATURES), 0.5, np.float32)
    flat[np.arange(9), truth] += 0.1
    images = flat.reshape(9, *SHAPE)
    found = run(fmn(norm=norm), keys(9), logits_fn, images, truth, targets=targets)
    np.testing.assert_array_equal(np.asarray(attacks.predict(logits_fn(found.images))), targets)
    np.testing.assert_array_equal(found.is_right, targets == truth)
    distance = lengths(found.images, images, norm)
    if norm == "l0":  # 1 would do, but the true class has more room to fall than the target to rise
        assert np.all(distance <= 2) and np.mean(distance[targets != truth]) <= 1.5
    else:
        np.testing.assert_allclose(distance, np.where(targets == truth, 0, 0.1 / 2**0.5), rtol=1e-2)
    assert same_bits(found.images[targets == truth], images[targets == truth])


@pytest.mark.slow
@few
@hypothesis.given(seed=seeds)
@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_no_distance_is_below_that_of_a_linear_model_of_many_classes(norm, order, seed):
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(FEATURES, 4)).astype(np.float32)
    images = pixels(BATCH, seed, low=0.3, high=0.7)
    logits_fn = jax.tree_util.Partial(linear, (jnp.asarray(matrix), jnp.asarray(-images[0].ravel() @ matrix)))
    logits = (images - images[:1]).reshape(BATCH, -1).astype(np.float64) @ matrix
    labels = logits.argmax(axis=1)
    gaps = logits.max(axis=1, keepdims=True) - logits
    sizes = np.linalg.norm(matrix[:, labels].T[:, :, None] - matrix[None], ord=order, axis=1)
    true = np.min(np.where(sizes > 0, gaps / np.maximum(sizes, 1e-9), np.inf), axis=1)
    found = run(fmn(norm=norm), keys(BATCH), logits_fn, images, labels)
    distance = lengths(found.images, images, norm)
    wrong = ~found.is_right
    np.testing.assert_array_equal(wrong, distance > 0 if labels[0] != 0 else wrong)
    assert np.all(distance[wrong] >= true[wrong] * (1 - 1e-3) - 2e-6)
    assert np.mean(wrong) >= 0.7


@pytest.mark.parametrize("norm", NORMS)
def test_wrong_from_the_start_means_the_clean_image_and_so_does_nothing_found(norm):
    logits_fn, images, labels, _ = two_classes()
    flipped = np.where(np.arange(BATCH) % 2, labels, 1 - labels)
    found = run(fmn(norm=norm), keys(BATCH), logits_fn, images, flipped)
    wrong = flipped != labels
    assert same_bits(found.images[wrong], images[wrong])
    assert not np.any(found.is_right) and np.all(lengths(found.images, images, norm)[~wrong] > 0)

    flat = jax.tree_util.Partial(linear, (jnp.zeros((FEATURES, 2)), jnp.array([1.0, 0.0])))
    found = run(fmn(norm=norm), keys(BATCH), flat, images, np.zeros(BATCH, np.int32))
    assert same_bits(found.images, images)
    assert np.all(found.is_right) and np.all(found.score == -1) and np.all(found.zero_gradients == 100)
    assert np.all(found.hits == 0)


@jax.jit
def stepped(attack, logits_fn, state):
    return attack.step(logits_fn, state)


@pytest.mark.slow
def test_a_radius_says_when_a_sample_is_finished_and_is_honoured():
    logits_fn, images, labels, distances = two_classes()
    reach = np.where(np.arange(BATCH) % 2, 1.02, 0.98) * distances["l2"]
    reach[0] = 0
    for attack, given in ((fmn(norm="l2"), {"epsilon": reach}), (fmn(norm="l2", epsilon=reach), {})):
        found = run(attack, keys(BATCH), logits_fn, images, labels, **given)
        np.testing.assert_array_equal(found.is_right, reach < distances["l2"])
        assert same_bits(found.images[found.is_right], images[found.is_right])
        assert np.all(lengths(found.images, images, "l2") <= reach)
        assert np.all(found.score[found.is_right] < 0)
    attack = fmn(norm="l2", num_steps=20)
    init = jax.jit(attack.init)
    near = init(keys(BATCH), logits_fn, images, labels, epsilon=1.5 * distances["l2"])
    free = init(keys(BATCH), logits_fn, images, labels)
    for _ in range(30):  # more than 20, which must do no harm
        before = np.asarray(near.nearest.distance)
        near, free = stepped(attack, logits_fn, near), stepped(attack, logits_fn, free)
        assert np.all(np.asarray(near.nearest.distance) <= before)
        np.testing.assert_array_equal(attack.succeeded(near), near.nearest.distance <= near.problem.epsilon)
        assert not np.any(attack.succeeded(free))
    assert np.all(attack.succeeded(near))
    early = run(attacks.until_success(attack), keys(BATCH), logits_fn, images, labels, epsilon=1.5 * distances["l2"])
    assert not np.any(early.is_right)
    assert np.all(lengths(early.images, images, "l2") <= 1.5 * distances["l2"])


def test_a_given_start_is_where_the_search_begins():
    logits_fn, images, labels, distances = two_classes()
    # Samples across the boundary, far away; and one that is wrong on its clean image all the same.
    labels = labels.copy()
    labels[3] = 1 - labels[3]
    start = np.clip(np.roll(images, 1, axis=0), 0, 1)
    found = run(fmn(norm="l2"), keys(BATCH), logits_fn, images, labels, start=start)
    assert not np.any(found.is_right)
    assert same_bits(found.images[3], images[3])
    expected = np.where(np.arange(BATCH) == 3, 0, distances["l2"])
    np.testing.assert_allclose(lengths(found.images, images, "l2"), expected, rtol=1e-2)
