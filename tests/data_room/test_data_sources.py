"""Every source, on real data: MNIST, CIFAR-10, a MedMNIST file, the digits; and TFDS sets with odd images."""

import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from jax_advtrain import data
from jax_advtrain.data import digits


def load(name: str, data_dir: Path | None = None, **fields) -> data.Splits:
    return data.load({"name": name, "data_dir": data_dir and str(data_dir), **fields})


def run_python(code: str, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# --- TFDS ---


def test_mnist_first_originals(tfds_dir, reference_dir):
    """The id list of the originals gives the reference's images, bit for bit and in its order."""
    reference = np.load(reference_dir / "traj_linf.npz")
    splits = load(
        "mnist", tfds_dir, train_ids=f"{reference_dir / 'mnist_order.npz'}:train", num_train=256,
        validation_size=100, test_ids=f"{reference_dir / 'mnist_order.npz'}:test", num_test=20,
    )  # fmt: skip
    train = splits.train
    np.testing.assert_array_equal(train.images[..., 0], reference["x_u8"])
    np.testing.assert_array_equal(train.labels, reference["y"])
    np.testing.assert_array_equal(train.ids, np.load(reference_dir / "mnist_order.npz")["train"][:256])
    assert train.images.shape == (256, 28, 28, 1) and train.images.dtype == np.uint8
    assert train.class_names == tuple("0123456789") and train.version == "3.0.1"
    assert not np.isin(splits.validation.ids, train.ids).any()
    assert [len(part) for part in splits] == [256, 100, 20]
    # the first ten test images of the original files
    assert splits.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_ids_belong_to_records_whatever_the_subset(tfds_dir, name):
    ids = [41_000, 7, 12_345, 40_000, 0, 2048]
    listed = load(name, tfds_dir, train_ids=ids, validation_size=0, num_test=3).train
    first = load(name, tfds_dir, num_train=2049, validation_size=0, num_test=3).train
    sliced = load(name, tfds_dir, train_split="train[:8]", validation_size=0, num_test=3).train
    assert listed.ids.tolist() == ids
    for id_, source in ((7, first), (0, first), (2048, first), (7, sliced)):
        here = ids.index(id_)
        there = np.flatnonzero(source.ids == id_)[0]
        np.testing.assert_array_equal(listed.images[here], source.images[there])
        assert listed.labels[here] == source.labels[there]


def test_tfds_reads_the_same_pixels(tfds_dir):
    """Our decoding against TFDS's own: PNG grey, JPEG colour."""
    import tensorflow_datasets as tfds

    for name in ("mnist", "cifar10"):
        theirs = tfds.data_source(name, split="test", data_dir=tfds_dir, download=False)
        ours = load(name, tfds_dir, num_train=10, validation_size=0, test_ids=[0, 5, 999]).test
        for image, label, id_ in zip(ours.images, ours.labels, ours.ids, strict=True):
            np.testing.assert_array_equal(image, theirs[int(id_)]["image"])
            assert label == theirs[int(id_)]["label"]


def test_cifar10(tfds_dir):
    splits = load("cifar10", tfds_dir, num_train=50, validation_size=30, num_test=20)
    assert splits.train.images.shape == (50, 32, 32, 3)
    assert splits.train.class_names[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(splits.validation.labels).tolist() == [3] * 10
    assert splits.train.fingerprint()["name"] == "cifar10"


def encoded(image: Image.Image, file_format: str) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **({"quality": 95} if file_format == "JPEG" else {}))
    return io.BytesIO(buffer.getvalue())


def test_odd_images_and_keys(prepare_set):
    """CMYK JPEG, palette PNG and a grey one in a set of large colour images of undeclared size, with two labels."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).resize((72, 80))
    files = [
        encoded(colour, "PNG"),
        encoded(colour.convert("CMYK"), "JPEG"),
        encoded(colour.convert("P"), "PNG"),
        encoded(colour.convert("L"), "PNG"),
    ]
    wanted = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    features = {
        "picture": tfds.features.Image(shape=(None, None, 3)),
        "fine": tfds.features.ClassLabel(names=["cat", "dog"]),
        "coarse": tfds.features.ClassLabel(num_classes=1),
    }
    rows = [{"picture": file, "fine": k % 2, "coarse": 0} for k, file in enumerate(files)]
    for row in rows:
        row["picture"].seek(0)
    folder = prepare_set(features, {"train": rows})
    split = {"test_ids": [3], "validation_size": 0}
    train = load("toy", folder, label_key="fine", **split).train
    np.testing.assert_array_equal(train.images, wanted[:3])
    assert train.labels.tolist() == [0, 1, 0] and train.class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"there are several: set data.label_key. .*fine \(ClassLabel\)"):
        load("toy", folder, **split)
    with pytest.raises(ValueError, match=r"data.image_key='fine' is no Image feature; there are: picture"):
        load("toy", folder, image_key="fine", **split)
    with pytest.raises(ValueError, match=r"take 6.91e-05 GB, more than data.max_ram_gb=4e-05"):
        load("toy", folder, label_key="fine", max_ram_gb=4e-5, streaming=False, test_ids=[3], validation_size=1)


def test_images_of_different_sizes_are_refused(prepare_set):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(None, None, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    sizes = [(8, 8), (8, 8), (9, 8)]
    rows = [{"image": Image.new("L", size), "label": k % 2} for k, size in enumerate(sizes)]
    folder = prepare_set(features, {"train": rows, "test": rows[:1]})
    assert load("toy", folder, num_train=2, validation_size=0).train.image_shape == (8, 8, 1)
    with pytest.raises(ValueError, match=r"images differ in size \(\(8, 9, 1\) at id 2.* set data.image_size"):
        load("toy", folder, validation_size=0)


def test_an_own_validation_split_that_is_used_otherwise_is_no_validation(prepare_set):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    rows = [{"image": Image.new("L", (8, 8), k), "label": k % 2} for k in range(20)]
    folder = prepare_set(features, {"train": rows[:10], "validation": rows[10:16], "test": rows[16:]})
    assert [len(part) for part in load("toy", folder)] == [10, 6, 4]
    assert [len(part) for part in load("toy", folder, train_split="train+validation", validation_size=4)] == [12, 4, 4]
    half = load("toy", folder, test_split="validation[:50%]", validation_size=2)
    assert [len(part) for part in half] == [8, 2, 3]
    with pytest.raises(ValueError, match=r"data.validation_split='validation\[4:\]' and data.train_split='train\+val"):
        load("toy", folder, train_split="train+validation", validation_split="validation[4:]")


def test_images_of_different_sizes_are_resized(prepare_set, photographs, caplog):
    """With one that is cut short among them, and grey ones among coloured."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["china", "flower"])}
    whole = [Image.fromarray(photographs[k % 2][: 60 + 10 * k, : 90 + 5 * k]) for k in range(6)]
    files = [encoded(image if k != 4 else image.convert("L"), "PNG") for k, image in enumerate(whole)]
    rows = [{"image": file, "label": k % 2} for k, file in enumerate(files)]
    folder = prepare_set(features, {"train": rows, "test": [{"image": whole[0], "label": 0}] * 2})
    config = {"image_size": (48, 64), "validation_size": 0}
    train = load("toy", folder, **config).train
    assert train.images.shape == (6, 48, 64, 3) and train.version == "1.0.0-48x64"
    for k, image in enumerate(whole):
        fitted = ImageOps.fit(image, (64, 48), Image.Resampling.BILINEAR)
        wanted = np.asarray(fitted if k != 4 else fitted.convert("L").convert("RGB"))
        assert np.abs(train.images[k].astype(int) - wanted.astype(int)).max() <= 2
    grey = load("toy", folder, channels=1, **config).train
    assert grey.image_shape == (48, 64, 1) and grey.version == "1.0.0-48x64-channels1"
    with pytest.raises(ValueError, match=r"more than data.max_ram_gb=5e-05"):
        load("toy", folder, max_ram_gb=5e-5, streaming=False, **config)
    limited = load("toy", folder, max_ram_gb=5e-5, num_train=2, num_test=1, **config)
    assert len(limited.train) == 2


@pytest.mark.parametrize("shape", [(None, None, 3), (40, 40, 3)])
def test_damaged_images_of_a_set(prepare_set, photographs, caplog, shape):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=2)}
    files = [encoded(Image.fromarray(photographs[0][k : k + 40, :40]), "PNG") for k in range(8)]
    files[0], files[5] = io.BytesIO(files[0].getvalue()[:300]), io.BytesIO(b"no image")
    rows = [{"image": file, "label": k % 2} for k, file in enumerate(files)]
    folder = prepare_set(features, {"train": rows, "test": [{"image": Image.new("RGB", (40, 40)), "label": 0}]})
    with pytest.raises(ValueError, match=r"toy, split 'train': image of id 0 cannot be decoded \(image file is trunc"):
        load("toy", folder, validation_size=0)
    splits = load("toy", folder, validation_size=0, on_bad_record="skip")
    assert splits.train.ids.tolist() == [1, 2, 3, 4, 6, 7] and splits.train.labels.tolist() == [1, 0, 1, 0, 0, 1]
    for image, id_ in zip(splits.train.images, splits.train.ids, strict=True):
        np.testing.assert_array_equal(image, photographs[0][id_ : id_ + 40, :40])
    (record,) = caplog.records
    assert "left out 2 of train that cannot be read; first: toy, split 'train': image of id 0" in record.getMessage()


# --- digits ---


def test_digits_are_scikit_learns(digits_dir):
    splits = load("digits", digits_dir)
    bunch = load_digits()
    indices = digits.split_indices(bunch.target)
    assert sorted(np.concatenate(list(indices.values()))) == list(range(1797))
    for name, part in zip(("train", "validation", "test"), splits, strict=True):
        rows = indices[name]
        np.testing.assert_array_equal(part.images[..., 0], np.round(bunch.images[rows] * 255 / 16))
        np.testing.assert_array_equal(part.labels, bunch.target[rows])
        assert part.ids.tolist() == list(range(len(rows))) and part.split == name
        share = np.bincount(part.labels) / np.bincount(bunch.target)
        assert np.ptp(share) < 0.01  # stratified
    assert splits.train.images.max() == 255
    assert [len(part) for part in splits] == [1259, 179, 359]


def test_digits_prepared_twice_are_the_same(digits_dir, tmp_path):
    again = load("digits", tmp_path)
    for a, b in zip(load("digits", digits_dir), again, strict=True):
        assert a.fingerprint() == b.fingerprint()
        np.testing.assert_array_equal(a.images, b.images)
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    load("digits", tmp_path)
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_digits_two_first_uses_at_once_and_a_kill(tmp_path):
    """A kill just before the end leaves no set behind; the next two at once both get a whole one."""
    kill = """
        import os, pathlib, signal, sys
        from jax_advtrain.data import digits
        os.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        digits.prepare(pathlib.Path(sys.argv[1]))
    """
    assert run_python(kill, str(tmp_path)).returncode == -9
    assert list((tmp_path / "digits").glob("incomplete.*"))
    assert not (tmp_path / "digits" / digits.VERSION).exists()

    race = """
        import os, pathlib, sys, time
        from jax_advtrain.data import digits
        write, rename = digits._write, os.rename
        def write_and_wait(folder):
            write(folder)
            (folder / "ready").touch()
            while len(list(folder.parent.glob("*/ready"))) < 2 and not (folder.parent / digits.VERSION).exists():
                time.sleep(0.01)
        digits._write = write_and_wait
        digits.prepare(pathlib.Path(sys.argv[1]))
    """
    command = [sys.executable, "-c", textwrap.dedent(race), str(tmp_path)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for racer in racers:
        out, err = racer.communicate(timeout=120)
        assert racer.returncode == 0, out + err
    assert len(load("digits", tmp_path).train) == 1259
    assert len(list((tmp_path / "digits").glob("incomplete.*"))) == 1  # the killed one's, too young to be removed


def test_digits_remove_what_was_abandoned(tmp_path, monkeypatch):
    leftover = tmp_path / "digits" / "incomplete.old"
    leftover.mkdir(parents=True)
    monkeypatch.setattr(digits, "ABANDONED_AFTER_SECONDS", -1)
    digits.prepare(tmp_path)
    assert not leftover.exists() and (tmp_path / "digits" / digits.VERSION).exists()


def test_digits_go_to_the_users_tfds_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(data.load({"name": "digits", "num_train": 20}).train) == 20
    assert (tmp_path / "digits" / "1.0.0" / "dataset_info.json").exists()


# --- npz ---


def test_medmnist_file(medmnist_file):
    splits = load("pneumonia", path=str(medmnist_file))
    arrays = np.load(medmnist_file)
    for key, part in zip(("train", "val", "test"), splits, strict=True):
        np.testing.assert_array_equal(part.images[..., 0], arrays[f"{key}_images"])
        np.testing.assert_array_equal(part.labels, arrays[f"{key}_labels"][:, 0])
    assert splits.train.num_classes == 2 and splits.validation.split == "validation"


def test_npz_of_floats_without_test(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.random((40, 5, 5)), np.arange(40) % 4
    path = tmp_path / "mine.npz"
    np.savez(path, images=images, labels=labels, class_names=np.array(["a", "b", "c", "d"]))
    splits = load(str(path), test_size=0.25, validation_size=4)
    assert [len(part) for part in splits] == [26, 4, 10]
    assert sorted(np.concatenate([part.ids for part in splits])) == list(range(40))
    np.testing.assert_array_equal(splits.test.images, images[splits.test.ids].astype(np.float32))
    assert splits.test.class_names == ("a", "b", "c", "d")
    before = splits.train.fingerprint()
    np.savez(path, images=images[::-1], labels=labels, class_names=np.array(["a", "b", "c", "d"]))
    assert load(str(path), test_size=0.25, validation_size=4).train.fingerprint() != before  # labels are the same


def test_npz_needs_neither_tfds_nor_grain(tmp_path):
    np.savez(tmp_path / "bare.npz", images=np.zeros((20, 3, 3), np.uint8), labels=np.arange(20) % 2)
    code = """
        import sys
        for name in ("tensorflow_datasets", "grain", "sklearn", "PIL", "array_record", "tensorflow"):
            sys.modules[name] = None  # importing any of them fails from here on
        from jax_advtrain import data
        print([len(part) for part in data.load({"name": "bare", "path": sys.argv[1], "test_size": 4})])
    """
    done = run_python(code, str(tmp_path / "bare.npz"))
    assert done.stdout.strip() == "[14, 2, 4]", done.stderr


def test_tfds_sets_need_no_tensorflow(digits_dir):
    code = """
        import sys
        from jax_advtrain import data
        print(len(data.load({"name": "digits", "data_dir": sys.argv[1]}).train), "tensorflow" in sys.modules)
    """
    done = run_python(code, str(digits_dir))
    assert done.stdout.strip() == "1259 False", done.stderr
    assert done.stderr == ""


# --- moons ---


def test_moons():
    splits = load("moons", num_train=300, num_test=100, noise=0.0, seed=3)
    assert [len(part) for part in splits] == [300, 100, 100]
    points, labels = splits.train.images, splits.train.labels
    assert points.dtype == np.float32 and points.shape == (300, 2)
    # Every noiseless point lies on its half circle: radius 1/4 around (3/8, 7/16) above, (5/8, 9/16) below.
    centres = np.array([[3 / 8, 7 / 16], [5 / 8, 9 / 16]])[labels]
    np.testing.assert_allclose(np.linalg.norm(points - centres, axis=1), 0.25, atol=1e-6)
    outward = np.where(labels == 0, 1, -1) * (points[:, 1] - centres[:, 1])
    assert outward.min() > -1e-6 and np.bincount(labels).tolist() == [150, 150]
    np.testing.assert_array_equal(load("moons", num_train=300, noise=0.0, seed=3).train.images, points)


def test_moons_splits_and_seeds_differ():
    a, b = load("moons", noise=0.05, seed=0), load("moons", noise=0.05, seed=1)
    assert not np.array_equal(a.train.images, b.train.images)
    assert not np.array_equal(a.validation.images, a.test.images)
    assert a.train.fingerprint() != b.train.fingerprint()
    wild = load("moons", noise=3.0).train.images
    assert wild.min() == 0 and wild.max() == 1
