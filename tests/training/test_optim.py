"""The optimizer from config values: torch's rule for SGD, schedules, clipping, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_advtrain.training import optim


def settings(**changes):
    return {**optim.DEFAULTS, **changes}


def rate_by_step(steps, *, steps_per_epoch=10, epochs=10, **changes):
    schedule = optim.schedule(settings(**changes), steps_per_epoch=steps_per_epoch, epochs=epochs)
    return np.array([float(schedule(step)) for step in steps])


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 5e-4), (0.9, 5e-4)])
def test_sgd_is_torch_s_rule(momentum, weight_decay):
    """g += wd * w; v = g at the first step, later v = mu * v + g; w -= lr * v (the reference's README)."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    with jax.enable_x64(True):
        optimizer = optim.build(
            settings(name="sgd", learning_rate=0.1, momentum=momentum, weight_decay=weight_decay),
            steps_per_epoch=1,
            epochs=1,
        )
        ours = jax.tree.map(jnp.asarray, params)
        state = optimizer.init(ours)
        velocity: dict = {}
        for _ in range(5):
            gradient = {name: rng.normal(size=values.shape) for name, values in params.items()}
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, ours)
            ours = optax.apply_updates(ours, updates)
            for name in params:
                g = gradient[name] + weight_decay * params[name]
                velocity[name] = momentum * velocity[name] + g if name in velocity else g
                params[name] = params[name] - 0.1 * velocity[name]
        for name in params:
            np.testing.assert_allclose(ours[name], params[name], rtol=1e-12)


def test_piecewise_takes_each_value_from_its_epoch_on():
    found = rate_by_step(
        [0, 19, 20, 39, 40, 99], schedule="piecewise", learning_rate=0.1, boundaries=(2, 4), values=(0.03, 0.009)
    )
    np.testing.assert_allclose(found, [0.1, 0.1, 0.03, 0.03, 0.009, 0.009], rtol=1e-6)


def test_cosine_falls_to_zero_at_the_last_epoch():
    found = rate_by_step([0, 25, 50, 75, 100], schedule="cosine", learning_rate=0.2)
    np.testing.assert_allclose(found, 0.1 * (1 + np.cos(np.pi * np.linspace(0, 1, 5))), atol=1e-7)


def test_cyclic_is_one_triangle():
    found = rate_by_step([0, 20, 40, 70, 100, 101], schedule="cyclic", learning_rate=0.2, peak=0.4)
    np.testing.assert_allclose(found, [0, 0.1, 0.2, 0.1, 0, 0], atol=1e-7)
    at_once = rate_by_step([0, 50, 100], schedule="cyclic", learning_rate=0.2, peak=0.0)
    np.testing.assert_allclose(at_once, [0.2, 0.1, 0], atol=1e-7)
    to_the_end = rate_by_step([0, 50, 99], schedule="cyclic", learning_rate=0.2, peak=1.0)
    np.testing.assert_allclose(to_the_end, [0, 0.1, 0.198], atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_decay_of_kernels_only_leaves_biases_and_normalisation_alone(name):
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes = {}
    for kernels_only in (False, True):
        optimizer = optim.build(
            settings(name=name, momentum=0.0, learning_rate=0.1, weight_decay=0.5, decay_kernels_only=kernels_only),
            steps_per_epoch=1,
            epochs=1,
        )
        changes[kernels_only] = optimizer.update(zeros, optimizer.init(params), params)[0]
    assert all(np.allclose(leaf, -0.05) for leaf in jax.tree.leaves(changes[False]))
    np.testing.assert_allclose(changes[True]["dense"]["kernel"], -0.05, rtol=1e-6)
    for leaf in (changes[True]["dense"]["bias"], changes[True]["norm"]["scale"]):
        np.testing.assert_array_equal(leaf, 0)


def test_warmup_rises_linearly_and_then_the_schedule_holds():
    constant = rate_by_step([0, 10, 20, 30], learning_rate=0.1, warmup_epochs=2.0)
    np.testing.assert_allclose(constant, [0, 0.05, 0.1, 0.1], atol=1e-8)
    piecewise = rate_by_step(
        [0, 10, 20, 50], schedule="piecewise", learning_rate=0.1, boundaries=(5,), values=(0.01,), warmup_epochs=2.0
    )
    np.testing.assert_allclose(piecewise, [0, 0.05, 0.1, 0.01], atol=1e-8)
    cosine = rate_by_step([0, 10, 20, 60, 100], schedule="cosine", learning_rate=0.1, warmup_epochs=2.0)
    np.testing.assert_allclose(cosine, [0, 0.05, 0.1, 0.05, 0.0], atol=1e-8)


def first_update(gradient, **changes):
    params = jnp.zeros_like(gradient)
    optimizer = optim.build(
        settings(name="sgd", learning_rate=1.0, momentum=0.0, **changes), steps_per_epoch=1, epochs=1
    )
    return optimizer.update(gradient, optimizer.init(params), params)[0]


def test_clip_norm_shortens_long_gradients_only():
    gradient = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(first_update(gradient, clip_norm=1.0), [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(first_update(gradient, clip_norm=10.0), -gradient)
    np.testing.assert_array_equal(first_update(gradient), -gradient)


def test_adam_with_weight_decay_is_decoupled():
    params, gradient = jnp.array([2.0, -1.0]), jnp.array([0.5, 0.5])
    updates = []
    for weight_decay in (0.0, 0.1):
        optimizer = optim.build(settings(learning_rate=1e-2, weight_decay=weight_decay), steps_per_epoch=1, epochs=1)
        updates.append(optimizer.update(gradient, optimizer.init(params), params)[0])
    np.testing.assert_allclose(updates[1] - updates[0], -1e-2 * 0.1 * params, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "adams"}, "adam"),
        ({"schedule": "cosin"}, "cosine"),
        ({"schedule": "piecewise", "boundaries": (1, 2), "values": (0.1,)}, "as many values"),
        ({"schedule": "piecewise", "boundaries": (2, 1), "values": (0.1, 0.2)}, "rising"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"schedule": "cyclic", "peak": 1.5}, "optimizer.peak is 1.5"),
        ({"schedule": "cyclic", "warmup_epochs": 1.0}, "cyclic rises by itself"),
    ],
)
def test_bad_values_are_named(changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        optim.build(settings(**changes), steps_per_epoch=1, epochs=1)
    assert "\n" not in str(caught.value)
