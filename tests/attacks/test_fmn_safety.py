"""FMN: box and radius, bad gradients, batches, transformations, and what it refuses."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from test_fmn import lengths
from toy_problems import (
    compiled,
    keys,
    linear,
    pixels,
    poisoned_models,
    run,
    same_bits,
    smooth_model,
    two_classes,
)

from jax_advtrain import attacks
from jax_advtrain.attacks import final_search
from jax_advtrain.attacks.fmn import fmn

NORMS = ("linf", "l2", "l1", "l0")
BATCH = 8
few = hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "dtype"), [(norm, jnp.float32) for norm in NORMS] + [("l2", jnp.bfloat16), ("l1", jnp.bfloat16)]
)
@few
@hypothesis.given(seed=seeds)
def test_results_stay_in_the_box_and_in_each_samples_radius(norm, dtype, seed):
    images = pixels(BATCH, seed).astype(dtype)
    labels = np.asarray(attacks.predict(smooth_model()(images)))
    scale = 10 if norm == "l0" else 1
    epsilon = (scale * np.array([0, 1e-6, 0.01, 0.1, 0.3, 0.5, 1, 5])).astype(dtype)
    attack = fmn(norm=norm, num_steps=10)
    found = run(attack, keys(BATCH), smooth_model(), images, labels, epsilon=epsilon)
    assert found.images.dtype == dtype and found.images.shape == images.shape
    assert np.all((found.images >= 0) & (found.images <= 1))
    distance = lengths(found.images.astype(np.float32), images.astype(np.float32), norm)
    assert np.all(distance <= epsilon.astype(np.float64) * (1 + 1e-5))
    np.testing.assert_array_equal(found.is_right, distance == 0)
    assert same_bits(found.images[0], images[0])


@pytest.mark.parametrize("norm", NORMS)
def test_a_samples_result_depends_on_nothing_but_itself(norm):
    images, model = pixels(BATCH, seed=1), smooth_model(scale=2.0)
    labels = np.arange(BATCH) % 3
    attack, epsilon = fmn(norm=norm, num_steps=10), np.full(BATCH, 6, np.float32)
    whole = run(attack, keys(BATCH), model, images, labels, epsilon=epsilon)
    order = np.random.default_rng(0).permutation(BATCH)
    permuted = run(attack, keys(BATCH, 7), model, images[order], labels[order], epsilon=epsilon)
    for one, other in zip(whole, permuted, strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-6)
    if norm == "l0":
        part = run(attack, keys(2), model, images[2:4], labels[2:4], epsilon=epsilon[2:4])
        for one, other in zip(whole, part, strict=True):
            np.testing.assert_allclose(one[2:4], other, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_bad_gradients_stay_where_they_are_and_are_counted(norm):
    logits_fn, images, labels, _ = two_classes()
    factor, added = np.ones_like(images), np.zeros_like(images)
    factor[1], factor[5], factor[6] = 0, 1e-30, 1e38
    added[2], added[3] = np.nan, np.inf
    bad, good = poisoned_models(logits_fn, factor, added)
    attack = fmn(norm=norm)
    found, healthy = (run(attack, keys(BATCH), model, images, labels) for model in (bad, good))
    assert np.all(np.isfinite(found.images))
    np.testing.assert_array_equal(found.zero_gradients, np.where(np.arange(BATCH) == 1, 100, 0))
    np.testing.assert_array_equal(found.nonfinite_gradients, np.where(np.isin(np.arange(BATCH), [2, 3]), 100, 0))
    # A gradient that is huge beside the margin says that the boundary is at no distance, so that nothing is found.
    np.testing.assert_array_equal(found.is_right, np.isin(np.arange(BATCH), [1, 2, 3, 6]))
    assert same_bits(found.images[found.is_right], images[found.is_right])
    for row in (0, 4, 7):
        assert same_bits(found.images[row], healthy.images[row])
    # Of a tiny gradient the direction counts; the search starts from afar.
    distance, expected = (lengths(result.images, images, norm) for result in (found, healthy))
    np.testing.assert_allclose(distance[5], expected[5], rtol=0.1)


def test_one_logit_models_are_attacked_as_those_of_two_classes():
    logits_fn, images, labels, distances = two_classes()
    matrix, bias = logits_fn.args[0]
    one = jax.tree_util.Partial(
        lambda weights, images: linear(weights, images)[:, 0], (matrix[:, 1:] - matrix[:, :1], bias[1:] - bias[:1])
    )
    found = run(fmn(norm="linf"), keys(BATCH), one, images, labels.astype(np.int8))
    assert not np.any(found.is_right)
    np.testing.assert_allclose(lengths(found.images, images, "linf"), distances["linf"], rtol=1e-3)


def test_distances_are_no_larger_than_those_of_a_boundary_search():
    model, images = smooth_model(seed=2, scale=2.0), pixels(BATCH, seed=2)
    labels = np.asarray(attacks.predict(model(images)))
    for norm, epsilon in (("linf", 0.8), ("l2", 1.6)):
        ascent = attacks.pgd(norm=norm, epsilon=epsilon, alpha=2, num_steps=40, loss="lm", start="clean")
        boundary = run(attacks.on_boundary(ascent, placement="outside"), keys(BATCH), model, images, labels)
        found = run(fmn(norm=norm), keys(BATCH), model, images, labels)
        both = (boundary.hits > 0) & ~found.is_right
        assert both.sum() >= 5 and not np.any((boundary.hits > 0) & found.is_right)
        distance = lengths(found.images, images, norm)[both]
        assert np.all(distance <= boundary.distance[both] * 1.02)
        assert distance.mean() <= boundary.distance[both].mean()


@pytest.mark.slow
def test_vmap_over_radii_and_models_and_no_retrace_on_new_values():
    images, labels = pixels(BATCH), np.arange(BATCH) % 3
    models = [smooth_model(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    radii = jnp.array([0.1, 0.5])
    attack = fmn(norm="linf", num_steps=5)

    def at(model, radius):
        return attack.run(keys(BATCH), model, images, labels, epsilon=radius)

    together = jax.jit(jax.vmap(jax.vmap(at, (None, 0)), (0, None)))(stacked, radii)
    traced = None
    for row, model in enumerate(models):
        for column, radius in enumerate(radii):
            alone = run(attack, keys(BATCH), model, images, labels, epsilon=radius)
            for one, other in zip(together, alone, strict=True):
                np.testing.assert_allclose(one[row, column], other, atol=1e-5)
            traced = traced or compiled._cache_size()
    assert compiled._cache_size() == traced
    plain = attack.run(keys(BATCH), models[0], images, labels)
    for one, other in zip(plain, run(attack, keys(BATCH), models[0], images, labels), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "start"), [("l1", None), ("l0", pixels(BATCH, seed=3))])
def test_shard_map_equals_without(norm, start):
    images, labels, attack = pixels(BATCH), np.arange(BATCH) % 3, fmn(norm=norm, num_steps=3)
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    epsilon = np.linspace(0, 10, BATCH, dtype=np.float32)

    def attacked(logits_fn, key, images, labels, epsilon, start):
        return attack.run(key, logits_fn, images, labels, epsilon=epsilon, start=start)

    spread = functools.partial(jax.shard_map, check_vma=True)(
        attacked,
        mesh=Mesh(np.array(jax.devices()[:1]), ("data",)),
        in_specs=(everywhere, rows, rows, rows, rows, rows),
        out_specs=rows,
    )
    found = jax.jit(spread)(smooth_model(), keys(BATCH), images, labels, epsilon, start)
    alone = run(attack, keys(BATCH), smooth_model(), images, labels, epsilon=epsilon, start=start)
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l3"}, "norm is 'l3'; the norms of fmn are linf, l2, l1, l0"),
        ({"num_steps": 0}, "num_steps is 0; give a whole number from 1"),
        ({"epsilon": -1.0}, "epsilon is -1.0; give finite numbers from 0"),
        ({"step_size": 0.0}, "step_size is 0.0; give finite numbers above 0"),
        ({"step_size_final": float("nan")}, "step_size_final is nan"),
        ({"gamma": 1.0}, "gamma is 1.0; give a number below 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fmn(**settings)


def test_models_that_answer_at_random_and_bad_starts_are_refused():
    images, labels = pixels(BATCH), np.zeros(BATCH, np.int32)
    random = attacks.stochastic(lambda images, keys: images.reshape(BATCH, -1))
    with pytest.raises(ValueError, match="always answers alike"):
        fmn().run(keys(BATCH), random, images, labels)
    with pytest.raises(ValueError, match="start is"):
        fmn().run(keys(BATCH), smooth_model(), images, labels, start=images[:1])
    assert fmn(num_steps=30).passes == 60 + final_search.PASSES and fmn(norm="l0", num_steps=30).passes == 60
