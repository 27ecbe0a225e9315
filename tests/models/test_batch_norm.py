"""BatchNorm: masks drop samples, groups stand alone, running averages follow, nothing becomes NaN."""

from functools import partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_advtrain.models import create, functional
from jax_advtrain.models.batch_norm import BatchNorm

SHAPE = (8, 5, 4, 3)


def batch(seed=0, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).normal(2.0, 3.0, shape), jnp.float32)


def layer():
    norm = BatchNorm(3)
    norm.scale[...] = jnp.asarray([1.0, 2.0, 0.5])
    norm.bias[...] = jnp.asarray([0.0, -1.0, 3.0])
    norm.mean[...] = jnp.asarray([0.1, 0.2, 0.3])
    norm.var[...] = jnp.asarray([0.5, 1.0, 2.0])
    return functional.split(norm)


@partial(jax.jit, static_argnames=("train", "groups"))
def run(x, train=True, **settings):
    """Output and new statistics of the same layer."""
    graphdef, params, stats = layer()
    norm = nnx.merge(graphdef, params, stats, copy=True)
    return norm(x, train=train, **settings), nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))


def assert_close(got, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected)


@pytest.mark.parametrize("train", [True, False])
def test_agrees_with_flax(train):
    _, params, stats = layer()
    theirs = linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    expected, updates = theirs.apply(
        {"params": params, "batch_stats": stats}, batch(), mutable=["batch_stats"] if train else ["nothing"]
    )
    got, new = run(batch(), train=train)
    assert_close(got, expected)
    if not train:
        assert_close(new, stats, 0.0)
        return
    assert_close(new["mean"], updates["batch_stats"]["mean"])
    count = 8 * 5 * 4  # flax keeps the biased variance, we the unbiased one
    biased = (updates["batch_stats"]["var"] - 0.9 * stats["var"]) / 0.1
    assert_close(new["var"], 0.9 * stats["var"] + 0.1 * biased * count / (count - 1))


@pytest.mark.parametrize("garbage", [0.0, 1e6, np.nan])
def test_a_mask_equals_dropping_the_samples(garbage):
    mask = jnp.asarray([1, 0, 1, 1, 0, 1, 0, 1], jnp.float32)
    kept = np.flatnonzero(mask)
    x = jnp.where(mask[:, None, None, None] > 0, batch(), garbage)
    got, new = run(x, mask=mask)
    expected, expected_new = run(x[kept])
    assert_close(got[kept], expected)
    assert_close(new, expected_new)


def test_masked_samples_get_no_say_in_the_gradient():
    mask = jnp.asarray([1, 0, 1, 1, 0, 1, 0, 1], bool)
    kept = np.flatnonzero(mask)

    def loss(x, mask):
        y = jnp.sin(run(x, mask=mask)[0])
        return jnp.sum(y if mask is None else jnp.where(mask[:, None, None, None], y, 0))

    got = jax.grad(loss)(batch(), mask)
    assert_close(got[kept], jax.grad(loss)(batch()[kept], None))
    assert np.all(got[np.flatnonzero(~mask)] == 0)


def test_groups_equal_separate_calls_and_the_averages_move_by_their_mean():
    mask = jnp.asarray([1, 1, 0, 1, 1, 0, 1, 1], bool)
    got, new = run(batch(), mask=mask, groups=4)
    parts = [run(batch()[start : start + 2], mask=mask[start : start + 2]) for start in range(0, 8, 2)]
    assert_close(got, jnp.concatenate([output for output, _ in parts]))
    assert_close(new, jax.tree.map(lambda *stats: sum(stats) / 4, *[stats for _, stats in parts]))


def test_an_empty_group_is_finite_and_moves_nothing():
    mask = jnp.asarray([0, 0, 0, 0, 1, 1, 1, 0], bool)
    got, new = run(batch(), mask=mask, groups=2)
    assert_close(got[:4], run(batch()[:4], train=False)[0])  # by the running averages
    _, half = run(batch()[4:7])
    stats = layer().batch_stats
    assert_close(new, jax.tree.map(lambda old, moved: (old + moved) / 2, stats, half))

    nothing = jnp.zeros(8, bool)
    got, new = run(batch(), mask=nothing, groups=2)
    assert_close(new, stats, 0.0)  # bit for bit
    gradient = jax.grad(lambda x: jnp.sum(run(x, mask=nothing, groups=2)[0] ** 2))(batch())
    assert np.all(np.isfinite(got)) and np.all(np.isfinite(gradient))


def test_one_valid_number_and_constant_channels_are_finite():
    x = jnp.ones((2, 3), jnp.float32)
    got, new = run(x, mask=jnp.asarray([True, False]))
    gradient = jax.grad(lambda x: jnp.sum(run(x)[0] ** 2))(x)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((got, new, gradient)))


def test_statistics_are_float32_for_bfloat16_input():
    x = (1000 + batch()).astype(jnp.bfloat16)  # in bfloat16 the variance around 1000 would be lost
    got, new = run(x)
    expected, expected_new = run(x.astype(jnp.float32))
    assert got.dtype == jnp.bfloat16 and {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    assert_close(new, expected_new)
    assert_close(got.astype(jnp.float32), expected, 2e-2)


def test_under_shard_map_one_device_gives_what_no_device_gives():
    mask = jnp.asarray([1, 1, 0, 1, 1, 0, 1, 1], bool)
    graphdef, params, stats = layer()

    def per_device(params, stats, x, mask):
        norm = nnx.merge(graphdef, params, stats, copy=True)
        y = norm(x, train=True, mask=mask, groups=4)
        new = nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))
        return y, jax.tree.map(lambda leaf: jax.lax.pmean(leaf, "data"), new)

    mapped = jax.shard_map(
        per_device,
        mesh=jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=(P(), P(), P("data"), P("data")),
        out_specs=(P("data"), P()),
        check_vma=True,
    )
    assert_close(jax.jit(mapped)(params, stats, batch(), mask), run(batch(), mask=mask, groups=4))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"groups": 3}, "batch of 8 samples"), ({"mask": np.ones(7)}, "(7,)"), ({"groups": 0}, "0 groups")],
)
def test_bad_input(settings, said):
    with pytest.raises(ValueError) as error:
        run(batch(), **settings)
    assert said in str(error.value)


def test_training_leaves_numpy_averages_alone():
    network = create({"name": "small_cnn", "channels": (4,), "hidden": (), "batch_norm": True}, 3, (6, 6, 1), 0)
    averages = jax.tree.map(lambda leaf: np.array(leaf), network.batch_stats)
    before = jax.tree.map(np.copy, averages)
    images = jnp.ones((4, 6, 6, 1)) * jnp.linspace(0, 1, 4)[:, None, None, None]
    _, after = functional.apply(network.graphdef, network.params, averages, images, train=True)
    jax.tree.map(np.testing.assert_array_equal, averages, before)
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True))
