"""MedMNIST's files through the npz source: the real binary one, a synthetic multi-class one, and those refused."""

import numpy as np
import pytest

from jax_advtrain import data


def medmnist(path, *, shape=(28, 28, 3), classes=9, counts=(30, 12, 15), width=1) -> dict[str, np.ndarray]:
    """A file in MedMNIST's layout; returns its arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count * width).reshape(count, width) % classes).astype(np.uint8)
    np.savez_compressed(path, **arrays)
    return arrays


def test_the_real_binary_file(medmnist_file):
    splits = data.load({"name": "pneumoniamnist", "path": str(medmnist_file)})
    arrays = np.load(medmnist_file)
    for key, part in zip(("train", "val", "test"), splits, strict=True):
        np.testing.assert_array_equal(part.images[..., 0], arrays[f"{key}_images"][: len(part)])
        np.testing.assert_array_equal(part.labels, arrays[f"{key}_labels"][: len(part), 0])
        assert part.image_shape == (28, 28, 1) and part.num_classes == 2
        assert part.ids.tolist() == list(range(len(part)))
    assert [len(part) for part in splits] == [3882, 524, 624]
    # The file's training samples lie class by class: a part of them has both, in their shares.
    few = data.load({"name": "pneumoniamnist", "path": str(medmnist_file), "num_train": 1000}).train
    np.testing.assert_allclose(np.bincount(few.labels) / 1000, np.bincount(splits.train.labels) / 3882, atol=1e-3)
    assert [part.split for part in splits] == ["train", "validation", "test"]


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (64, 64, 3)])
def test_multi_class(tmp_path, shape):
    arrays = medmnist(tmp_path / "pathmnist.npz", shape=shape)
    splits = data.load({"name": "pathmnist", "path": str(tmp_path / "pathmnist.npz")})
    for key, part in zip(("train", "val", "test"), splits, strict=True):
        np.testing.assert_array_equal(part.images.reshape(len(part), *shape), arrays[f"{key}_images"])
        np.testing.assert_array_equal(part.labels, arrays[f"{key}_labels"][:, 0])
    assert splits.train.class_names == tuple("012345678")


@pytest.mark.parametrize(
    ("fields", "shape", "why"),
    [
        ({"width": 14, "classes": 2}, "(30, 14)", "several labels an image (multi-label) are not supported"),
        ({"shape": (28, 28, 28), "classes": 2}, "(30, 28, 28, 28)", "volumes; need images (N, H, W)"),
        ({"shape": (28, 28, 28, 1), "classes": 2}, "(30, 28, 28, 28, 1)", "volumes; need images (N, H, W)"),
    ],
)
def test_several_labels_and_volumes_are_refused(tmp_path, fields, shape, why):
    medmnist(tmp_path / "odd.npz", **fields)
    with pytest.raises(ValueError) as caught:
        data.load({"name": "odd", "path": str(tmp_path / "odd.npz")})
    message = str(caught.value)
    assert "odd.npz" in message and shape in message and why in message and "\n" not in message
