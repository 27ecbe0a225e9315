"""Augmentation that moves labels along with images."""

import jax
import numpy as np
import pytest

from jax_advtrain.data import augment_dense
from jax_advtrain.data.fields import augmentation, complete

SPEC = ("flip", "flip:0", "rotate:20", "scale:0.2", "gamma:0.5")
SIDE = 24


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def boxes(count, shape=(SIDE, SIDE)):
    """A box somewhere in each: 0.8 on 0.2, and 1 on 0."""
    random = np.random.default_rng(0)
    labels = np.zeros((count, *shape), np.int32)
    for label in labels:
        corner = random.integers(5, 9, len(shape))
        label[tuple(slice(start, start + 8) for start in corner)] = 1
    return (0.2 + 0.6 * labels[..., None]).astype(np.float32), labels


@pytest.fixture(scope="module")
def augmented():
    images, labels = boxes(16)
    apply = jax.jit(augment_dense.build(SPEC))
    return images, labels, apply, [np.asarray(part) for part in apply(keys_of(16), images, labels)]


def test_labels_stay_on_their_pixels(augmented):
    images, labels, _, (moved, moved_labels) = augmented
    assert moved.shape == images.shape and moved.dtype == np.float32 and moved_labels.dtype == np.int32
    assert moved.min() >= 0 and moved.max() <= 1
    for image, label in zip(moved[..., 0], moved_labels, strict=True):
        # 0.8 and 0.2 to the power of 1/1.5 to 1.5 stay above and below; half a pixel of rim is blurred.
        assert np.mean((image > 0.45) == (label == 1)) > 0.9
        assert 25 < label.sum() < 130  # 64 pixels, by 0.8^2 to 1.2^2
    changed = [not np.array_equal(*pair) for pair in zip(moved_labels, labels, strict=True)]
    assert sum(changed) > 12


def test_a_sample_has_its_own_randomness(augmented):
    images, labels, apply, (moved, moved_labels) = augmented
    order = np.random.default_rng(1).permutation(16)
    found = apply(keys_of(16)[order], images[order], labels[order])
    np.testing.assert_array_equal(found[0], moved[order])
    np.testing.assert_array_equal(found[1], moved_labels[order])
    assert len({label.tobytes() for label in moved_labels}) > 12


def test_flips_are_exact():
    images, labels = boxes(32, (SIDE, SIDE - 3))
    moved, moved_labels = augment_dense.build(("flip:0",))(keys_of(32), images, labels)
    flipped = [not np.array_equal(*pair) for pair in zip(moved_labels, labels, strict=True)]
    assert 5 < sum(flipped) < 27
    for n, is_flipped in enumerate(flipped):
        step = -1 if is_flipped else 1
        np.testing.assert_array_equal(moved[n], images[n][::step])
        np.testing.assert_array_equal(moved_labels[n], labels[n][::step])


def test_gamma_changes_intensities_only():
    images, labels = boxes(8)
    moved, moved_labels = augment_dense.build(("gamma:0.5",))(keys_of(8), images, labels)
    np.testing.assert_array_equal(moved_labels, labels)
    powers = np.log(np.asarray(moved)[:, 0, 0, 0]) / np.log(0.2)
    assert np.all((powers > 1 / 1.51) & (powers < 1.51)) and len(np.unique(powers)) == 8


def test_volumes_turn_too():
    images, labels = boxes(2, (SIDE, SIDE, SIDE))
    moved, moved_labels = augment_dense.build(("rotate:20",))(keys_of(2), images, labels)
    assert np.mean((np.asarray(moved)[..., 0] > 0.45) == (np.asarray(moved_labels) == 1)) > 0.95
    assert not np.array_equal(moved_labels, labels)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (("flop",), "did you mean 'flip'"),
        (("reflect_pad_crop:4",), "of images with their labels"),
        (("rotate",), "the largest angle in degrees"),
        (("rotate:much",), "got 'rotate:much'"),
        (("scale:1.5",), "above 0 and below 1"),
        (("gamma:nan",), "the largest change of the exponent"),
        ("flip", 'write ("flip",)'),
    ],
)
def test_what_is_refused(spec, said):
    with pytest.raises(ValueError) as caught:
        augment_dense.build(spec)
    assert said in str(caught.value)


def test_which_augmentation_a_config_means():
    pixels = complete({"name": "x", "source": "decathlon", "data_dir": "x", "augment": ("rotate:5",)})
    assert augmentation(pixels) is not None and augmentation({**pixels, "augment": ()}) is None
    with pytest.raises(ValueError, match="unknown augmentation 'rotate:5'"):
        augmentation(complete({"name": "digits", "augment": ("rotate:5",)}))
    images, labels = boxes(3)
    with pytest.raises(ValueError, match="not one a pixel"):
        augment_dense.build(("flip",))(keys_of(3), images, labels[:, 0, 0])
    with pytest.raises(ValueError, match="the images have the axes 0, 1"):
        augment_dense.build(("flip:2",))(keys_of(3), images, labels)
