"""The data set's own checks, its fingerprint, and the way to [0,1]."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain.data import Dataset, to_unit


def example(**changes) -> Dataset:
    fields = {
        "name": "toy",
        "images": np.zeros((4, 2, 2, 1), np.uint8),
        "labels": np.array([0, 1, 2, 1], np.int32),
        "ids": np.array([10, 4, 7, 8], np.int64),
        "class_names": ("a", "b", "c"),
        "version": "1.0.0",
    }
    return Dataset(**{**fields, **changes})


def test_fingerprint_tells_data_apart():
    data = example()
    assert data.fingerprint() == example().fingerprint()
    others = [
        example(labels=data.labels[::-1].copy(), ids=data.ids),
        example(ids=data.ids[::-1].copy()),
        example(images=data.images[:3], labels=data.labels[:3], ids=data.ids[:3]),
        example(name="other"),
        example(version="1.0.1"),
        example(split="test"),
    ]
    prints = [str(other.fingerprint()) for other in [data, *others]]
    assert len(set(prints)) == len(prints)
    assert (
        example(labels=data.labels[::-1].copy()).fingerprint()["labels_sha256"] != data.fingerprint()["labels_sha256"]
    )


def test_fingerprint_is_the_same_on_every_machine():
    """Committed: checkpoints hold it, so it may not change with the byte order or with a refactoring."""
    assert example().fingerprint() == {
        "name": "toy",
        "version": "1.0.0",
        "split": "train",
        "count": 4,
        "labels_sha256": "6fc6c9aebc04c8fe4148b3ed030aa6f7686f31b2c4e5b401b1548cc9d21148df",
        "ids_sha256": "de5470aa1df7d305f4bb8de9012757cecd6171d6d62851a8a16ccd9c9d29b955",
    }


@pytest.mark.parametrize("library", [np, jnp])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_to_unit_divides_integers_in_the_dtype(library, dtype):
    levels = library.arange(256, dtype="uint8")
    convert = functools.partial(to_unit, dtype=dtype)
    unit = (jax.jit(convert) if library is jnp else convert)(levels)
    assert unit.dtype == dtype and isinstance(unit, type(levels))
    np.testing.assert_array_equal(np.asarray(unit), np.arange(256).astype(dtype) / np.array(255, dtype))
    assert unit[0] == 0 and unit[255] == 1


def test_to_unit_in_float64_is_correctly_rounded():
    np.testing.assert_array_equal(to_unit(np.arange(256, dtype=np.uint8), np.float64), np.arange(256) / 255)


def test_to_unit_leaves_floats():
    values = np.array([0.0, 0.1, 1.0], np.float32)
    np.testing.assert_array_equal(to_unit(values), values)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def points(value: float) -> np.ndarray:
    pixels = np.full((4, 2), 0.5, np.float32)
    pixels[2, 1] = value
    return pixels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": np.array([0, 1, 3, -1], np.int32)},
            "2 labels are outside the 3 classes 0..2 .first: label 3 of id 7",
        ),
        ({"labels": np.array([0, 1, 2], np.int32)}, "4 images, 3 labels, 4 ids"),
        ({"labels": np.array([0, 1, 2, 0])}, "labels must be int32"),
        ({"ids": np.array([1, 2, 2, 3])}, "ids must be distinct"),
        ({"ids": np.array([1, 2, -2, 3])}, "ids must be distinct and not negative"),
        ({"images": np.zeros((4, 2, 2), np.uint8)}, r"uint8 images must be \(N, H, W, C\)"),
        ({"images": np.zeros((4, 2, 2, 1))}, "float64"),
        ({"images": points(np.nan)}, "first: id 7 has NaN pixels"),
        ({"images": points(1.5)}, r"first: id 7 has pixels from 0.5 to 1.5\); scale them"),
        ({"images": points(-0.01)}, "pixels from -0.01 to 0.5"),
        ({"images": points(np.inf)}, "pixels from 0.5 to inf"),
    ],
)
def test_bad_arrays(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        example(**changes)
    assert "\n" not in str(caught.value)
