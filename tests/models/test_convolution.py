"""The lowerings of the convolution are one function: value and both gradients, wherever attacks may put them."""

import itertools
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_advtrain.models.convolution import LOWERINGS, conv2d, conv_lowering

# (height, width), kernel (rows, columns, in, out), strides, padding; odd sizes, unequal strides and paddings,
# a padding larger than the kernel, pixels that no patch covers
CASES = [
    ((8, 8), (3, 3, 2, 4), (1, 1), ((1, 1), (1, 1))),
    ((8, 8), (3, 3, 2, 4), (2, 2), ((1, 1), (1, 1))),
    ((7, 9), (3, 3, 2, 4), (2, 2), ((1, 1), (1, 1))),
    ((7, 9), (3, 2, 3, 1), (1, 2), ((0, 1), (2, 0))),
    ((9, 8), (5, 3, 1, 3), (3, 1), ((0, 0), (0, 0))),
    ((6, 6), (1, 1, 3, 2), (2, 2), ((0, 0), (0, 0))),
    ((5, 5), (2, 2, 1, 2), (2, 3), ((3, 2), (2, 3))),
    ((7, 9), (3, 4, 2, 3), (3, 4), ((0, 0), (0, 0))),  # tiles, with a rest
]


def problem(size, kernel_shape, strides, padding, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, *size, kernel_shape[2])), dtype)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), dtype)
    return images, kernel, strides, padding


@partial(jax.jit, static_argnums=(0, 3, 4))
def value_and_gradients(lowering, images, kernel, strides, padding):
    def loss(images, kernel):
        out = conv2d(images, kernel, strides=strides, padding=padding, lowering=lowering)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(images, kernel)
    return out, *gradients


def assert_same(got, expected, tolerance):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("lowering", ["flipped", "patches"])
def test_lowerings_are_equal_in_value_and_both_gradients(lowering, case):
    arguments = problem(*case)
    expected = value_and_gradients("direct", *arguments)
    assert_same(value_and_gradients(lowering, *arguments), expected, 2e-5)


def test_direct_agrees_with_a_sum_over_patches():
    images, kernel, strides, padding = problem(*CASES[3])
    padded = np.pad(np.asarray(images), ((0, 0), *padding, (0, 0)))
    out = conv2d(images, kernel, strides=strides, padding=padding, lowering="direct")
    for row, column in itertools.product(range(out.shape[1]), range(out.shape[2])):
        patch = padded[:, row : row + 3, 2 * column : 2 * column + 2]
        np.testing.assert_allclose(out[:, row, column], np.einsum("brcx,rcxf->bf", patch, kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lowering", ["flipped", "patches"])
def test_bfloat16(lowering):
    arguments = problem(*CASES[1], dtype=jnp.bfloat16)
    assert_same(value_and_gradients(lowering, *arguments), value_and_gradients("direct", *arguments), 0.1)


@partial(jax.jit, static_argnums=(0, 3, 4))
def ascent(lowering, images, kernel, strides, padding):
    def step(_, x):
        return x + 0.1 * value_and_gradients(lowering, x, kernel, strides, padding)[1]

    return jax.lax.fori_loop(0, 3, step, images)


@pytest.mark.parametrize("lowering", ["flipped", "patches"])
def test_inside_a_loop(lowering):
    arguments = problem(*CASES[2])
    expected, got = (ascent(name, *arguments) for name in ("direct", lowering))
    assert_same(got, expected, 1e-4)
    # through the loop as well, which needs the gradient of the written input gradient
    expected, got = (
        jax.grad(lambda k, name=name: ascent(name, arguments[0], k, *arguments[2:]).sum())(arguments[1])
        for name in ("direct", lowering)
    )
    assert_same(got, expected, 1e-3)


@pytest.mark.parametrize("lowering", ["flipped", "patches"])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_under_vmap(lowering, axes):
    images, kernel, strides, padding = problem(*CASES[1])
    images = jnp.stack([images, 2 * images]) if axes[0] == 0 else images
    kernel = jnp.stack([kernel, -kernel]) if axes[1] == 0 else kernel
    expected, got = (
        jax.vmap(lambda x, k, name=name: value_and_gradients(name, x, k, strides, padding), axes)(images, kernel)
        for name in ("direct", lowering)
    )
    assert_same(got, expected, 2e-5)


def check_under_shard_map(lowering, tolerance, dtype=jnp.float32):
    images, kernel, strides, padding = problem(*CASES[1], dtype=dtype)

    def loss(images, kernel):
        moved = ascent(lowering, images, kernel, strides, padding)
        return jnp.sum(jnp.sin(conv2d(moved, kernel, strides=strides, padding=padding, lowering=lowering)))

    mapped = jax.shard_map(
        lambda images, kernel: jax.grad(loss, (0, 1))(images, kernel),
        mesh=jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=(P("data"), P()),
        # refused for the kernel's gradient unless JAX knows that it is the same on every device: the sum over them
        out_specs=(P("data"), P()),
        check_vma=True,
    )
    assert_same(jax.jit(mapped)(images, kernel), jax.jit(jax.grad(loss, (0, 1)))(images, kernel), tolerance)


@pytest.mark.parametrize("lowering", ["direct", "flipped", "patches"])
def test_under_shard_map(lowering):
    check_under_shard_map(lowering, 1e-3)


@pytest.mark.slow
def test_float64_and_four_devices():
    # both are settings of the whole process
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import jax, jax.numpy as jnp, test_convolution as t\n"
        "assert jax.device_count() == 4\n"
        "for case in t.CASES[1:4]:\n"
        "    arguments = t.problem(*case, dtype=jnp.float64)\n"
        "    expected = t.value_and_gradients('direct', *arguments)\n"
        "    assert expected[0].dtype == jnp.float64\n"
        "    for lowering in ('flipped', 'patches'):\n"
        "        t.assert_same(t.value_and_gradients(lowering, *arguments), expected, 1e-12)\n"
        "for lowering in t.LOWERINGS:\n"
        "    t.check_under_shard_map(lowering, 1e-10, jnp.float64)\n"
    )
    settings = {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    run = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_what_runs_inside_a_loop_is_not_the_slow_form():
    images, kernel, strides, padding = problem((32, 32), (3, 3, 64, 64), (1, 1), ((1, 1), (1, 1)))

    def compiled(lowering):
        gradient = jax.grad(lambda x, k: conv2d(x, k, strides=strides, padding=padding, lowering=lowering).sum())
        loop = jax.jit(lambda x, k: jax.lax.fori_loop(0, 3, lambda _, x: x + gradient(x, k), x))
        return loop.lower(images, kernel).compile().as_text()

    if jax.default_backend() != "cpu":
        pytest.skip("the slow form is XLA:CPU's")
    assert "_01oi->" not in compiled("auto")
    # when this line fails XLA has learnt it, and the lowerings are worth measuring again
    assert "_01oi->" in compiled("direct")


def test_the_platform_decides():
    assert {conv_lowering((3, 3, 64, 64), (1, 1), platform) for platform in ("gpu", "tpu")} == {"direct"}
    assert conv_lowering((3, 3, 64, 64), (1, 1), "cpu") == "flipped"
    assert conv_lowering((3, 3, 64, 64), (2, 2), "cpu") == "patches"
    assert conv_lowering((3, 3, 3, 64), (1, 1), "cpu") == "patches"
    assert set(LOWERINGS) == {"direct", "flipped", "patches"}


@pytest.mark.parametrize(
    ("images", "kernel", "lowering", "said"),
    [
        ((2, 8, 8), (3, 3, 1, 4), "auto", "expected (batch, height, width, channels)"),
        ((2, 8, 8, 3), (3, 3, 1, 4), "auto", "(2, 8, 8, 3)"),
        ((2, 2, 8, 1), (3, 3, 1, 4), "auto", "smaller than the 3x3 kernel"),
        ((2, 8, 8, 1), (3, 3, 1, 4), "fast", "valid: auto, direct, flipped, patches"),
    ],
)
def test_bad_input(images, kernel, lowering, said):
    with pytest.raises(ValueError) as error:
        conv2d(jnp.zeros(images), jnp.zeros(kernel), lowering=lowering)
    assert said in str(error.value)
