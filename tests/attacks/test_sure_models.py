"""Models that are sure of every class alike: float32 must not make one class, or a temperature, look robust."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_problems import keys, run

from jax_advtrain import attacks

GAPS = np.array([-60.0, -20.0, -3.0, 0.0, 3.0, 16.0, 18.0, 25.0, 60.0])  # logit of the truth less that of the other


def _gradient(loss, logits, labels):
    return np.asarray(jax.grad(lambda logits: loss(logits, labels).sum())(jnp.asarray(logits)))


@pytest.mark.parametrize("label", [0, 1])
def test_gradients_of_cross_entropy_are_those_of_float64(label):
    """By hand: 1 - p_y = 1 / (1 + e^gap) is lost from the true logit, and gained by the only other."""
    loses = 1 / (1 + np.exp(GAPS))
    labels = jnp.full(len(GAPS), label)
    signed = np.float32(np.where(label == 1, GAPS, -GAPS))
    one_logit = _gradient(attacks.binary_cross_entropy, signed, labels)
    np.testing.assert_allclose(one_logit, loses if label == 0 else -loses, rtol=1e-5)
    two = np.zeros((len(GAPS), 2), np.float32)
    two[:, label] = GAPS
    both = _gradient(attacks.cross_entropy, two, labels)
    np.testing.assert_allclose(both[:, label], -loses, rtol=1e-5)
    np.testing.assert_allclose(both[:, 1 - label], loses, rtol=1e-5)


def test_values_of_cross_entropy_are_those_of_float64():
    labels = jnp.ones(len(GAPS), jnp.int32)
    expected = np.logaddexp(0, -GAPS)
    two = np.stack([np.zeros_like(GAPS), GAPS], -1).astype(np.float32)
    np.testing.assert_allclose(attacks.cross_entropy(jnp.asarray(two), labels), expected, rtol=1e-5)
    np.testing.assert_allclose(attacks.binary_cross_entropy(jnp.float32(GAPS), labels), expected, rtol=1e-5)


def test_a_class_that_the_model_rules_out():
    """With -inf for the only other class nothing changes the loss; the gradient is 0, not NaN."""
    logits, labels = jnp.array([[0.5, -jnp.inf], [-jnp.inf, 0.5]]), jnp.array([0, 1])
    assert attacks.cross_entropy(logits, labels).tolist() == [0, 0]
    np.testing.assert_array_equal(_gradient(attacks.cross_entropy, logits, labels), 0)


def _sure(scale, images):
    """Three classes; the gap of class 0 to class 1 is scale (x_0 - x_1), and so on in a circle."""
    return scale * jnp.stack([images[:, 0], images[:, 1], images[:, 2]], axis=-1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("temperature", [1.0, 0.02, 1e-4])
def test_no_temperature_hides_the_boundary(norm, temperature):
    """Each sample's nearest boundary is closed form: (x_y - max x) / 2 in L-inf, / sqrt 2 in L2."""
    gaps = np.array([0.05, 0.1, 0.19, 0.31, 0.4, 0.15])
    labels = np.array([0, 1, 2, 0, 1, 2])
    images = np.full((6, 3), 0.3, np.float32)
    images[np.arange(6), labels] += gaps
    images[np.arange(6), (labels + 1) % 3] = 0.3  # the runner-up, and so is the third
    images[np.arange(6), (labels + 2) % 3] = 0.1
    epsilon = 0.1 if norm == "linf" else 0.1 * np.sqrt(2)
    attack = attacks.pgd(
        norm=norm, epsilon=epsilon, num_steps=20, start="clean", loss=attacks.with_temperature("ce", temperature)
    )
    found = run(attack, keys(6), jax.tree_util.Partial(_sure, jnp.float32(15.0)), images, labels)
    np.testing.assert_array_equal(found.is_right, gaps > 0.2)
    np.testing.assert_array_equal(found.zero_gradients, 0)


def test_mirrored_classes_of_one_logit_fall_alike():
    def scores(scale, images):
        return scale * (images[:, 0] - images[:, 1])

    gaps = np.array([0.05, 0.1, 0.15, 0.3])
    images = np.full((8, 2), 0.4, np.float32)
    images[:4, 1] += gaps
    images[4:, 0] += gaps
    labels = np.repeat([0, 1], 4)
    attack = attacks.pgd(epsilon=0.1, num_steps=10, start="clean", loss="bce")
    found = run(attack, keys(8), jax.tree_util.Partial(scores, jnp.float32(200.0)), images, labels)
    np.testing.assert_array_equal(found.is_right[:4], found.is_right[4:])
    assert found.is_right.tolist()[:4] == [False, False, False, True]
