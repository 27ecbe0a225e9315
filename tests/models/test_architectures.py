"""The published architectures: sizes, logits of their PyTorch originals, BatchNorm's arguments, dtypes, bad input."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_advtrain import models
from jax_advtrain.models import functional
from jax_advtrain.models.blocks import halves_of_same

CIFAR, IMAGENET = ((32, 32, 3), 10), ((224, 224, 3), 1000)
WRN = {"name": "wide_resnet", "depth": 10, "width": 1}
RESNET = {"name": "resnet", "width": 4}
PREACT = {"name": "preact_resnet", "width": 4}
BOTTLENECKS = RESNET | {"depth": 50, "stem": "imagenet"}
TRADES = {"name": "trades_cnn", "channels": (3, 4), "hidden": 5}
VIT = {"name": "vit", "patch_size": 4, "width": 12, "depth": 2, "heads": 3}
DEEPMIND = {"activation": "silu", "same_padding": True}
WITH_NORM = [WRN, PREACT | {"final_norm": True}, RESNET]
TINY = [*WITH_NORM, WRN | DEEPMIND, TRADES, VIT]


def named(argument):
    return "-".join(map(str, argument.values())) if isinstance(argument, dict) else None


def images(batch=8, shape=(16, 16, 3), seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(batch, *shape)), jnp.float32)


def abstract(config, num_classes, image_shape):
    """The network with shapes in place of weights."""
    return jax.eval_shape(lambda: models.create(config, num_classes, image_shape, 0))


def drawn(path, leaf):
    """Weights that depend on their name alone, of sizes that keep every layer's output of order one."""
    name = ".".join(key.key for key in path)
    rng, last = np.random.default_rng(zlib.crc32(name.encode())), path[-1].key
    if last in ("scale", "var"):
        return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
    size = np.sqrt(2 / np.prod(leaf.shape[:-1])) if last == "kernel" else 0.2
    return jnp.asarray(size * rng.normal(size=leaf.shape), jnp.float32)


def made(config, num_classes=3, image_shape=(16, 16, 3)):
    network = abstract(config, num_classes, image_shape)
    params, stats = (jax.tree_util.tree_map_with_path(drawn, tree) for tree in network[1:])
    return models.Network(network.graphdef, params, stats)


@pytest.mark.parametrize(
    ("config", "task", "published"),
    [
        ({"name": "trades_cnn"}, ((28, 28, 1), 10), 312_202),
        ({"name": "resnet", "stem": "imagenet"}, IMAGENET, 11_689_512),
        ({"name": "resnet", "stem": "imagenet", "depth": 50}, IMAGENET, 25_557_032),
        ({"name": "resnet"}, CIFAR, 11_173_962),
        ({"name": "resnet", "depth": 50}, CIFAR, 23_520_842),
        ({"name": "preact_resnet"}, CIFAR, 11_171_146),
        ({"name": "preact_resnet", "final_norm": True}, CIFAR, 11_172_170),
        ({"name": "wide_resnet", "width": 4}, CIFAR, 5_849_050),
        ({"name": "wide_resnet"}, CIFAR, 36_479_194),
        ({"name": "wide_resnet"} | DEEPMIND, CIFAR, 36_479_194),
        ({"name": "wide_resnet", "depth": 34}, CIFAR, 46_160_474),
        ({"name": "vit"}, IMAGENET, 22_050_664),
    ],
    ids=str,
)
def test_parameter_counts_are_the_published_ones(config, task, published):
    shape, classes = task
    params = abstract(config, classes, shape).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published


# What the PyTorch originals (RobustBench's classes, timm's VisionTransformer, TRADES' network rewritten), as small as
# ours, answer to two images with the weights of `drawn`; the last ResNet is RobustBench's with torchvision's stem.
@pytest.mark.parametrize(
    ("config", "shape", "expected"),
    [
        (TRADES, (21, 25, 1), [[0.0168, -0.0451, -0.2068], [-0.1557, 0.1323, -0.2964]]),
        (WRN | {"depth": 16}, (9, 8, 3), [[6.5681, 1.3225, 0.6396], [7.0395, 1.259, 0.2546]]),
        (
            WRN | DEEPMIND | {"width": 2, "padding": 2, "mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0)},
            (8, 12, 3),
            [[0.3959, -0.1664, 0.9978], [0.3806, -0.0768, 1.1921]],
        ),
        (PREACT, (9, 8, 3), [[-1.4273, 3.1519, -3.7339], [-2.9222, 2.3636, -6.5195]]),
        (PREACT | {"final_norm": True}, (9, 8, 3), [[-0.5146, 4.6116, -0.2172], [-0.9205, 4.0361, -2.6554]]),
        (PREACT | {"activated_shortcut": False}, (9, 8, 3), [[-1.9609, -0.4082, 1.6414], [-7.8823, -0.1959, 2.3366]]),
        (RESNET, (9, 8, 3), [[0.4105, 2.0844, 0.7994], [0.2266, 1.9822, 0.1623]]),
        (BOTTLENECKS, (33, 40, 3), [[715.4001, 969.8486, 779.7202], [767.4255, 963.0981, 763.7206]]),
        (VIT, (8, 12, 3), [[0.3173, -0.5406, 0.0286], [0.6459, 0.364, -0.6451]]),
    ],
    ids=named,
)
def test_logits_are_those_of_the_originals(config, shape, expected):
    logits = jax.jit(models.logits_fn(*made(config, 3, shape)))(images(2, shape))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def trained(network, x, mask, groups):
    return functional.apply(*network, x, train=True, mask=mask, groups=groups)


@pytest.mark.parametrize("config", [*WITH_NORM, BOTTLENECKS], ids=named)
def test_every_norm_gets_the_arguments(config, monkeypatch):
    calls = []

    def record(self, x, **given):
        calls.append((id(self), given["train"], given["mask"].shape, given["groups"]))
        return x

    monkeypatch.setattr(models.BatchNorm, "__call__", record)
    network = abstract(config, 3, (32, 32, 3))
    jax.eval_shape(lambda *a: trained((network.graphdef, *a), images(8, (32, 32, 3)), jnp.ones(8), 2)[0], *network[1:])
    norms = sum(path[-1].key == "mean" for path, _ in jax.tree_util.tree_leaves_with_path(network.batch_stats))
    assert len({call[0] for call in calls}) == len(calls) == norms
    assert {call[1:] for call in calls} == {(True, (8,), 2)}


def test_masks_drop_samples_and_groups_stand_alone():
    network, x = made(WRN), images()
    mask = jnp.asarray([1, 1, 0, 1, 1, 0, 1, 1], bool)

    @jax.jit
    def run(x, garbage):
        return trained(network, jnp.where(mask[:, None, None, None], x, garbage), mask, 2)

    logits, stats = run(x, 0.5)
    same_logits, same_stats = run(x, jnp.nan)
    np.testing.assert_array_equal(logits[mask], same_logits[mask])
    jax.tree.map(np.testing.assert_array_equal, stats, same_stats)
    other, _ = run(x.at[4:].multiply(0.5), 0.5)
    np.testing.assert_array_equal(logits[:4], other[:4])  # another group's images
    assert np.all(logits[4:] != other[4:])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), stats, network.batch_stats)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("config", TINY, ids=named)
def test_bfloat16_computes_narrow_and_keeps_weights_statistics_and_logits_wide(config):
    network = abstract(config | {"dtype": "bfloat16"}, 1, (16, 16, 3))
    logits, stats = jax.eval_shape(lambda *a: trained((network.graphdef, *a), images(4), None, 1), *network[1:])
    wide = jax.tree.leaves((network.params, network.batch_stats, stats, logits))
    assert {leaf.dtype for leaf in wide} == {jnp.dtype(jnp.float32)} and logits.shape == (4,)  # one logit
    program = jax.make_jaxpr(lambda *a: functional.apply(network.graphdef, *a)[0])(*network[1:], images(4))
    products = re.findall(r":(\w+)\[[^\]]*\] = (?:dot_general|conv_general_dilated)", str(program))
    attention = 2 if config is VIT else 0  # blocks; the scores are wide
    assert len(products) > attention == products.count("f32") and set(products) <= {"bf16", "f32"}


@pytest.mark.parametrize("config", [WRN, VIT], ids=named)
def test_bfloat16_is_close(config):
    wide, narrow = (made(config | {"dtype": dtype}) for dtype in (None, "bfloat16"))
    got, expected = (jax.jit(models.logits_fn(*network))(images(4)) for network in (narrow, wide))
    np.testing.assert_allclose(got, expected, rtol=0.1, atol=0.1)
    assert np.any(got != expected)


@pytest.mark.parametrize("config", TINY, ids=named)
def test_no_image(config):
    assert jax.eval_shape(models.logits_fn(*made(config)), images(0)).shape == (0, 3)


@pytest.mark.parametrize("config", [VIT, TRADES], ids=named)
def test_attacking_in_a_loop_under_shard_map(config):
    network = made(config)

    def attacked(params, x):
        logits_fn = models.logits_fn(network.graphdef, params, {})
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(logits_fn(x))))
        return jax.lax.fori_loop(0, 2, lambda _, x: x + 0.1 * gradient(x), x)

    mapped = jax.shard_map(
        attacked,
        mesh=jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        check_vma=True,
    )
    got, expected = (jax.jit(each)(network.params, images(4)) for each in (mapped, attacked))
    assert np.any(got != images(4))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_initial_weights_are_those_of_the_originals():
    def initial(config, *path):
        def leaf():
            tree = models.create(config, 3, (16, 16, 3), 0).params
            for name in path:
                tree = tree[name]
            return tree

        return jax.jit(leaf)()  # compiles that leaf alone

    kernel = initial(WRN | {"width": 4}, "block3_0", "conv2", "kernel")
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 256)), rtol=0.01)  # fan out
    kernel = initial(TRADES | {"channels": (32, 64)}, "conv4", "kernel")
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.02)  # fan in
    assert not np.any(initial(TRADES, "dense3", "kernel"))


def test_padding_called_same():
    assert [halves_of_same(size, 2) for size in (8, 7, 2, 1)] == [(0, 1), (1, 1), (0, 1), (1, 1)]
    assert halves_of_same(8, 1) == (1, 1)
    odd = made(WRN | DEEPMIND, 3, (7, 9, 3))  # the convolution and the shortcut agree
    assert jax.eval_shape(models.logits_fn(*odd), images(2, (7, 9, 3))).shape == (2, 3)


@pytest.mark.parametrize(
    ("config", "shape", "said"),
    [
        (RESNET | {"depth": 20}, (16, 16, 3), "model.depth = 20: expected one of 18, 34, 50, 101, 152"),
        (RESNET | {"stem": "mnist"}, (16, 16, 3), "model.stem = 'mnist': expected one of imagenet, cifar"),
        (RESNET | {"width": 0}, (16, 16, 3), "model.width = 0: expected a whole number >= 1"),
        (RESNET, (16, 16), "resnet takes images of shape (height, width, channels), not (16, 16)"),
        (RESNET | {"mean": (0.5, 0.5, 0.5)}, (16, 16, 1), "model.mean = (0.5, 0.5, 0.5)"),
        (PREACT | {"depth": 50}, (16, 16, 3), "model.depth = 50: expected one of 18, 34"),
        (PREACT | {"final_norm": 1}, (16, 16, 3), "model.final_norm = 1: expected True or False"),
        (WRN | {"depth": 29}, (16, 16, 3), "model.depth = 29: expected 10, 16, 22"),
        (WRN | {"depth": 4}, (16, 16, 3), "model.depth = 4: expected 10, 16, 22"),
        (WRN | {"padding": -1}, (16, 16, 3), "model.padding = -1: expected a whole number >= 0"),
        (WRN | {"activation": "gelu"}, (16, 16, 3), "model.activation = 'gelu': expected one of relu, silu"),
        (TRADES, (15, 28, 1), "trades_cnn takes images of 16x16 pixels and more, not 15x28"),
        (TRADES | {"channels": (4,)}, (16, 16, 1), "model.channels = (4,): expected two numbers"),
        (VIT, (30, 32, 3), "vit with model.patch_size = 4 takes images whose height and width it divides, not 30x32"),
        (VIT | {"patch_size": 16}, (8, 8, 3), "model.patch_size = 16"),
        (VIT | {"heads": 5}, (16, 16, 3), "model.width = 12: expected a multiple of model.heads = 5"),
        (VIT | {"depth": 2.0}, (16, 16, 3), "model.depth = 2.0: expected a whole number >= 1"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(config, shape, said):
    with pytest.raises(ValueError) as error:
        abstract(config, 3, shape)
    assert said in str(error.value) and "\n" not in str(error.value)
