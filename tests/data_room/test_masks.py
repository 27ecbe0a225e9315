"""TFDS sets whose labels are an image: oxford_iiit_pet's form, small and made here."""

import numpy as np
import pytest

from jax_advtrain import data
from jax_advtrain.data.tfds_writer import Content, as_image, write_set

VALUES = (2, 1, 3)  # background, pet, border, as there
FIELDS = {"name": "pets", "mask_key": "segmentation_mask", "mask_values": VALUES, "validation_size": 2, "num_train": 7,
          "validation_from": "train"}  # fmt: skip


def pets(count, size=(12, 16), mask_size=None):
    """Images whose red is 80 times the mask's value; sizes grow by rows."""
    import tensorflow_datasets as tfds

    random = np.random.default_rng(0)
    masks = [random.integers(1, 4, mask_size or size).repeat(2, 0).repeat(2, 1).astype(np.uint8) for _ in range(count)]

    def example(k):
        image = np.zeros((*(2 * side for side in size), 3), np.uint8)
        image[: masks[k].shape[0], : masks[k].shape[1], 0] = 80 * masks[k]
        return {"image": as_image(image), "segmentation_mask": as_image(masks[k]), "species": k % 2}

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
            "species": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )
    return features, example


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    features, example = pets(9)
    contents = {"train": Content(9, example), "test": Content(3, example)}
    write_set(root / "pets" / "1.0.0", "pets", features, contents, "toy", ("image", "species"))
    features, example = pets(2, mask_size=(6, 8))
    write_set(root / "odd" / "1.0.0", "odd", features, {"train": Content(2, example)}, "toy", ("image", "species"))
    return root


def load(folder, **config):
    return data.load({**FIELDS, "data_dir": str(folder), **config})


def test_masks_become_labels_of_pixels(folder):
    found = load(folder)
    assert [len(part) for part in found] == [5, 2, 3]
    train = found.train
    assert train.is_dense and train.image_shape == (24, 32, 3) and train.labels.shape == (5, 24, 32)
    assert train.class_names == ("2", "1", "3") and train.labels.dtype == np.int32
    red = np.asarray(VALUES)[train.labels] * 80
    np.testing.assert_array_equal(train.images[..., 0], red)
    np.testing.assert_array_equal(train.groups, train.ids)  # each image is a case of its own


def test_masks_are_resized_as_their_images_and_stay_masks(folder):
    found = load(folder, image_size=(12, 12)).train
    assert found.image_shape == (12, 12, 3) and set(np.unique(found.labels)) == {0, 1, 2}
    # Half the size: each 2 x 2 pixels of one value become one pixel.
    red = np.asarray(VALUES)[found.labels] * 80
    assert np.mean(np.abs(found.images[..., 0].astype(int) - red) < 60) > 0.8


def test_augmentation_is_that_of_pixels(folder):
    assert len(load(folder, augment=("rotate:10",)).train) == 5
    with pytest.raises(ValueError, match="of images with their labels"):
        load(folder, augment=("reflect_pad_crop:2",))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mask_key": "mask"}, "data.mask_key='mask' is no Image feature"),
        ({"mask_values": None}, "data.mask_key and data.mask_values go together"),
        ({"mask_values": (1, 2)}, "holds the value 3; data.mask_values are 1, 2"),
        ({"mask_values": (1, 1, 2)}, "different whole numbers below 256"),
        ({"classes": "1"}, "where labels are one a pixel there is no such"),
        ({"name": "odd", "test_size": 1}, "has (24, 32) pixels, its mask (12, 16)"),
        ({"streaming": True}, "data.streaming needs"),
    ],
)
def test_bad_fields(folder, config, said):
    fields = {"validation_size": 0, "num_train": None, "validation_from": None} if config.get("name") == "odd" else {}
    with pytest.raises(ValueError) as caught:
        load(folder, **fields, **config)
    assert said in str(caught.value) and "\n" not in str(caught.value)
