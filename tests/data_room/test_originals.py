"""CIFAR-100, SVHN and STL-10 from files in their original layouts, against TFDS's own reading of the same files."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import original_files
import pytest

from jax_advtrain import data
from jax_advtrain.data import originals
from jax_advtrain.data.source_files import find_files
from jax_advtrain.data.tfds_writer import _order

FOLDERS = {"cifar100": "cifar-100-binary", "svhn_cropped": "svhn", "stl10": "stl10_binary"}
WRITE = {"cifar100": original_files.cifar100, "svhn_cropped": original_files.svhn, "stl10": original_files.stl10}


def original(name: str, folder: Path, photographs, **more) -> dict[str, np.ndarray]:
    return WRITE[name](folder / FOLDERS[name], photographs, **more)


def refused(name: str, tmp_path: Path, *expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        originals.prepare(name, tmp_path / "tfds", tmp_path)
    assert "\n" not in str(caught.value)
    for text in expected:
        assert text in str(caught.value)
    assert not list((tmp_path / "tfds" / name).iterdir())


def tfds_examples(name: str, folder: Path, split: str, monkeypatch) -> Iterator[tuple[int, dict]]:
    """What TFDS's own builder reads from the same files; of TensorFlow it needs a way to open them."""
    import importlib

    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder / "never", file_format="array_record")
    module = importlib.import_module(type(builder).__module__)
    gfile = SimpleNamespace(GFile=open)
    monkeypatch.setattr(module, "tf", SimpleNamespace(io=SimpleNamespace(gfile=gfile)))
    files = folder / FOLDERS[name]
    if name == "cifar100":
        return builder._generate_examples(f"{split}_", [str(files / f"{split}.bin")])
    if name == "svhn_cropped":
        return builder._generate_examples(f"{split}_", str(files / f"{split}_32x32.mat"))
    if split == "unlabelled":
        return builder._generate_examples([str(files / "unlabeled_X.bin")])
    return builder._generate_examples([str(files / f"{split}_X.bin"), str(files / f"{split}_y.bin")])


@pytest.mark.parametrize("name", list(WRITE))
def test_the_records_are_those_of_tfds(name, tmp_path, photographs, monkeypatch):
    """Every feature of every record, the version, the features and their kinds."""
    import tensorflow_datasets as tfds

    more = {"splits": ("train", "test", "extra")} if name == "svhn_cropped" else {}
    original(name, tmp_path, photographs, **more)
    folder = originals.prepare(name, tmp_path / "tfds", tmp_path)
    theirs = tfds.builder(name, data_dir=tmp_path / "never", file_format="array_record")
    assert folder == tmp_path / "tfds" / name / str(theirs.version)
    ours = tfds.builder_from_directory(folder)
    assert {key: repr(value) for key, value in ours.info.features.items()} == {
        key: repr(value) for key, value in theirs.info.features.items()
    }
    assert ours.info.supervised_keys == theirs.info.supervised_keys
    third = {"cifar100": set(), "svhn_cropped": {"extra"}, "stl10": {"unlabelled"}}[name]
    assert set(ours.info.splits) == {"train", "test"} | third
    for split in ours.info.splits:
        wanted = dict(tfds_examples(name, tmp_path, split, monkeypatch))
        records = ours.as_data_source(split)
        assert len(records) == len(wanted)
        for record, key in zip(records, _order(split, range(len(wanted))), strict=True):
            assert set(record) == set(wanted[key])
            np.testing.assert_array_equal(record["image"], wanted[key]["image"])
            for feature in set(record) - {"image"}:
                found = record[feature].decode() if isinstance(record[feature], bytes) else record[feature]
                assert found == wanted[key][feature]


def test_the_order_is_that_of_tfds(prepare_set, tmp_path):
    """The same records written by TFDS's own shuffling lie in the same places, so that ids agree."""
    import tensorflow_datasets as tfds

    class Shuffled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"n": np.int64}))

        def _split_generators(self, dl_manager):
            return {split: ((k, {"n": k}) for k in range(50)) for split in ("train", "extra")}

        def _generate_examples(self):  # TFDS asks for one; the splits above hold the examples themselves
            return iter(())

    config = tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP, try_download_gcs=False)
    builder = Shuffled(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare(download_config=config)
    for split in ("train", "extra"):
        assert [int(record["n"]) for record in builder.as_data_source(split)] == _order(split, range(50))


@pytest.mark.parametrize(("name", "classes"), [("cifar100", 100), ("svhn_cropped", 10), ("stl10", 10)])
def test_data_name_reads_them(name, classes, tmp_path, photographs):
    images = original(name, tmp_path, photographs)
    originals.prepare(name, tmp_path / "tfds", tmp_path)
    splits = data.load({"name": name, "data_dir": str(tmp_path / "tfds"), "validation_size": 2})
    for split, part in (("train", splits.train), ("test", splits.test)):
        keys = np.array(_order(split, range(len(images[split]))))[part.ids]
        np.testing.assert_array_equal(part.images, images[split][keys])
        if name == "cifar100":
            np.testing.assert_array_equal(part.labels, keys * 7 % 100)
        elif name == "svhn_cropped":
            np.testing.assert_array_equal(part.labels, (keys + 1) % 10)  # 10 means 0
        else:
            np.testing.assert_array_equal(part.labels, keys % 10)
    assert splits.train.num_classes == classes
    names = {"cifar100": original_files.FINE, "stl10": original_files.STL_NAMES}.get(name, list("0123456789"))
    assert splits.train.class_names == tuple(names)
    if name == "cifar100":
        config = {"name": name, "data_dir": str(tmp_path / "tfds"), "label_key": "coarse_label"}
        assert data.load(config).train.class_names == tuple(original_files.COARSE)


# --- archives ---


@pytest.mark.parametrize("name", ["cifar100", "stl10"])
def test_from_the_archive(name, tmp_path, photographs):
    original(name, tmp_path / "plain", photographs)
    (tmp_path / "packed").mkdir()
    archive = tmp_path / "packed" / originals.ORIGINALS[name].archive
    original_files.pack(archive, tmp_path / "plain" / FOLDERS[name])
    before = archive.read_bytes()
    prints = []
    for where in ("plain", "packed"):
        originals.prepare(name, tmp_path / f"tfds_{where}", tmp_path / where)
        found = data.load({"name": name, "data_dir": str(tmp_path / f"tfds_{where}"), "validation_size": 1})
        prints.append([part.fingerprint() for part in found])
    assert prints[0] == prints[1]
    assert archive.read_bytes() == before and list((tmp_path / "packed").iterdir()) == [archive]
    assert [path.name for path in (tmp_path / "tfds_packed" / name).iterdir()] == [originals.ORIGINALS[name].version]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    ("evil", "expected"),
    [
        (member("../../escaped.txt"), "which leaves its folder"),
        (member("cifar-100-binary/../../escaped.txt"), "which leaves its folder"),
        (member("/tmp/escaped_from_archive.txt"), "which leaves its folder"),
        (member("..\\escaped.txt"), "which leaves its folder"),
        (member("C:\\escaped.txt"), "which leaves its folder"),
        (member("cifar-100-binary/link", tarfile.SYMTYPE, "/etc/passwd"), "is a link or device"),
        (member("cifar-100-binary/link", tarfile.LNKTYPE, "../../x"), "is a link or device"),
        (member("cifar-100-binary/pipe", tarfile.FIFOTYPE), "is a link or device"),
        (member("other/train.bin"), "has train.bin twice"),
    ],
)
def test_archives_that_are_not_opened(tmp_path, photographs, evil, expected):
    original_files.cifar100(tmp_path / "plain" / "cifar-100-binary", photographs, 2)
    archive = tmp_path / "cifar-100-binary.tar.gz"
    original_files.pack(archive, tmp_path / "plain" / "cifar-100-binary", evil)
    refused("cifar100", tmp_path, str(archive), expected)
    assert not list(tmp_path.rglob("escaped*")) and not Path("/tmp/escaped_from_archive.txt").exists()


def test_damaged_archives(tmp_path, photographs):
    original_files.cifar100(tmp_path / "plain" / "cifar-100-binary", photographs, 2)
    archive = tmp_path / "cifar-100-binary.tar.gz"
    original_files.pack(archive, tmp_path / "plain" / "cifar-100-binary")
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive", b"", whole[:500] + bytes(500) + whole[1000:]):
        archive.write_bytes(content)
        refused("cifar100", tmp_path, f"{archive} ")
    (tmp_path / "plain" / "cifar-100-binary" / "test.bin").unlink()
    original_files.pack(archive, tmp_path / "plain" / "cifar-100-binary")
    refused("cifar100", tmp_path, f"{archive} lacks test.bin")


# --- files ---


@pytest.mark.parametrize(
    ("name", "file", "change", "expected"),
    [
        ("cifar100", "train.bin", lambda b: b[:-1], "no whole number of records of 3074 bytes"),
        ("cifar100", "test.bin", lambda b: b"", "test.bin has 0 bytes"),
        (
            "cifar100",
            "test.bin",
            lambda b: b"\x14" + b[1:],
            "1 coarse labels are outside 0..19 (first: 20 of",
        ),
        ("cifar100", "test.bin", lambda b: b[:1] + b"\x64" + b[2:], "1 fine labels are outside 0..99 (first: 100"),
        ("cifar100", "fine_label_names.txt", lambda b: b[:300], "different class names, not 100"),
        ("svhn_cropped", "test_32x32.mat", lambda b: b[: len(b) // 2], "test_32x32.mat is no MATLAB file with X and y"),
        ("svhn_cropped", "test_32x32.mat", lambda b: b"MATLAB", "test_32x32.mat is no MATLAB file with X and y"),
        ("stl10", "train_X.bin", lambda b: b[:-5], "no whole number of records of 27648 bytes"),
        ("stl10", "train_y.bin", lambda b: b[:-1], "has 11 images"),
        ("stl10", "train_y.bin", lambda b: b"\x00" + b[1:], "1 labels are outside 1..10 (first: 0 of record 0)"),
    ],
)
def test_damaged_files(tmp_path, photographs, name, file, change, expected):
    original(name, tmp_path, photographs)
    path = tmp_path / FOLDERS[name] / file
    path.write_bytes(change(path.read_bytes()))
    refused(name, tmp_path, file, expected)


def test_svhn_of_other_shapes(tmp_path):
    from scipy.io import savemat

    (tmp_path / "svhn").mkdir()
    for split in ("train", "test"):
        arrays = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((5, 1))}
        savemat(tmp_path / "svhn" / f"{split}_32x32.mat", arrays)
    refused("svhn_cropped", tmp_path, "X must be uint8 (32, 32, 3, N) and y (N, 1), got uint8 (32, 32, 3, 4) and (5,)")


def test_pickled_batches_are_refused(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"\x80\x02cos\nsystem\n.")
    refused(
        "cifar100", tmp_path, "lacks cifar-100-binary.tar.gz", "cifar-100-python holds pickles, which are never loaded"
    )


def test_files_are_found_beside_other_folders(tmp_path):
    for name in ("a/x.txt", "b/x.txt", "b/y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_files(tmp_path, ["x.txt", "y.txt"], ["z.txt"], "", tmp_path / "never")
    assert found == {"x.txt": tmp_path / "b" / "x.txt", "y.txt": tmp_path / "b" / "y.txt"}
    with pytest.raises(ValueError, match=r"lacks x.txt, q.txt"):
        find_files(tmp_path, ["x.txt", "q.txt"], [], "", tmp_path / "never")
    with pytest.raises(ValueError, match="is no folder"):
        find_files(tmp_path / "none", ["x.txt"], [], "", tmp_path / "never")
