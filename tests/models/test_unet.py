"""The U-Net: its layers against a second writing, sizes, deep supervision, bad input."""

import functools
import itertools
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain import models
from jax_advtrain.models import functional, unet
from jax_advtrain.models.weights_flat import flat

SMALL = {"name": "unet", "width": 4, "levels": 3}
SHAPES = {2: (8, 12, 2), 3: (8, 4, 12, 2)}


def images(shape, batch=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(batch, *shape)), jnp.float32)


def network_of(config, shape):
    """Weights drawn by their names with numpy: nothing is compiled."""
    template = jax.eval_shape(lambda: models.create(SMALL | config, 3, shape, 0))

    def drawn(path, leaf):
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        size = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.3
        return jnp.asarray(rng.normal(size=leaf.shape) * size + (path[-1].key == "scale"), jnp.float32)

    return template._replace(params=jax.tree_util.tree_map_with_path(drawn, template.params))


@functools.cache
def made(axes):
    """(image shape, network, its scores of `images`) in two or in three dimensions."""
    shape = SHAPES[axes]
    network = network_of({}, shape)
    return shape, network, jax.jit(models.logits_fn(*network))(images(shape))


def convolved(x, kernel, stride):
    """Cross-correlation with a rim of one zero, written with sums over slices, in float64."""
    axes = x.ndim - 2
    padded = np.pad(x, [(0, 0), *[(1, 1)] * axes, (0, 0)])
    total = 0.0
    for offset in np.ndindex(*[3] * axes):
        sides = [slice(at, at + n, stride) for at, n in zip(offset, x.shape[1:-1], strict=True)]
        total = total + padded[(slice(None), *sides)] @ kernel[offset]
    return total


def block(x, weights, stride):
    for number in (1, 2):
        x = convolved(x, weights[f"conv{number}"]["kernel"], stride if number == 1 else 1)
        places = tuple(range(1, x.ndim - 1))
        x = (x - x.mean(places, keepdims=True)) / np.sqrt(x.var(places, keepdims=True) + 1e-5)
        x = x * weights[f"norm{number}"]["scale"] + weights[f"norm{number}"]["bias"]
        x = np.where(x > 0, x, 0.01 * x)
    return x


def risen(x, weights):
    """Place p of the coarse image fills the places 2 p + offset of the fine one."""
    axes = x.ndim - 2
    features = weights["kernel"].shape[1] // 2**axes
    kernel, bias = weights["kernel"].reshape(-1, 2**axes, features), weights["bias"].reshape(2**axes, features)
    fine = np.zeros((len(x), *(2 * n for n in x.shape[1:-1]), features))
    for number, offset in enumerate(np.ndindex(*[2] * axes)):
        fine[(slice(None), *(slice(at, None, 2) for at in offset))] = x @ kernel[:, number] + bias[number]
    return fine


@pytest.mark.parametrize("axes", [2, 3])
def test_it_is_what_a_second_writing_gives(axes):
    shape, network, found = made(axes)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network.params)
    x = np.asarray(images(shape), np.float64)
    skips = [x := block(x, weights["down0"], 1)]
    skips += [x := block(x, weights[f"down{level}"], 2) for level in (1, 2)]
    for level in (1, 0):
        x = np.concatenate([skips[level], risen(x, weights[f"rise{level}"]["dense"])], axis=-1)
        x = block(x, weights[f"up{level}"], 1)
    expected = x @ weights["head0"]["kernel"] + weights["head0"]["bias"]
    assert found.shape == (3, *shape[:-1], 3) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_number_of_parameters(axes):
    shape, channels = SHAPES[axes], SHAPES[axes][-1]
    network = jax.eval_shape(lambda: models.create(SMALL, 3, shape, 0))
    widths = [4, 8, 16]

    def of_block(inputs, outputs):
        return 3**axes * (inputs + outputs) * outputs + 4 * outputs

    expected = of_block(channels, 4) + of_block(4, 8) + of_block(8, 16)
    for fine, coarse in itertools.pairwise(widths):
        expected += 2**axes * fine * (coarse + 1) + of_block(2 * fine, fine)
    expected += (4 + 1) * 3
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == expected
    assert network.batch_stats == {}


def test_widths_have_a_ceiling():
    network = jax.eval_shape(lambda: models.create(SMALL | {"max_width": 6}, 2, SHAPES[2], 0))
    assert [network.params[f"down{level}"]["conv2"]["kernel"].shape[-1] for level in range(3)] == [4, 6, 6]


def test_samples_do_not_see_each_other():
    shape, network, expected = made(2)
    x, mask = images(shape), jnp.array([True, True, False])

    @jax.jit
    def both(x):
        def of_the_second(x):
            trained, stats = functional.apply(*network, x, train=True, mask=mask)
            assert stats == {}
            return trained[1].sum(), trained

        return jax.value_and_grad(of_the_second, has_aux=True)(x)

    (_, trained), gradient = both(x)
    np.testing.assert_allclose(trained, expected, atol=1e-4)
    assert np.all(gradient[0] == 0) and np.any(gradient[1] != 0) and np.all(gradient[2] == 0)
    np.testing.assert_allclose(both(x.at[0].set(0.0))[0][1][1:], trained[1:], atol=1e-4)


def test_deep_supervision_gives_coarser_scores_in_training_only():
    shape, plain, expected = made(2)
    network = network_of({"deep_supervision": True}, shape)
    assert set(flat(network.params)) - set(flat(plain.params)) == {"head1.kernel", "head1.bias"}
    found, evaluated = jax.jit(
        lambda x: (functional.apply(*network, x, train=True)[0], functional.apply(*network, x)[0])
    )(images(shape))
    assert [part.shape for part in found] == [(3, *shape[:-1], 3), (3, *(side // 2 for side in shape[:-1]), 3)]
    for scores in (found[0], evaluated):
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_bfloat16_computes_near_float32():
    shape, _, expected = made(2)
    found = jax.jit(models.logits_fn(*network_of({"dtype": "bfloat16"}, shape)))(images(shape))
    assert found.dtype == jnp.float32 and not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.15 * float(jnp.abs(expected).max()))


def test_instance_norm_of_a_constant_is_its_bias():
    norm = unet.InstanceNorm(2)
    np.testing.assert_array_equal(norm(jnp.full((2, 3, 3, 2), 7.0)), jnp.zeros((2, 3, 3, 2)))


def test_weights_travel(tmp_path):
    shape, network = SHAPES[3], network_of({}, SHAPES[3])
    models.export(tmp_path / "net", SMALL, *network[1:], num_classes=3, image_shape=shape)
    read = models.read(tmp_path / "net").network
    assert read.graphdef == network.graphdef
    for name, leaf in flat(read.params).items():
        np.testing.assert_array_equal(leaf, flat(network.params)[name])


def test_which_networks_are_dense():
    assert models.is_dense("unet") and not models.is_dense("resnet")


@pytest.mark.parametrize(
    ("config", "shape", "classes", "said"),
    [
        ({"levels": 1}, (8, 8, 1), 2, "model.levels = 1: expected a whole number >= 2"),
        ({"width": 0}, (8, 8, 1), 2, "model.width = 0"),
        ({"deep_supervision": 1}, (8, 8, 1), 2, "model.deep_supervision = 1: expected True or False"),
        ({}, (8, 10, 1), 2, "takes sides that are multiples of 4, not (8, 10); set data.image_size"),
        ({}, (4, 4, 1), 2, "leaves one place of (4, 4); set fewer model.levels"),
        ({}, (8,), 2, "takes images (H, W, channels) or (H, W, D, channels), not (8,)"),
        ({}, (8, 8, 1), 1, "num_classes is 1, not 2 or more"),
        ({"mean": (0.1, 0.2)}, (8, 8, 1), 2, "model.mean"),
        ({"depth": 3}, (8, 8, 1), 2, "field 'depth' is not known"),
    ],
)
def test_bad_input_is_one_line(config, shape, classes, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        models.create(SMALL | config, classes, shape, 0)
    assert "\n" not in str(caught.value)
