"""The correction of the logits: what each step knows, what the fit gains, and that attacks see it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_advtrain import attacks, devices
from jax_advtrain.data import Dataset
from jax_advtrain.evaluation.attack_dataset import attack_dataset
from jax_advtrain.evaluation.logit_correction import _line, corrected, fit, fit_under_attack


def drawn(seed, count=300, classes=4, weak=1.5):
    """Logits whose class 0 is weak."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), labels] += 2 - weak * (labels == 0)
    return logits, labels


def accuracies(logits, labels):
    right = np.argmax(logits, axis=1) == labels
    return np.array([right[labels == one].mean() for one in np.unique(labels)]), right.mean()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 40))
def test_the_counts_along_a_line_are_those_of_a_second_writing(seed, classes, count):
    logits, labels = drawn(seed, count, classes)
    for one in range(classes):
        values, right = _line(logits, labels, one)
        assert len(values) >= 2
        for value, counts in zip(values, right, strict=True):
            moved = logits + value * (np.arange(classes) == one)
            expected = np.bincount(labels[np.argmax(moved, axis=1) == labels], minlength=classes)
            np.testing.assert_array_equal(counts, expected)


def test_two_classes_by_hand():
    """With 2 to 4 more for class 1 all are right."""
    logits = np.stack([np.zeros(6), np.array([-7.0, -5, -4, -2, -1, 1])], axis=1)
    correction = fit(logits, np.array([0, 0, 0, 1, 1, 1]), most_loss=0.0)
    assert correction.dtype == np.float32 and correction.sum() == pytest.approx(0, abs=1e-6)
    assert 2 < correction[1] - correction[0] < 4


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.01, 0.05]))
def test_the_worst_class_never_falls_and_the_mean_by_no_more_than_was_allowed(seed, most_loss):
    logits, labels = drawn(seed)
    before, after = (accuracies(logits + c, labels) for c in (0, fit(logits, labels, most_loss=most_loss)))
    assert after[0].min() >= before[0].min()
    assert after[1] >= before[1] - most_loss - 1e-9


def test_it_raises_a_weak_class():
    logits, labels = drawn(0, 4000, 6)
    correction = fit(logits, labels)
    fresh = drawn(1, 4000, 6)
    before, after = accuracies(*fresh), accuracies(fresh[0] + correction, fresh[1])
    assert np.argmax(correction) == 0
    assert after[0].min() > before[0].min() + 0.15 and after[1] > before[1] - 0.02


def test_a_class_without_samples_is_not_moved_by_itself():
    logits, labels = drawn(0)
    logits = np.concatenate([logits, np.full((len(logits), 1), -9.0)], axis=1)
    correction = fit(logits, labels)
    assert np.all(np.isfinite(correction))
    alone = fit(logits[:, :4], labels)
    np.testing.assert_allclose(correction[:4] - correction[0], alone - alone[0], atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros(3), np.zeros(3, int), "give (N, classes) of two or more"),
        (np.zeros((0, 2)), np.zeros(0, int), "give (N, classes)"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), "labels range over [0, 2]; give 0 to 1"),
        (np.full((3, 2), np.nan), np.zeros(3, int), "NaN or infinity"),
    ],
)
def test_bad_input_says_so(logits, labels, said):
    with pytest.raises(ValueError) as caught:
        fit(logits, labels)
    assert said in str(caught.value)


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


@pytest.fixture(scope="module")
def two_gaussians():
    """Three classes around directions of unlike length, and the linear network of these directions."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 150)
    centres = 0.5 + np.array([[0.12, 0, 0, 0], [0, 0.12, 0, 0], [0, 0, 0.07, 0]])
    images = np.clip(centres[labels] + 0.06 * rng.normal(size=(450, 4)), 0, 1)
    data = Dataset(
        images=np.round(255 * images).astype(np.uint8).reshape(-1, 2, 2, 1),
        labels=labels.astype(np.int32),
        ids=np.arange(450, dtype=np.int64),
        name="gaussians",
        class_names=("a", "b", "c"),
        split="validation",
    )
    return data, jax.tree_util.Partial(linear, jnp.asarray(20 * (centres - 0.5).T, jnp.float32))


@pytest.mark.slow
def test_an_attack_sees_the_correction_and_the_fit_holds_under_it(two_gaussians):
    data, logits_fn = two_gaussians
    mesh, epsilon = devices.make_mesh(jax.devices()[:1]), 0.02
    attack = attacks.pgd(norm="linf", epsilon=epsilon, num_steps=4, loss="lm")

    def by_class(correction):
        found = attack_dataset(attack, corrected(logits_fn, correction), data, mesh, norm="linf", epsilon=epsilon)
        return np.array([found.is_right[data.labels == k].mean() for k in range(3)]), found.is_right.mean()

    correction = fit_under_attack(logits_fn, data, attack, mesh, epsilon=epsilon, rounds=2, most_loss=0.02)
    before, after = by_class(np.zeros(3)), by_class(correction)
    print("worst and mean", before[0].min(), before[1], after[0].min(), after[1])
    assert after[0].min() > before[0].min() + 0.05 and after[1] >= before[1] - 0.02
    # A correction that is far too large makes everything class 2, also for the attack.
    np.testing.assert_array_equal(by_class(np.array([0.0, 0, 99]))[0], [0, 0, 1])


def test_another_correction_compiles_nothing(two_gaussians):
    _, logits_fn = two_gaussians
    traced = []
    call = jax.jit(lambda model, images: (traced.append(1), model(images))[1])
    images = jnp.zeros((2, 2, 2, 1))
    found = [call(corrected(logits_fn, np.array([0.0, value, 0])), images) for value in (1.0, 2.0)]
    assert len(traced) == 1
    np.testing.assert_allclose(found[1] - found[0], [[0, 1, 0]] * 2, atol=1e-6)
