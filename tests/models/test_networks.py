"""The networks by name: sizes, parity with the reference's weights, pure functions, one compilation."""

import doctest
import inspect
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_advtrain import models
from jax_advtrain.models import batch_norm, convolution, functional, layers, registry

SMALL = {"name": "small_cnn", "channels": (4, 6), "hidden": (8,)}
TINY = {"name": "mlp", "hidden": (8,)}


def images(batch=6, shape=(14, 14, 1), seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(batch, *shape)), dtype)


def test_parameter_counts():
    def count(config, shape=(28, 28, 1), classes=10):
        params = jax.eval_shape(lambda: models.create(config, classes, shape, 0).params)
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    assert count({"name": "small_cnn"}) == 421_642
    assert count({"name": "small_cnn", "batch_norm": True}) == 421_642 + 32 + 64  # scale and bias for the bias
    assert count({"name": "mlp"}) == 784 * 48 + 48 + 48 * 32 + 32 + 32 * 10 + 10
    assert count({"name": "mlp", "hidden": ()}, (2,), 1) == 3


# reference name -> (config, weights of the reference in our layers, classes)
REFERENCES = {
    "mlp": ({"name": "mlp"}, {f"dense{i}": (f"w{i}", f"b{i}") for i in range(3)}, 10),
    "bin": ({"name": "mlp", "hidden": [32]}, {f"dense{i}": (f"w{i}", f"b{i}") for i in range(2)}, 1),
    "cnn": (
        {"name": "small_cnn", "channels": [8, 16], "hidden": []},
        {"conv0": ("conv0_w", "conv0_b"), "conv1": ("conv1_w", "conv1_b"), "dense0": ("dense_w", "dense_b")},
        10,
    ),
}


def reference_logits(file, name, dtype, lowering="auto"):
    """Our logits by the reference's weights, and the reference's."""
    config, names, classes = REFERENCES[name]
    config = config | ({"lowering": lowering} if name == "cnn" else {})
    network = jax.eval_shape(lambda: models.create(config, classes, (14, 14, 1), 0))  # no weights are drawn
    params = {
        layer: {"kernel": file[f"{name}_{kernel}"].astype(dtype), "bias": file[f"{name}_{bias}"].astype(dtype)}
        for layer, (kernel, bias) in names.items()
    }
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, network.params)
    logits = jax.jit(models.logits_fn(network.graphdef, params, {}))(jnp.asarray(file["x"], dtype))
    return logits, file[f"{name}_logits_{'f64' if dtype == np.float64 else 'f32'}"]


@pytest.mark.parametrize(
    ("name", "lowering"),
    [("mlp", ""), ("bin", ""), *[("cnn", each) for each in ("auto", "direct", "flipped", "patches")]],
)
def test_logits_by_the_reference_weights(reference_dir, name, lowering):
    got, expected = reference_logits(np.load(reference_dir / "models.npz"), name, np.float32, lowering)
    assert got.shape == expected.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_logits_by_the_reference_weights_in_float64(reference_dir):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np; import test_networks as t\n"
        "file = np.load(sys.argv[2])\n"
        "for name, lowering in (('mlp', ''), ('bin', ''), ('cnn', 'flipped'), ('cnn', 'patches')):\n"
        "    got, expected = t.reference_logits(file, name, np.float64, lowering)\n"
        "    assert got.dtype == np.float64, got.dtype\n"
        "    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__), str(reference_dir / "models.npz")],
        env=os.environ | {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("config", [SMALL, SMALL | {"batch_norm": True}, TINY], ids=str)
def test_two_checkpoints_compile_once(config):
    traces = []

    @jax.jit
    def gradient(logits_fn, x):
        traces.append(1)
        return jax.grad(lambda x: logits_fn(x).sum())(x)

    first, second = (models.create(config, 10, (14, 14, 1), seed) for seed in (0, 1))
    x = images()
    one, other = (gradient(models.logits_fn(*network), x) for network in (first, second))
    assert len(traces) == 1
    assert np.abs(one - other).max() > 1e-3
    # weights are arguments and not constants of the program
    constants = jax.make_jaxpr(lambda fn, x: fn(x))(models.logits_fn(*first), x).consts
    assert sum(np.size(constant) for constant in constants) == 0


def test_weights_are_plain_dicts_that_depend_on_the_seed_alone():
    network, again, other = (models.create(SMALL | {"batch_norm": True}, 10, (14, 14, 1), seed) for seed in (0, 0, 1))

    def assert_plain(tree):
        for value in tree.values():
            assert_plain(value) if type(value) is dict else None
            assert type(value) is dict or isinstance(value, jax.Array)

    assert_plain(network.params)
    assert_plain(network.batch_stats)
    assert set(network.batch_stats) == {"norm0", "norm1"} and models.create(SMALL, 10, (14, 14, 1), 0).batch_stats == {}
    assert all(isinstance(path[-1].key, str) for path, _ in jax.tree_util.tree_leaves_with_path(network.params))
    assert network.graphdef == again.graphdef == other.graphdef
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), network.params, again.params)
    assert all(jax.tree.leaves(same))
    assert np.any(network.params["conv0"]["kernel"] != other.params["conv0"]["kernel"])


def test_lowerings_give_one_network():
    def loss_and_gradients(lowering):
        network = models.create(SMALL | {"lowering": lowering}, 10, (14, 14, 1), 0)

        def loss(params, x):
            return jnp.sum(jnp.sin(functional.apply(network.graphdef, params, {}, x)[0]))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(network.params, images())

    expected = loss_and_gradients("direct")
    for lowering in ("auto", "flipped", "patches"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            loss_and_gradients(lowering),
            expected,
        )


def test_training_under_shard_map_with_a_loop_inside():
    network = models.create(SMALL | {"batch_norm": True}, 10, (14, 14, 1), 0)
    x, mask = images(8), jnp.asarray([1, 1, 1, 0, 1, 1, 0, 0], bool)

    def loss(params, stats, x, mask):
        def step(_, moved):
            return moved + 0.1 * jnp.sign(
                jax.grad(lambda x: models.logits_fn(network.graphdef, params, stats)(x).sum())(moved)
            )

        moved = jax.lax.stop_gradient(jax.lax.fori_loop(0, 2, step, x))
        logits, new = functional.apply(network.graphdef, params, stats, moved, train=True, mask=mask, groups=4)
        return jnp.sum(jnp.where(mask, jnp.sin(logits).sum(-1), 0)), new

    def per_device(params, stats, x, mask):
        def global_loss(params):
            value, new = loss(params, stats, x, mask)
            return jax.lax.psum(value, "data"), jax.tree.map(lambda leaf: jax.lax.pmean(leaf, "data"), new)

        return jax.value_and_grad(global_loss, has_aux=True)(params)

    mapped = jax.shard_map(
        per_device,
        mesh=jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=(P(), P(), P("data"), P("data")),
        out_specs=P(),
        check_vma=True,
    )
    expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(network.params, network.batch_stats, x, mask)
    got = jax.jit(mapped)(network.params, network.batch_stats, x, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, expected)


def test_apply_keeps_the_structure_of_batch_stats_and_moves_them_in_training_only():
    network = models.create(SMALL | {"batch_norm": True}, 10, (14, 14, 1), 0)
    _, same = functional.apply(*network, images())
    assert same is network.batch_stats
    before = jax.tree.map(np.array, network.batch_stats)
    _, moved = functional.apply(*network, images(), train=True, groups=2)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), moved) == jax.tree.map(lambda a: (a.shape, a.dtype), before)
    assert np.any(moved["norm0"]["mean"] != before["norm0"]["mean"])
    jax.tree.map(np.testing.assert_array_equal, network.batch_stats, before)  # the given ones are left alone
    logits, none = functional.apply(*models.create(SMALL, 10, (14, 14, 1), 0), images(), train=True, mask=jnp.ones(6))
    assert none == {} and logits.shape == (6, 10)


def test_evaluation_does_not_depend_on_the_batch():
    network = models.create(SMALL | {"batch_norm": True}, 10, (14, 14, 1), 0)
    logits_fn = jax.jit(models.logits_fn(*network))
    np.testing.assert_allclose(logits_fn(images())[2:3], logits_fn(images()[2:3]), rtol=1e-5, atol=1e-6)
    assert logits_fn(images(0)).shape == (0, 10)
    per_image = jax.vmap(lambda x: logits_fn(x[None])[0])(images())
    np.testing.assert_allclose(per_image, logits_fn(images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [SMALL, TINY], ids=str)
def test_normalisation_is_inside(config):
    shape = (8, 8, 3)
    x, mean, std = images(4, shape), (0.1, 0.2, 0.3), [0.5, 1.0, 2.0]
    plain = models.create(config, 10, shape, 0)
    inside = models.create(config | {"mean": mean, "std": std}, 10, shape, 0)
    outside = models.logits_fn(*plain)((x - jnp.asarray(mean)) / jnp.asarray(std))
    np.testing.assert_allclose(models.logits_fn(*inside)(x), outside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, TINY], ids=str)
def test_bfloat16_computes_narrow_and_keeps_weights_and_logits_wide(config):
    narrow, wide = (models.create(config | {"dtype": dtype}, 10, (14, 14, 1), 0) for dtype in ("bfloat16", None))
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {jnp.dtype(jnp.float32)}
    logits = models.logits_fn(*narrow)(images())
    assert logits.dtype == jnp.float32
    gap = np.abs(logits - models.logits_fn(*wide)(images())).max()
    assert 0 < gap < 0.1
    gradient = jax.jit(jax.grad(lambda x: models.logits_fn(*narrow)(x).sum()))(images())
    assert gradient.dtype == jnp.float32 and np.all(np.isfinite(gradient))


def test_one_logit_is_squeezed_and_points_are_taken():
    network = models.create({"name": "mlp", "hidden": (16,)}, 1, (2,), 0)
    assert models.logits_fn(*network)(images(5, (2,))).shape == (5,)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "smal_cnn"}, ["'smal_cnn'", "did you mean 'small_cnn'", "mlp, preact_resnet, resnet, small_cnn"]),
        ({"name": 3}, ["3", "valid: mlp, preact_resnet", "a class of your own: module.Class"]),
        ({}, ["no name", "mlp, preact_resnet"]),
        ({"name": "mlp", "hiden": (3,)}, ["'hiden'", "did you mean 'hidden'", "hidden, mean, std, dtype"]),
        ({"name": "mlp", "rngs": 3}, ["'rngs'"]),
        ({"name": "mlp", "image_shape": (3,)}, ["'image_shape'"]),
        ({"name": "mlp", "hidden": 32}, ["model.hidden = 32", "whole numbers"]),
        ({"name": "mlp", "hidden": "32"}, ["model.hidden = '32'"]),
        ({"name": "small_cnn", "channels": (32, 0)}, ["model.channels = (32, 0)"]),
        ({"name": "small_cnn", "channels": 32}, ["model.channels = 32"]),
        ({"name": "small_cnn", "batch_norm": "no"}, ["model.batch_norm = 'no'", "True or False"]),
        ({"name": "small_cnn", "mean": (0.1, 0.2)}, ["model.mean = (0.1, 0.2)", "one a channel"]),
        ({"name": "small_cnn", "std": 0.0}, ["model.std = 0.0", "> 0"]),
        ({"name": "small_cnn", "std": float("nan")}, ["model.std = nan", "finite"]),
        ({"name": "small_cnn", "dtype": "int8"}, ["model.dtype = 'int8'", "bfloat16"]),
        ({"name": "small_cnn", "dtype": "half-ish"}, ["model.dtype"]),
        ({"name": "small_cnn", "lowering": "fast"}, ["model.lowering = 'fast'", "auto, direct, flipped, patches"]),
    ],
    ids=str,
)
def test_bad_config_is_one_clear_line(config, said):
    with pytest.raises(ValueError) as error:
        models.create(config, 10, (28, 28, 1), 0)
    message = str(error.value)
    assert "\n" not in message
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, (28, 28, 1)), "num_classes = 0"),
        ((10, (28, 28)), "(height, width, channels)"),
        ((10, ()), "image_shape"),
        ((10, (28, 0, 1)), "image_shape"),
    ],
)
def test_bad_shapes_and_classes(arguments, said):
    with pytest.raises(ValueError) as error:
        models.create({"name": "small_cnn"}, *arguments, 0)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": jnp.zeros((4, 14, 14, 1), jnp.uint8)}, "uint8"),
        ({"mask": jnp.ones(3)}, "(3,)"),
        ({"groups": 4}, "groups = 4"),
    ],
)
def test_bad_calls(settings, said):
    network = models.create(SMALL, 10, (14, 14, 1), 0)
    settings = {"images": images(6), "train": True} | settings
    with pytest.raises(ValueError) as error:
        functional.apply(*network, **settings)
    assert said in str(error.value)


def test_docstring_examples():
    for module in (batch_norm, convolution, functional, layers, registry):
        names = {"jax": jax, "jnp": jnp, "create": models.create} | dict(inspect.getmembers(module))
        assert doctest.testmod(module, extraglobs=names).failed == 0
