"""Folders of images, made of real photographs: splits, sizes, colours, ids, bad files, links."""

import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_advtrain import data
from jax_advtrain.data import decode, folder_tree

SPLIT_FILES = [
    *("train/cat/b.png", "train/cat/a.jpg", "train/cat/deep/c.JPEG", "train/dog/a.png", "train/dog/z.png"),
    *("val/cat/1.png", "val/dog/1.png", "test/dog/1.png", "test/cat/1.png", "test/dog/2.png"),
]
FLAT_FILES = [f"{name}/{number}.png" for name in ("ant", "bee") for number in range(10)]


def load(folder: Path, **fields) -> data.Splits:
    return data.load({"name": "mine", "source": "image_folder", "data_dir": str(folder), **fields})


def refused(folder: Path, *expected: str, **fields) -> None:
    with pytest.raises(ValueError) as caught:
        load(folder, **fields)
    assert "\n" not in str(caught.value)
    for text in expected:
        assert text in str(caught.value)


def pixels(path: Path, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(path).convert(mode))


# --- what is read ---


def test_splits_classes_and_ids(image_folder):
    folder = image_folder(*SPLIT_FILES)
    (folder / ".hidden").mkdir()
    (folder / "train" / "cat" / ".DS_Store").write_text("x")
    (folder / "train" / "cat" / "notes.txt").write_text("x")
    splits = load(folder)
    order = ["cat/a.jpg", "cat/b.png", "cat/deep/c.JPEG", "dog/a.png", "dog/z.png"]
    np.testing.assert_array_equal(splits.train.images, [pixels(folder / "train" / path) for path in order])
    assert splits.train.ids.tolist() == [0, 1, 2, 3, 4]
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert splits.train.class_names == ("cat", "dog") and splits.train.images.dtype == np.uint8
    assert [part.split for part in splits] == ["train", "validation", "test"]
    assert splits.test.labels.tolist() == [0, 1, 1] and splits.validation.labels.tolist() == [0, 1]
    some = load(folder, train_ids=[3, 1])
    np.testing.assert_array_equal(some.train.images, splits.train.images[[3, 1]])


def test_without_splits_all_is_train(image_folder):
    folder = image_folder(*FLAT_FILES)
    refused(folder, "mine has no test split: set data.test_size")
    splits = load(folder, test_size=0.2, validation_size=2)
    assert [len(part) for part in splits] == [14, 2, 4]
    assert sorted(np.concatenate([part.ids for part in splits])) == list(range(20))
    assert np.bincount(splits.test.labels).tolist() == [2, 2]
    for part in splits:
        np.testing.assert_array_equal(part.images, [pixels(folder / sorted(FLAT_FILES)[id_]) for id_ in part.ids])


def test_ids_and_version_do_not_depend_on_the_file_system(image_folder, monkeypatch):
    folder = image_folder(*FLAT_FILES)
    before = load(folder, test_size=0.5)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(folder_tree.os, "scandir", Backwards)
    after = load(folder, test_size=0.5)
    for a, b in zip(before, after, strict=True):
        assert a.fingerprint() == b.fingerprint()
        np.testing.assert_array_equal(a.images, b.images)
    moved = folder.with_name("elsewhere")
    shutil.copytree(folder, moved)
    assert load(moved, test_size=0.5).train.version == before.train.version
    (moved / "ant" / "0.png").rename(moved / "ant" / "00.png")
    assert load(moved, test_size=0.5).train.version != before.train.version


def test_a_class_may_be_called_train(image_folder):
    splits = load(image_folder("bus/1.png", "bus/2.png", "train/1.png", "train/2.png"), test_size=2, validation_size=0)
    assert splits.train.class_names == ("bus", "train")


# --- sizes and colours ---


def test_sizes_differ(image_folder):
    folder = image_folder(*FLAT_FILES, sizes=(40, 56))
    refused(folder, "ant/0.png has 40x40", "ant/1.png has 56x56", "set data.image_size", test_size=2)
    splits = load(folder, test_size=2, image_size=32)
    assert splits.train.image_shape == (32, 32, 3) and splits.train.version.endswith("-32x32")
    # A 40x40 image becomes what Pillow's antialiased bilinear filter makes of it.
    small = Image.open(folder / "ant" / "0.png").resize((32, 32), Image.Resampling.BILINEAR)
    everything = load(folder, test_ids=[19], image_size=32, validation_size=0).train
    np.testing.assert_array_equal(everything.images[0], np.asarray(small))
    assert load(folder, test_size=2, image_size=(24, 32)).train.image_shape == (24, 32, 3)
    prints = {str(load(folder, test_size=2, image_size=size).train.fingerprint()) for size in (24, 32, (24, 32))}
    assert len(prints) == 3


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (17, 23)])
@pytest.mark.parametrize("size", [(30, 30), (20, 40), (45, 20)])
def test_resized_by_the_shorter_side_and_cut_in_the_middle(tmp_path, shape, size):
    """A smooth image: what the result shows at a place is what the original has there."""
    height, width = shape
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 200 / height, columns * 200 / width, 0 * rows], -1).round().astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "smooth.png")
    found = decode.decode_image(tmp_path / "smooth.png", 3, size)
    assert found.shape == (*size, 3)
    scale = max(size[0] / height, size[1] / width)
    top, left = (height - size[0] / scale) / 2, (width - size[1] / scale) / 2
    y = top + (np.arange(size[0]) + 0.5) / scale - 0.5
    x = left + (np.arange(size[1]) + 0.5) / scale - 0.5
    inside = np.s_[3:-3, 3:-3]
    expected = np.stack(np.broadcast_arrays(y[:, None] * 200 / height, x * 200 / width), -1)
    assert np.abs(found[..., :2][inside] - expected[inside]).max() < 1.5


def test_fine_patterns_are_averaged_not_sampled(tmp_path):
    stripes = np.tile(np.array([[0, 255]], np.uint8), (128, 64))
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    small = decode.decode_image(tmp_path / "stripes.png", 1, (16, 16))
    assert abs(small.astype(int) - 127).max() < 12


def test_grey_and_colour(image_folder):
    folder = image_folder(*FLAT_FILES, mode="L")
    grey = load(folder, test_size=2).train
    assert grey.image_shape == (40, 40, 1)
    np.testing.assert_array_equal(grey.images[0, ..., 0], pixels(folder / sorted(FLAT_FILES)[grey.ids[0]], "L"))
    assert load(folder, test_size=2, channels=3).train.image_shape == (40, 40, 3)
    image_folder("bee/colour.png")
    assert load(folder, test_size=2).train.image_shape == (40, 40, 3)
    assert load(folder, test_size=2, channels=1).train.image_shape == (40, 40, 1)


def test_transparent_palette_and_cmyk(image_folder):
    folder = image_folder("a/1.png", "a/2.png", "b/3.jpg", "b/4.png")
    original = Image.open(folder / "a" / "1.png")
    original.convert("RGBA").save(folder / "a" / "2.png")
    original.convert("CMYK").save(folder / "b" / "3.jpg", quality=98)
    original.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "b" / "4.png")
    train = load(folder, test_ids=[0], validation_size=0).train
    for image, tolerance in zip(train.images, (0, 6, 12), strict=True):
        assert np.abs(image.astype(int) - np.asarray(original).astype(int)).mean() <= tolerance


# --- bad files ---


def spoil(folder: Path) -> None:
    """id 1 of train (ant/1.png) cut short, id 12 no image at all, id 15 with 16 bits a pixel."""
    (folder / "ant" / "1.png").write_bytes((folder / "ant" / "1.png").read_bytes()[:900])
    (folder / "bee" / "2.png").write_text("no image")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(folder / "bee" / "5.png")


def test_bad_images_are_fatal_by_default(image_folder):
    folder = image_folder(*FLAT_FILES)
    spoil(folder)
    refused(folder, "bee/2.png (id 12) cannot be decoded", test_size=2)
    shutil.copy(folder / "bee" / "3.png", folder / "bee" / "2.png")
    refused(folder, "ant/1.png (id 1) cannot be decoded (image file is truncated", test_ids=[0], validation_size=0)
    shutil.copy(folder / "bee" / "3.png", folder / "ant" / "1.png")
    refused(folder, "bee/5.png (id 15)", "more than 8 bits a pixel", test_ids=[0])


def test_bad_images_are_skipped_as_asked(image_folder, caplog):
    folder = image_folder(*FLAT_FILES)
    whole = load(folder, test_ids=[0, 1, 2], validation_size=0)
    spoil(folder)
    with caplog.at_level(logging.WARNING):
        splits = load(folder, test_ids=[0, 1, 2], validation_size=0, on_bad_record="skip")
    assert splits.train.ids.tolist() == [k for k in range(3, 20) if k not in (12, 15)]
    assert splits.test.ids.tolist() == [0, 2]
    np.testing.assert_array_equal(splits.train.images, whole.train.images[np.isin(whole.train.ids, splits.train.ids)])
    np.testing.assert_array_equal(splits.test.images, whole.test.images[[0, 2]])
    (record,) = caplog.records
    said = record.getMessage()
    assert "left out 2 of train, 1 of test" in said and "bee/2.png (id 12)" in said and "\n" not in said
    with pytest.raises(ValueError, match=r"none of the 1 test records can be read; first: .*id 1"):
        load(folder, test_ids=[1], on_bad_record="skip")


def test_links(image_folder, tmp_path):
    folder = image_folder(*FLAT_FILES)
    outside = tmp_path / "outside.png"
    shutil.copy(folder / "ant" / "0.png", outside)
    (folder / "ant" / "4.png").unlink()
    (folder / "ant" / "4.png").symlink_to(folder / "ant" / "5.png")
    assert len(load(folder, test_ids=[0]).train) == 17  # a link that stays inside is a file like any other
    (folder / "ant" / "3.png").unlink()
    (folder / "ant" / "3.png").symlink_to(outside)
    (folder / "bee" / "6.png").unlink()
    (folder / "bee" / "6.png").symlink_to(tmp_path / "nothing.png")
    (folder / "bee" / "loop").symlink_to(folder)
    refused(folder, "ant/3.png (id 3) is a link that leaves the folder", test_ids=[0])
    splits = load(folder, test_ids=[0], validation_size=0, on_bad_record="skip")
    assert splits.train.ids.tolist() == [k for k in range(1, 20) if k not in (3, 16)]
    (folder / "cow").symlink_to(folder / "bee")
    refused(folder, "cow is a link to a folder", test_ids=[0], on_bad_record="skip")


# --- layouts that are refused ---


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["1.png"], "has no subfolders"),
        (["train/1.png", "test/1.png"], "has no subfolders"),
        (["train/cat/1.png", "train/dog/1.png", "other/cat/1.png"], "has splits (train) and other folders (other)"),
        (["test/cat/1.png", "val/cat/1.png"], "has test, val but no train"),
        (["train/cat/1.png", "val/cat/1.png", "validation/cat/1.png"], "has val and validation"),
        (["train/cat/1.png", "test/cow/1.png"], "test/cow is a class that train has not; its classes: cat"),
    ],
)
def test_layouts_that_are_refused(image_folder, files, expected):
    refused(image_folder(*files), expected)


def test_what_is_left_out_or_made_colour_is_told(image_folder, caplog):
    folder = image_folder(*FLAT_FILES)
    with caplog.at_level("WARNING"):
        load(folder, test_size=2)
    assert not caplog.records
    (folder / "ant" / "scan.dcm").write_text("x")
    Image.new("L", (40, 40)).save(folder / "bee" / "grey.png")
    with caplog.at_level("WARNING"):
        load(folder, test_size=2)
    others, kinds = (record.getMessage() for record in caplog.records)
    assert others.endswith("are left out: 1 .dcm")
    assert kinds.startswith("1 images are grey, 20 in colour (of the fewer, ")
    assert "grey.png): all become colour; data.channels=1 makes them grey" in kinds


def test_other_things_that_are_refused(image_folder, tmp_path):
    folder = image_folder(*FLAT_FILES)
    (folder / "cow").mkdir()
    (folder / "cow" / "1.gif").write_text("x")
    refused(folder, "cow has no images (.png, .jpg, .jpeg)")
    refused(tmp_path / "nowhere", "nowhere' is no folder")
    refused(folder, "data.train_split, data.label_key cannot be set", train_split="a", label_key="b")
    for size in (0, -3, 2.5, True, (3,), (3, 4, 5), (0, 3), "big", "33"):
        refused(folder, "data.image_size must be a whole number above 0, or (height, width)", image_size=size)
    refused(folder, "data.channels must be 1 or 3, got 4", channels=4)
    refused(folder, "data.on_bad_record must be 'fail' or 'skip', got 'ignore'", on_bad_record="ignore")
    with pytest.raises(ValueError, match=r"needs data.data_dir"):
        data.load({"name": "mine", "source": "image_folder"})
    with pytest.raises(
        ValueError, match=r"data.image_size is for tfds, image_folder, digits, decathlon; data.source is"
    ):
        data.load({"name": "moons", "image_size": 3})
    with pytest.raises(ValueError, match=r"is a folder: set data.source='image_folder' and data.data_dir to it"):
        data.load({"name": "mine", "path": str(folder)})
    shutil.rmtree(folder / "cow")
    refused(folder, "more than data.max_ram_gb=1e-05", test_size=2, max_ram_gb=1e-5, streaming=False)


def test_needs_neither_tfds_nor_grain(image_folder):
    code = """
        import sys
        for name in ("tensorflow_datasets", "grain", "sklearn", "array_record", "tensorflow"):
            sys.modules[name] = None  # importing any of them fails from here on
        from jax_advtrain import data
        fields = {"name": "bare", "source": "image_folder", "data_dir": sys.argv[1], "test_size": 4, "image_size": 16}
        print([len(part) for part in data.load(fields)])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(image_folder(*FLAT_FILES))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[14, 2, 4]", done.stderr
