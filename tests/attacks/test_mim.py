"""MIM against the paper's equation, and what momentum may and may not do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from toy_problems import SHAPE, keys, lengths, pixels, run, same_bits, smooth_model, tanh_network, two_classes

from jax_advtrain import attacks
from jax_advtrain.attacks.mim import mim

BATCH = 6
LABELS = np.arange(BATCH) % 3


def paper(gradient_of, images, norm, epsilon, num_steps, decay):
    """Dong et al. 2018, equations 6 and 7, in float64, with the projection that keeps longer paths in the ball."""
    x, momentum = images.astype(np.float64), np.zeros(images.shape)
    epsilon = epsilon[:, None, None, None]
    for _ in range(num_steps):
        gradient = np.asarray(gradient_of(x.astype(np.float32)), np.float64)
        momentum = decay * momentum + gradient / np.abs(gradient).sum(axis=(1, 2, 3), keepdims=True)
        size = np.sqrt((momentum**2).sum(axis=(1, 2, 3), keepdims=True))
        x = x + epsilon / num_steps * (np.sign(momentum) if norm == "linf" else momentum / size)
        moved = x - images
        length = np.sqrt((moved**2).sum(axis=(1, 2, 3), keepdims=True))
        inside = np.clip(moved, -epsilon, epsilon) if norm == "linf" else moved * np.minimum(1, epsilon / length)
        x = np.clip(images + inside, 0, 1)
    return x


@pytest.mark.parametrize(("norm", "decay"), [("linf", 1.0), ("l2", 1.0), ("l2", 0.5)])
def test_mim_is_the_papers_equation(norm, decay):
    logits_fn, images = smooth_model(scale=3.0), pixels(BATCH)
    epsilon = np.linspace(0.05, 0.5, BATCH)

    def loss(images):
        return jnp.sum(attacks.cross_entropy(logits_fn(images), LABELS))

    wanted = paper(jax.jit(jax.grad(loss)), images, norm, epsilon, 10, decay)
    found = run(mim(norm=norm, epsilon=epsilon, decay=decay), keys(BATCH), logits_fn, images, LABELS)
    np.testing.assert_allclose(found.images, wanted, atol=2e-5)
    without = paper(jax.jit(jax.grad(loss)), images, norm, epsilon, 10, 0.0)
    assert np.abs(without - wanted).max() > 1e-3


def test_l1_climbs_along_the_largest_entries_of_the_momentum():
    # The gradient is (2, 1) while x0 < 0.65 and (0, 1) from then on; steps of 0.1 get there with the second. The
    # momentum is then (1 + decay) (2, 1) / 3, and x0 stays ahead for so long as the decay keeps it.
    def bent(images):
        return jnp.stack([jnp.zeros(len(images)), 2 * jnp.minimum(images[:, 0], 0.65) + images[:, 1]], axis=1)

    images, labels = np.full((1, 2), 0.5, np.float32), np.zeros(1, np.int32)
    for decay, wanted in ((0.0, [0.7, 0.7]), (1.5, [0.8, 0.6]), (2.0, [0.9, 0.5])):
        attack = mim(norm="l1", epsilon=1.0, step_size=0.1, num_steps=4, decay=decay, loss="lm")
        found = run(attack, keys(1), jax.tree_util.Partial(bent), images, labels)
        np.testing.assert_allclose(found.images[0], wanted, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_linear_model_is_fooled_exactly_above_the_distance(norm):
    logits_fn, images, labels, distances = two_classes()
    matrix = np.asarray(logits_fn.args[0][0])
    normal = np.abs(matrix[:, 0] - matrix[:, 1])
    true = distances["linf"] * normal.sum() / normal.max() if norm == "l1" else distances[norm]
    attack = mim(norm=norm, epsilon=0.0, loss="lm")
    below = run(attack, keys(8), logits_fn, images, labels, epsilon=0.999 * true)
    above = run(attack, keys(8), logits_fn, images, labels, epsilon=1.001 * true)
    assert np.all(below.is_right) and np.all(below.hits == 0)
    assert not np.any(above.is_right) and np.all(above.hits == 1)


def test_decay_zero_is_pgd():
    images, logits_fn = pixels(BATCH), smooth_model()
    for norm in ("linf", "l2"):
        plain = attacks.pgd(norm=norm, epsilon=0.3, num_steps=3, alpha=1, start="clean")
        found = run(mim(norm=norm, epsilon=0.3, num_steps=3, decay=0.0), keys(BATCH), logits_fn, images, LABELS)
        wanted = run(plain, keys(BATCH), logits_fn, images, LABELS)
        np.testing.assert_allclose(found.images, wanted.images, atol=1e-6)
        np.testing.assert_array_equal(found.hits, wanted.hits)


def test_a_decay_a_sample_equals_separate_runs_and_compiles_nothing_anew():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return tanh_network(weights, images)

    model = jax.tree_util.Partial(counted, smooth_model(scale=3.0).args[0])
    images, decays = pixels(BATCH, low=0.2, high=0.8), np.linspace(0, 1.5, BATCH).astype(np.float32)

    def found(decay):
        return run(mim(norm="l2", epsilon=0.4, decay=decay), keys(BATCH), model, images, LABELS).images

    alone = [found(float(decays[0]))]
    seen = len(traces)
    alone += [found(float(decay)) for decay in decays[1:]]
    assert len(traces) == seen > 0
    np.testing.assert_allclose(found(decays), [images[row] for row, images in enumerate(alone)], atol=1e-6)
    assert np.abs(alone[0] - alone[-1]).max() > 1e-3


def test_momentum_crosses_a_flat_place_where_pgd_stands():
    def plateau(images):
        first = images.reshape(len(images), -1)[:, 0]
        return jnp.stack([jnp.zeros(len(images)), jnp.minimum(first, 0.55) - 0.7], axis=1)

    images, model = np.full((2, *SHAPE), 0.5, np.float32), jax.tree_util.Partial(plateau)
    labels = np.zeros(2, np.int32)
    epsilon = np.array([0.3, 0.0], np.float32)
    moving = run(mim(epsilon=epsilon, num_steps=4, loss="lm"), keys(2), model, images, labels)
    standing = run(mim(epsilon=epsilon, num_steps=4, loss="lm", decay=0.0), keys(2), model, images, labels)
    np.testing.assert_allclose(moving.images[0, 0, 0, 0], 0.8, atol=1e-6)
    np.testing.assert_allclose(standing.images[0, 0, 0, 0], 0.575, atol=1e-6)
    np.testing.assert_array_equal(moving.zero_gradients, [3, 0])
    assert same_bits(moving.images[1], images[1])


def test_gradients_that_are_zero_tiny_huge_or_broken_do_no_harm():
    def scaled(factor, weights, images):
        return tanh_network(weights, images) * factor[:, None]

    images = pixels(BATCH, low=0.3, high=0.7)
    weights = smooth_model(seed=2).args[0]
    factor = np.array([1.0, 0.0, 1e-25, 1e30, np.nan, 1.0], np.float32)
    for norm in ("linf", "l2", "l1"):
        attack = mim(norm=norm, epsilon=0.1, num_steps=4, loss="lm")
        bad = run(attack, keys(BATCH), jax.tree_util.Partial(scaled, jnp.asarray(factor), weights), images, LABELS)
        good = run(attack, keys(BATCH), jax.tree_util.Partial(scaled, jnp.ones(BATCH), weights), images, LABELS)
        assert np.all(np.isfinite(bad.images))
        np.testing.assert_allclose(bad.images[[0, 2, 3, 5]], good.images[[0, 2, 3, 5]], atol=1e-5)
        assert same_bits(bad.images[[1, 4]], images[[1, 4]])
        np.testing.assert_array_equal(bad.zero_gradients, [0, 4, 0, 0, 0, 0])
        np.testing.assert_array_equal(bad.nonfinite_gradients, [0, 0, 0, 0, 4, 0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_results_stay_in_each_samples_ball_and_in_the_box(norm, dtype):
    attack = mim(norm=norm, epsilon=0.1, num_steps=3, alpha=4.0, start="random")
    for seed in range(8):
        images = pixels(BATCH, seed).astype(dtype)
        epsilon = np.random.default_rng(seed).permutation([0.0, 1e-6, 0.01, 0.3, 1.0, 5.0]).astype(dtype)
        found = run(attack, keys(BATCH, seed), smooth_model(), images, LABELS, epsilon=epsilon)
        assert found.images.dtype == dtype and np.all((found.images >= 0) & (found.images <= 1))
        moved = lengths(found.images.astype(np.float32) - images.astype(np.float32), norm)
        ulp = float(jnp.finfo(dtype).eps)
        assert np.all(moved <= epsilon.astype(np.float32) * (1 + 4 * ulp) + 2.5 * ulp)
        assert same_bits(found.images[epsilon == 0], images[epsilon == 0])


@pytest.mark.slow
def test_targets_rest_at_success_and_a_stochastic_model():
    logits_fn, images = smooth_model(scale=3.0), pixels(BATCH, low=0.3, high=0.7)
    targets = (LABELS + 1) % 3
    attack = mim(epsilon=0.5, num_steps=8)
    found = run(attack, keys(BATCH), logits_fn, images, LABELS, targets)
    before = np.argmax(logits_fn(images), axis=1) == targets
    assert np.sum(np.argmax(logits_fn(found.images), axis=1) == targets) > np.sum(before)

    # A sample that was fooled once rests there: it is wrong in the end, after less of a way.
    resting = run(attacks.until_success(attack), keys(BATCH), logits_fn, images, LABELS)
    moving = run(attack, keys(BATCH), logits_fn, images, LABELS)
    assert np.any(moving.hits > 0)
    np.testing.assert_array_equal(~resting.is_right, moving.hits > 0)
    way = [lengths(result.images - images, "linf")[moving.hits > 1] for result in (resting, moving)]
    assert np.all(way[0] <= way[1] + 1e-6) and np.any(way[0] < way[1] - 0.01)

    def noisy(weights, images, keys):
        matrix, noise = weights
        return tanh_network(matrix, images) + noise * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)

    averaged = dataclasses.replace(attack, eot_passes=3)
    assert averaged.passes == 2 * 8 * 3 + 1

    def of_noise(noise, seed=0):
        model = attacks.stochastic(jax.tree_util.Partial(noisy, (*logits_fn.args, jnp.float32(noise))))
        return run(averaged, keys(BATCH, seed), model, images, LABELS)

    np.testing.assert_allclose(of_noise(0.0).images, moving.images, atol=1e-5)
    assert same_bits(of_noise(3.0).images, of_noise(3.0).images)
    assert np.abs(of_noise(3.0).images - of_noise(3.0, seed=1).images).max() > 1e-3


@pytest.mark.slow
def test_batches_vmap_shard_map_and_composition():
    attack = attacks.restarts(mim(norm="l2", epsilon=0.3, num_steps=3, start="random"), 2)
    images, key, logits_fn = pixels(BATCH), keys(BATCH), smooth_model()
    alone = run(attack, key, logits_fn, images, LABELS)
    order = np.array([4, 1])
    for one, other in zip(alone, run(attack, key[order], logits_fn, images[order], LABELS[order]), strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-5)

    def at(radius, key, images, labels):
        return attack.run(key, logits_fn, images, labels, epsilon=radius)

    together = jax.jit(jax.vmap(at, (0, None, None, None)))(np.array([0.0, 0.3], np.float32), key, images, LABELS)
    np.testing.assert_allclose(together.images[1], alone.images, atol=1e-5)
    assert same_bits(together.images[0], images)
    rows = PartitionSpec("data")
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    mapped = functools.partial(jax.shard_map, check_vma=True)(
        at, mesh=mesh, in_specs=(PartitionSpec(), rows, rows, rows), out_specs=rows
    )
    np.testing.assert_allclose(jax.jit(mapped)(0.3, key, images, LABELS).images, alone.images, atol=1e-5)


def test_the_default_path_is_as_long_as_the_radius():
    attack = mim(epsilon=0.2)
    assert (attack.alpha, attack.num_steps, attack.start, attack.passes) == (1.0, 10, "clean", 21)
    assert mim(epsilon=0.2, step_size=0.1).alpha is None
    assert sorted(jax.tree.leaves(mim(epsilon=0.2, decay=0.9))) == [0.2, 0.9, 1.0]
    placed = attacks.on_boundary(attack)
    logits_fn, images, labels, distances = two_classes()
    found = run(placed, keys(8), logits_fn, images, labels, epsilon=2 * distances["linf"])
    np.testing.assert_allclose(found.distance, distances["linf"], rtol=1e-3)
