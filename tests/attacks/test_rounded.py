"""Images stored in 8 bits: rounding that stays in the ball, and the verdict on the rounded image."""

import jax.numpy as jnp
import numpy as np
import pytest
from toy_problems import keys, lengths, right_labels, run, same_bits, smooth_model, two_classes

from jax_advtrain import attacks
from jax_advtrain.attacks.rounded import round_in_ball, rounded

BATCH, CLASSES = 16, 4
LABELS = np.arange(BATCH) % CLASSES


def pgd(**settings):
    return attacks.pgd(**{"epsilon": 0.15, "num_steps": 2} | settings)


def model(scale=2.0):
    return smooth_model(scale=scale, classes=CLASSES)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("on_grid", [True, False])
def test_rounding_stays_in_the_ball_and_near(norm, on_grid):
    random, levels, batch = np.random.default_rng(0), 255, 40
    clean = random.uniform(size=(batch, 30))
    clean = (np.round(clean * levels) / levels if on_grid else clean).astype(np.float32)
    noise = random.normal(size=clean.shape)
    # From far below one level to many; whole levels too, and on every second sample few pixels.
    noise *= (10.0 ** random.uniform(-3, 1, size=(batch, 1)) / levels) * (random.uniform(size=clean.shape) < 0.7)
    noise[::4] = np.round(noise[::4] * levels) / levels
    found = np.clip(clean + noise, 0, 1).astype(np.float32)

    def length(perturbation):
        flat = np.abs(perturbation.astype(np.float64))
        return {"linf": flat.max(1), "l2": np.sqrt((flat**2).sum(1)), "l1": flat.sum(1), "l0": (flat > 0).sum(1)}[norm]

    epsilon = length(found - clean)
    images = np.asarray(round_in_ball(found, clean, jnp.asarray(epsilon, jnp.float32), norm, levels))
    moved = images != clean
    index = images.astype(np.float64) * levels
    assert np.all(np.abs(index - np.round(index))[moved] < 1e-4)
    # Each pixel within one level of what was attacked, on the same side of the clean one, and in the ball.
    assert np.all(np.abs(images - found) * levels < 1.001)
    assert np.all((images - clean) * np.sign(found - clean) >= -1e-6)
    assert np.all(length(images - clean) <= epsilon + 2e-3 / levels * (30 if norm == "l1" else 6))
    if on_grid:
        # No pixel could be nearer to what was attacked, alone, without leaving the ball.
        for way in (np.floor, np.ceil):
            other = way(np.round(found.astype(np.float64) * levels, 3)) / levels
            better = np.abs(other - found) < np.abs(images - found) - 1e-3 / levels
            for row, pixel in zip(*np.nonzero(better), strict=True):
                changed = images[row : row + 1].copy()
                changed[0, pixel] = other[row, pixel]
                if norm in ("linf", "l0"):
                    assert length(changed - clean[row : row + 1])[0] > epsilon[row] + 1e-6
    nothing = jnp.zeros(batch)
    if on_grid:
        assert same_bits(round_in_ball(clean, clean, nothing, norm, levels), clean)
    # Rounding a second time changes nothing.
    again = round_in_ball(images, clean, jnp.asarray(epsilon, jnp.float32), norm, levels)
    np.testing.assert_allclose(again, images, atol=1e-7)


def test_rounding_away_in_l2_spends_the_radius_on_what_gains_most():
    levels, clean = 10, jnp.full((1, 3), 0.5)
    found = clean + jnp.array([[0.09, 0.08, 0.07]])
    # A level each costs 1: of the squared radius 1.94 the first pixel gets one, and no other.
    radius = jnp.sqrt(jnp.sum(jnp.square(found - clean), axis=1))
    np.testing.assert_allclose(round_in_ball(found, clean, radius, "l2", levels), [[0.6, 0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(round_in_ball(found, clean, 2 * radius, "l2", levels), [[0.6, 0.6, 0.6]], atol=1e-6)


def test_rounded_tells_of_the_rounded_image():
    logits_fn, images, labels, distances = two_classes()
    images = (np.round(images * 255) / 255).astype(np.float32)
    labels = right_labels(logits_fn, images)
    attack = pgd(epsilon=0.0, num_steps=10, start="clean")
    epsilon = np.linspace(0.9, 1.6, 8) * distances["linf"]
    found = run(rounded(attack), keys(8), logits_fn, images, labels, epsilon=epsilon)
    np.testing.assert_array_equal(found.is_right, attacks.is_right(logits_fn(found.images), labels))
    np.testing.assert_allclose(found.score, attacks.classification_margin(logits_fn(found.images), labels), atol=1e-5)
    levels = found.images * 255
    assert np.abs(levels - np.round(levels)).max() < 1e-4
    assert np.all(lengths(found.images - images, "linf") <= epsilon * (1 + 1e-5))
    # Rounding costs: below two levels, only one is left.
    coarse = run(rounded(attack, 3), keys(8), logits_fn, images * 0 + 1 / 3, labels, epsilon=0.3)
    assert same_bits(coarse.images, images * 0 + np.float32(1 / 3))
    nothing = run(rounded(attack), keys(8), logits_fn, images, labels, epsilon=0 * epsilon)
    assert same_bits(nothing.images, images)
    assert rounded(attack).passes == attack.passes + 1
