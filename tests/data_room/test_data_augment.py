"""Augmentation only moves pixels, each sample by its own key, whatever batch it is in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain.data import augment

SPEC = ("reflect_pad_crop:2", "flip")


def keys_of(count: int, seed: int = 0) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(count))


def distinct_images(count: int, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    """Every pixel of an image has another value, so that where it went can be seen."""
    values = np.arange(height * width * channels, dtype=np.uint8).reshape(height, width, channels)
    return values[None] + np.arange(count, dtype=np.uint8)[:, None, None, None] % 100


def all_crops(image: np.ndarray, pad: int) -> list[np.ndarray]:
    height, width = image.shape[:2]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    shifts = range(2 * pad + 1)
    return [padded[top : top + height, left : left + width] for top in shifts for left in shifts]


def test_crop_gives_every_crop_of_the_reflected_image():
    images = distinct_images(600)
    out = np.asarray(augment.build(("reflect_pad_crop:1",))(keys_of(600), images))
    seen = np.zeros(9, int)
    for image, cropped in zip(images, out, strict=True):
        matches = [np.array_equal(cropped, crop) for crop in all_crops(image, 1)]
        assert sum(matches) == 1
        seen[matches.index(True)] += 1
    assert seen.min() > 600 / 9 / 2  # all nine, about equally often (expected 67, deviation 8)


def test_crop_at_its_largest_pad():
    images = distinct_images(200)
    out = np.asarray(augment.build(("reflect_pad_crop:4",))(keys_of(200), images))
    for image, cropped in zip(images, out, strict=True):
        assert any(np.array_equal(cropped, crop) for crop in all_crops(image, 4))


def test_flip_mirrors_about_half():
    images = distinct_images(400)
    out = np.asarray(augment.build(("flip",))(keys_of(400), images))
    flipped = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(out, images, strict=True)])
    kept = np.array([np.array_equal(a, b) for a, b in zip(out, images, strict=True)])
    assert np.all(flipped ^ kept)
    assert 150 < flipped.sum() < 250


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_dtype_and_shape_kept_under_jit(dtype):
    images = jnp.asarray(distinct_images(4)).astype(dtype)
    out = jax.jit(augment.build(SPEC))(keys_of(4), images)
    assert out.shape == images.shape and out.dtype == images.dtype


def test_a_sample_does_not_see_its_batch():
    apply = jax.jit(augment.build(SPEC))
    keys, images = keys_of(32), jnp.asarray(distinct_images(32))
    whole = apply(keys, images)
    order = np.random.default_rng(0).permutation(32)
    np.testing.assert_array_equal(apply(keys[order], images[order]), whole[order])
    np.testing.assert_array_equal(apply(keys[5:6], images[5:6]), whole[5:6])
    assert not np.array_equal(apply(keys_of(32, seed=1), images), whole)


def test_raw_keys_serve_too():
    keys, images = keys_of(8), distinct_images(8)
    raw = jax.random.key_data(keys)
    np.testing.assert_array_equal(augment.build(SPEC)(raw, images), augment.build(SPEC)(keys, images))


def test_nothing_asked_nothing_done():
    images = jnp.ones((3, 2))
    assert augment.build(())(keys_of(3), images) is images


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (("flp",), "did you mean 'flip'"),
        (("reflect_pad_crop",), "pixels to pad"),
        (("reflect_pad_crop:0",), "pixels to pad"),
        (("reflect_pad_crop:-1",), "pixels to pad"),
        (("reflect_pad_crop:two",), "pixels to pad"),
        (("flip:1",), "takes no argument"),
        ("flip", "tuple of names"),
    ],
)
def test_bad_spec(spec, message):
    with pytest.raises(ValueError, match=message):
        augment.build(spec)


def test_images_that_cannot_be_augmented():
    with pytest.raises(ValueError, match="larger than 5 pixels, got 6x5"):
        augment.build(("reflect_pad_crop:5",))(keys_of(2), distinct_images(2))
    with pytest.raises(ValueError, match=r"takes images \(B, H, W, C\)"):
        augment.build(("flip",))(keys_of(2), np.ones((2, 2), np.float32))
