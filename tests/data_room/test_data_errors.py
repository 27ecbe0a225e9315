"""Bad input is answered by one line that says what, where, and what would be right."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from jax_advtrain import data

SHARD = "digits-train.array_record-00000-of-00001"
TRAIN = np.zeros((6, 2, 2), np.uint8)
LABELS = np.array([0, 1, 0, 1, 0, 1])


def refused(config: dict, *expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        data.load(config)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "data.name must be set"),
        ({"name": ""}, "data.name must be set"),
        ({"name": 3}, "data.name must be a string"),
        (
            {"name": "moons", "valdation_size": 3},
            "unknown field data.valdation_size: did you mean data.validation_size?",
        ),
        ({"name": "moons", "source": "moon"}, "unknown data.source 'moon': did you mean 'moons'?"),
        ({"name": "x", "source": "npz"}, "data.source='npz' needs data.path"),
        ({"name": "digits", "source": "digits", "path": "x"}, "data.path is for .npz files"),
        ({"name": "moons", "augment": ("flop",)}, "did you mean 'flip'"),
        ({"name": "moons", "num_train": 0}, "data.num_train must be a whole number above 0"),
        ({"name": "moons", "num_test": 2.5}, "data.num_test must be a whole number above 0"),
        ({"name": "moons", "seed": -1}, "data.seed must be a whole number in [0, 2**32)"),
        ({"name": "moons", "noise": float("nan")}, "data.noise must be a finite number 0 or more"),
        ({"name": "moons", "max_ram_gb": 0}, "data.max_ram_gb must be a finite number above 0"),
        ({"name": "moons", "max_ram_gb": 1e-6}, "GB, more than data.max_ram_gb=1e-06; take fewer samples"),
        ({"name": "moons", "validation_size": 1.0}, "data.validation_size must be a count"),
        ({"name": "moons", "validation_size": -1}, "data.validation_size must be a count"),
        ({"name": "moons", "validation_size": True}, "data.validation_size must be a count"),
        ({"name": "moons", "validation_from": "test"}, "data.validation_from must be 'split', 'rest' or 'train'"),
        ({"name": "moons", "validation_size": 1001}, "data.validation_size=1001 cannot be taken from 1000 samples"),
        ({"name": "moons", "validation_from": "train", "validation_size": 1000}, "takes all 1000 training samples"),
        ({"name": "moons", "validation_from": "rest"}, "data.validation_size=0.1 cannot be taken from 0 samples"),
        ({"name": "moons", "test_size": 3}, "moons has a test split: data.test_size cannot be set"),
        ({"name": "moons", "train_ids": [1, 2, 1000]}, "data.train_ids: 1 ids are outside 0..999 (first: 1000)"),
        ({"name": "moons", "train_ids": [1, -2]}, "data.train_ids: 1 ids are outside 0..999 (first: -2)"),
        ({"name": "moons", "test_ids": [1, 2, 1]}, "data.test_ids: 1 ids are doubled (first: 1)"),
        ({"name": "moons", "train_ids": []}, "data.train_ids must be a list of whole numbers"),
        ({"name": "moons", "train_ids": [0.5]}, "data.train_ids must be a list of whole numbers"),
        ({"name": "moons", "train_ids": [1, 2], "num_train": 3}, "data.num_train=3, but there are only 2 samples"),
        ({"name": "moons", "train_ids": "nowhere.npy"}, "data.train_ids='nowhere.npy' cannot be read"),
        ({"name": "moons", "train_ids": "ids.csv"}, "need a .txt, .npy or .npz file"),
        ({"name": "mnist", "data_dir": "/no/such"}, "data.data_dir='/no/such' does not exist (looking for 'mnist')"),
        ({"name": "mnist", "data_dir": "/no/such"}, "pip install 'jax_advtrain[prepare]'"),
        ({"name": "no name"}, "data.name='no name' is no TFDS name"),
        ({"name": "x", "path": "/no/such.npz"}, "data.path='/no/such.npz' is no file"),
    ],
)
def test_bad_config(config, expected):
    refused(config, expected)


def test_bad_id_files(tmp_path):
    (tmp_path / "words.txt").write_text("1\ntwo\n")
    np.savez(tmp_path / "two.npz", a=np.arange(3), b=np.arange(3))
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    for file, expected in (
        ("words.txt", "cannot be read: invalid literal"),
        ("two.npz", "no key given; it has a, b"),
        ("two.npz:c", "no array 'c'; it has a, b"),
        ("objects.npy", "cannot be read: Object arrays cannot be loaded"),
    ):
        refused({"name": "moons", "train_ids": str(tmp_path / file)}, f"data.train_ids='{tmp_path / file}'", expected)


# --- TFDS folders ---


@pytest.mark.parametrize("name", ["mnis", "mnist:9.9.9", "mnist/config"])
def test_set_that_is_not_there(tfds_dir, name):
    refused({"name": name, "data_dir": str(tfds_dir)}, f"{name!r}", str(tfds_dir), "looked for", "prepare it with")


def test_split_that_is_not_there(tfds_dir):
    for field in ("train_split", "validation_split", "test_split"):
        config = {"name": "mnist", "data_dir": str(tfds_dir), field: "extra"}
        refused(config, "mnist has no split 'extra'; its splits are train, test")
    config = {"name": "mnist", "data_dir": str(tfds_dir), "validation_split": "test"}
    refused(config, "data.test_split='test' and data.validation_split='test' have records in common")
    config["validation_split"] = None
    refused({**config, "test_split": "train"}, "data.test_split='train' and data.train_split='train' have records")
    refused({**config, "test_split": "train[80%:]"}, "data.test_split='train[80%:]' and data.train_split='train' have")
    refused({**config, "validation_split": "test[:10]"}, "data.test_split='test' and data.validation_split='test[:10]'")


def test_splits_that_share_nothing(tfds_dir):
    config = {"name": "mnist", "data_dir": str(tfds_dir), "train_split": "train[:100]", "test_split": "train[100:120]"}
    found = data.load({**config, "validation_split": "train[120:150]"})
    assert [len(part) for part in found] == [100, 30, 20]


def damage(file: Path, start: int, stop: int) -> None:
    content = bytearray(file.read_bytes())
    content[start:stop] = bytes(stop - start)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("hurt", "expected"),
    [
        (lambda folder: (folder / "dataset_info.json").unlink(), "is half-written (dataset_info.json is missing)"),
        (lambda folder: (folder / "features.json").unlink(), "is half-written (features.json is missing)"),
        (lambda folder: (folder / "dataset_info.json").write_text('{"name": "dig'), "is damaged"),
        (lambda folder: (folder / "features.json").write_text(""), "is damaged"),
        (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing or half-written"),
        (lambda folder: (folder / SHARD).write_bytes(b""), f"{SHARD} is missing or half-written"),
        (lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:70_000]), "half-written"),
        (lambda folder: shutil.copy(folder / SHARD.replace("train", "test"), folder / SHARD), "359 records instead of"),
        (lambda folder: damage(folder / SHARD, 10_000, 10_500), "split 'train': damaged record"),
        (lambda folder: folder.rename(folder.parent / "incomplete.ABC_1.0.0"), "only an unfinished preparation of"),
        (lambda folder: shutil.rmtree(folder), "no version of 'digits'"),
    ],
)  # fmt: skip
def test_half_written_set(digits_dir, tmp_path, hurt, expected):
    folder = tmp_path / "digits" / "1.0.0"
    shutil.copytree(digits_dir / "digits" / "1.0.0", folder)
    data.load({"name": "digits", "source": "tfds", "data_dir": str(tmp_path)})  # whole until here
    hurt(folder)
    refused({"name": "digits", "source": "tfds", "data_dir": str(tmp_path)}, expected, "digits")


def test_several_configs(digits_dir, tmp_path):
    for config in ("small", "large"):
        shutil.copytree(digits_dir / "digits" / "1.0.0", tmp_path / "digits" / config / "1.0.0")
    config = {"name": "digits", "source": "tfds", "data_dir": str(tmp_path)}
    refused(config, "several configs: set data.name to one of digits/large, digits/small")
    assert len(data.load({**config, "name": "digits/small"}).train) == 1259
    shutil.rmtree(tmp_path / "digits" / "large")
    assert len(data.load(config).train) == 1259


def test_newest_version_is_taken(digits_dir, tmp_path):
    for version in ("1.0.0", "0.9.0", "0.10.0"):
        shutil.copytree(digits_dir / "digits" / "1.0.0", tmp_path / "digits" / version)
    (tmp_path / "digits" / "1.0.0" / "features.json").unlink()
    refused({"name": "digits", "source": "tfds", "data_dir": str(tmp_path)}, "1.0.0 is half-written")
    shutil.rmtree(tmp_path / "digits" / "1.0.0")
    (tmp_path / "digits" / "0.9.0" / "features.json").unlink()
    assert len(data.load({"name": "digits", "source": "tfds", "data_dir": str(tmp_path)}).train) == 1259


def test_set_of_something_else(prepare_set):
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    folder = prepare_set(features, {"train": [{"text": "a", "label": 0}]})
    refused({"name": "toy", "data_dir": str(folder)}, "need one Image feature, there are none", "text (Text)")


def test_digits_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused({"name": "digits", "data_dir": str(tmp_path / "file")}, "cannot prepare digits in", "set data.data_dir")


# --- npz files ---


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": TRAIN}, "has 'images' but no 'labels'"),
        ({"labels": LABELS}, "has arrays labels: 'images' and 'labels' are needed"),
        ({"images": TRAIN, "labels": LABELS[:5]}, "'images' has shape (6, 2, 2) but there are 5 labels"),
        (
            {"images": TRAIN, "labels": np.eye(6, dtype=int)},
            "'labels' must be integers (N,) or (N, 1), got int64 (6, 6)",
        ),
        ({"images": TRAIN, "labels": LABELS / 2}, "'labels' must be integers (N,) or (N, 1), got float64"),
        ({"images": TRAIN, "labels": LABELS - 1}, "labels are outside the 1 classes 0..0 (first: label -1 of id"),
        ({"images": TRAIN, "labels": LABELS, "class_names": np.array(["only"])}, "labels are outside the 1 classes"),
        (
            {"images": TRAIN, "labels": LABELS + 2**32, "class_names": np.array(["a", "b"])},
            "4 labels are outside the 2 classes 0..1",
        ),
        ({"images": TRAIN, "labels": LABELS, "class_names": np.array([1, 2])}, "'class_names' must be strings"),
        ({"images": TRAIN.astype(int) + 256, "labels": LABELS}, "holds integers from 256 to 256; need 0..255"),
        ({"images": TRAIN.astype(bool), "labels": LABELS}, "or floats in [0,1]; got bool"),
        ({"images": TRAIN[..., 0], "labels": LABELS}, "must be integers (N, H, W) or (N, H, W, C)"),
        ({"images": TRAIN + 1.5, "labels": LABELS}, "float images must lie in [0,1], but 4 do not"),
        ({"images": TRAIN * np.nan, "labels": LABELS}, "has NaN pixels"),
        ({"images": np.array([None] * 6), "labels": LABELS}, "pickled objects are never loaded"),
        ({"images": np.zeros((500, 50, 50)), "labels": np.zeros(500, int), "max_ram_gb": 0.001}, "max_ram_gb=0.001"),
        ({"images": TRAIN, "labels": LABELS, "train_split": "a"}, "a .npz file has no named splits"),
        ({"images": TRAIN, "labels": LABELS, "test_size": None}, "toy has no test split: set data.test_size"),
        ({"images": TRAIN, "labels": LABELS, "test_ids": [1], "test_size": 1}, "cannot both be set"),
        ({"images": TRAIN, "labels": LABELS, "test_size": 6}, "6 test samples and 0 for training"),
        ({"images": TRAIN, "labels": LABELS, "test_ids": [1], "test_size": None, "train_ids": [0, 1]}, "in common"),
    ],
)
def test_bad_npz(tmp_path, arrays, expected):
    config = {"name": "toy", "path": str(tmp_path / "toy.npz"), "test_size": 2, "validation_size": 0}
    keys = ("images", "labels", "class_names")
    np.savez(tmp_path / "toy.npz", **{key: value for key, value in arrays.items() if key in keys})
    refused({**config, **{key: value for key, value in arrays.items() if key not in keys}}, expected)


def test_files_that_are_no_npz(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    np.savez(tmp_path / "whole.npz", images=TRAIN, labels=LABELS)
    whole = (tmp_path / "whole.npz").read_bytes()
    np.savez_compressed(tmp_path / "packed.npz", images=TRAIN, labels=LABELS)
    packed = (tmp_path / "packed.npz").read_bytes()
    garbled = packed[:60] + b"\xff" * 40 + packed[100:]
    np.save(tmp_path / "single.npy", TRAIN)
    contents = {
        "pickled": pickle.dumps(Hostile()),
        "empty": b"",
        "text": b"images, labels",
        "garbled": garbled,
        "cut": whole[: len(whole) // 2],
        "single": (tmp_path / "single.npy").read_bytes(),
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        refused({"name": "toy", "path": str(path)}, f"{path} is no readable .npz of plain arrays")
    assert not (tmp_path / "executed").exists()
