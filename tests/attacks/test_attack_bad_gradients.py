"""Gradients that are zero, NaN, infinite or huge: never NaN pixels, never another sample's trouble, and counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_problems import keys, lengths, poisoned_problem, run, two_classes

from jax_advtrain import attacks

STEPS = 4


@pytest.mark.parametrize(
    ("norm", "start", "optimizer"),
    [
        ("linf", "clean", None),
        ("l2", "clean", None),
        ("linf", "given", None),
        ("linf", "clean", optax.adam(0.05)),
        ("l2", "clean", optax.adam(0.05)),
    ],
    ids=["linf", "l2", "given start", "adam linf", "adam l2"],
)
def test_bad_gradients_stay_where_they_are_and_are_counted(norm, start, optimizer):
    bad, good, images, labels, distances = poisoned_problem()
    epsilon = 1.5 * distances[norm]
    attack = attacks.pgd(norm=norm, epsilon=0.0, num_steps=STEPS, optimizer=optimizer, loss="lm", start="clean")
    still = images if start == "clean" else images + np.float32(0.01)
    found = run(attack, keys(8), bad, images, labels, epsilon=epsilon, start=still)
    healthy = run(attack, keys(8), good, images, labels, epsilon=epsilon, start=still)
    assert np.all(np.isfinite(found.images)) and np.all((found.images >= 0) & (found.images <= 1))
    assert np.all(lengths(found.images - images, norm) <= epsilon * (1 + 1e-5))
    np.testing.assert_array_equal(found.images[[0, 7]], healthy.images[[0, 7]])
    np.testing.assert_array_equal(found.zero_gradients, STEPS * np.array([0, 1, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(found.nonfinite_gradients, STEPS * np.array([0, 0, 1, 1, 1, 1, 0, 0]))
    np.testing.assert_array_equal(healthy.zero_gradients + healthy.nonfinite_gradients, 0)
    np.testing.assert_allclose(found.images[1:5], still[1:5], atol=1e-7)
    if optimizer is None:
        # A huge gradient has a direction all the same, and so have the healthy pixels beside one NaN.
        np.testing.assert_allclose(found.images[6], healthy.images[6], atol=1e-6)
        assert not found.is_right[6]
        rest = np.abs(np.asarray(found.images - still))[5].ravel()
        assert rest[0] < 1e-7 or norm == "l2"
        assert np.all(rest[1:] > 0)


def test_boundary_search_and_composed_attacks_report_the_counts():
    bad, good, images, labels, distances = poisoned_problem()
    epsilon = 1.5 * distances["l2"]
    ascent = attacks.pgd(norm="l2", epsilon=0.0, num_steps=STEPS, loss="lm", start="clean")
    for compact in (False, True):
        placed = run(attacks.on_boundary(ascent, compact=compact), keys(8), bad, images, labels, epsilon=epsilon)
        healthy = run(attacks.on_boundary(ascent, compact=compact), keys(8), good, images, labels, epsilon=epsilon)
        assert np.all(np.isfinite(placed.images)) and np.all(np.isfinite(placed.distance))
        np.testing.assert_array_equal(placed.images[[0, 7]], healthy.images[[0, 7]])
        np.testing.assert_array_equal(placed.zero_gradients, STEPS * np.array([0, 1, 0, 0, 0, 0, 0, 0]))
        np.testing.assert_array_equal(placed.nonfinite_gradients, STEPS * np.array([0, 0, 1, 1, 1, 1, 0, 0]))
    twice = run(attacks.worst_of(ascent, attacks.restarts(ascent, 2)), keys(8), bad, images, labels, epsilon=epsilon)
    np.testing.assert_array_equal(twice.zero_gradients, 3 * STEPS * np.array([0, 1, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(twice.nonfinite_gradients, 3 * STEPS * np.array([0, 0, 1, 1, 1, 1, 0, 0]))


def test_a_root_at_zero_pixels_is_a_real_source_of_infinite_gradients():
    weights, images = jnp.array([[1.0, -1.0], [2.0, 0.5]]), jnp.array([[0.0, 0.5], [0.5, 0.5], [0.3, 0.2]])
    attack = attacks.pgd(norm="l2", epsilon=0.1, num_steps=STEPS, start="clean")
    found = attack.run(jax.random.key(0), lambda x: jnp.sqrt(x) @ weights, images, jnp.array([0, 0, 0]))
    assert np.all(np.isfinite(found.images))
    np.testing.assert_array_equal(found.nonfinite_gradients > 0, [True, False, False])
    assert np.all(lengths(found.images - images, "l2") > 0.09)


def test_models_that_answer_nan_for_one_sample():
    logits_fn, images, labels, _ = two_classes()

    def broken(images):
        return logits_fn(images).at[2].set(jnp.nan)

    attack = attacks.pgd(norm="l2", epsilon=0.3, num_steps=STEPS, start="clean")
    for whole in (attack, attacks.restarts(attack, 2), attacks.worst_of(attack, attack)):
        found = run(whole, jax.random.key(0), jax.tree_util.Partial(broken), images, labels)
        assert np.all(np.isfinite(found.images))
        np.testing.assert_array_equal(np.isnan(found.score), np.arange(8) == 2)
        others = np.arange(8) != 2
        np.testing.assert_array_equal(found.nonfinite_gradients[others], 0)
        assert not np.any(np.asarray(found.is_right)[others])


def test_nan_logits_are_never_right():
    logits = jnp.array([[jnp.nan, 0.0], [1.0, 0.0], [0.0, jnp.nan]])
    assert attacks.is_right(logits, jnp.zeros(3, jnp.int32)).tolist() == [False, True, False]
    assert attacks.is_right(jnp.array([jnp.nan, -1.0]), jnp.zeros(2, jnp.int32)).tolist() == [False, True]
    assert attacks.predict(logits).tolist() == [-1, 0, -1]


def test_keys_that_do_not_draw_per_sample_are_refused():
    attack = attacks.pgd(norm="linf", epsilon=0.1, num_steps=1)
    with pytest.raises(ValueError, match="threefry2x32"):
        attack(jax.random.key(0, impl="rbg"), lambda x: x, jnp.full((2, 3), 0.5), jnp.zeros(2, jnp.int32))
