"""Pooling agrees with XLA's own window maximum, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jax_advtrain.models.pooling import max_pool, mean_pool


def reference(x, window, stride, padding):
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), (padding, padding), (padding, padding), (0, 0)),
    )


@pytest.mark.parametrize("settings", [(2, 2, 0), (3, 2, 1), (3, 2, 0), (2, 1, 0), (3, 3, 0)], ids=str)
def test_agrees_with_reduce_window(settings):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 8, 3)), jnp.float32)

    def value_and_gradient(pool, x):
        value, pullback = jax.vjp(lambda x: pool(x, *settings), x)
        return value, *pullback(jnp.sin(value))

    got, expected = (jax.jit(partial(value_and_gradient, pool))(x) for pool in (max_pool, reference))
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-6)


def test_equal_maxima_share_the_gradient():
    for settings in ((2, 2), (2, 1)):
        gradient = jax.grad(lambda x, s=settings: max_pool(x, *s).sum())(jnp.ones((1, 2, 2, 1)))
        assert np.all(gradient > 0) and gradient.sum() == 1


def test_bfloat16_stays_and_the_mean_is_summed_wide():
    x = jnp.ones((1, 64, 64, 2), jnp.bfloat16)
    assert max_pool(x, 3, 2, padding=1).dtype == mean_pool(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(mean_pool(x).astype(float), 1.0)  # in bfloat16 the sum would stop at 256


def test_too_small():
    with pytest.raises(ValueError, match="images of 2x8 are smaller than the 3x3 window"):
        max_pool(jnp.zeros((1, 2, 8, 1)), 3, 2)
