"""ImageNet: from archives in its exact layout to a TFDS set, to training images that are streamed."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from imagenet_files import CMYK, PNG, TRAIN, VALIDATION, imagenet, synsets
from PIL import Image

from jax_advtrain import data
from jax_advtrain.data import originals, prepare


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, dict[str, dict[str, bytes]]]:
    folder = tmp_path_factory.mktemp("downloads")
    return folder, imagenet(folder)


@pytest.fixture(scope="module")
def data_dir(archives, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    command = ["--name=imagenet2012", f"--data_dir={folder}", f"--manual_dir={archives[0]}"]
    assert prepare.main(command) == 0
    return folder


def refused(tmp_path: Path, *expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        originals.prepare("imagenet2012", tmp_path / "tfds", tmp_path)
    assert "\n" not in str(caught.value)
    for text in expected:
        assert text in str(caught.value)
    assert not list((tmp_path / "tfds" / "imagenet2012").iterdir())


def test_records_keep_their_bytes_but_for_the_two_odd_ones(archives, data_dir):
    """The features, the names of the classes, the labels and the order by hash of the file names are TFDS's."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import hashing

    theirs = tfds.builder("imagenet2012", data_dir=data_dir / "never", file_format="array_record")
    ours = tfds.builder_from_directory(data_dir / "imagenet2012" / str(theirs.version))
    assert repr(ours.info.features) == repr(theirs.info.features)
    assert ours.info.features["label"].names == theirs.info.features["label"].names
    validation_labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    for split in ("train", "validation"):
        files = archives[1][split]
        raw = ours.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        hasher = hashing.Hasher(split)
        names = [record["file_name"].decode() for record in raw]
        assert names == sorted(files, key=hasher.hash_key)
        for record, name in zip(raw, names, strict=True):
            wanted = validation_labels[int(name[-13:-5]) - 1] if split == "validation" else name.split("_")[0]
            assert ours.info.features["label"].names[record["label"]] == wanted
            if name not in (CMYK, PNG):
                assert record["image"] == files[name]
                continue
            image = Image.open(io.BytesIO(record["image"]))
            assert (image.format, image.mode) == ("JPEG", "RGB")
            original = np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")).astype(int)
            assert np.abs(np.asarray(image).astype(int) - original).mean() < 2


def test_many_shards_hold_the_same_records_in_the_same_order(archives, data_dir, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr("jax_advtrain.data.tfds_writer._SHARD_BYTES", 60_000)
    folder = originals.prepare("imagenet2012", tmp_path, archives[0])
    assert len(list(folder.glob("*-train.array_record-*"))) > 3
    one, many = (tfds.builder_from_directory(path) for path in (data_dir / "imagenet2012" / "5.1.0", folder))
    for split in ("train", "validation"):
        names = [[record["file_name"] for record in builder.as_data_source(split)] for builder in (one, many)]
        assert names[0] == names[1]


def test_evaluation_images_are_the_centre_of_the_resized_image(archives, data_dir):
    fields = {"image_size": 48, "resize": 56, "test_split": "validation", "validation_size": 3}
    splits = data.load({"name": "imagenet2012", "data_dir": str(data_dir), **fields})
    assert splits.test.image_shape == (48, 48, 3) and splits.test.version == "5.1.0-48x48of56"
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (9, 3, 6)
    assert splits.test.num_classes == 1000
    from tensorflow_datasets.core import hashing

    names = sorted(archives[1]["validation"], key=hashing.Hasher("validation").hash_key)
    for image, name in zip(splits.test.images, names, strict=True):
        whole = Image.open(io.BytesIO(archives[1]["validation"][name])).convert("RGB")
        scale = 56 / min(whole.size)
        resized = whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.BILINEAR)
        left, top = (resized.width - 48) // 2, (resized.height - 48) // 2
        wanted = np.asarray(resized.crop((left, top, left + 48, top + 48))).astype(int)
        # Half a pixel of rounding apart: alike, not equal.
        assert np.abs(image.astype(int) - wanted).mean() < 6


def _archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("archive", "members", "expected"),
    [
        (TRAIN, {"n99999999.tar": b""}, "each must be called after a class"),
        (TRAIN, {"../n01440764.tar": b""}, "which leaves its folder"),
        (TRAIN, {"n01440764.tar": b"no archive" * 100}, "n01440764.tar is no whole .tar"),
        (VALIDATION, {"ILSVRC2012_val_00000003.JPEG": b"no image"}, "00000003.JPEG is neither JPEG nor PNG"),
        (VALIDATION, {"a.JPEG": b""}, "'a.JPEG'; its images are called ILSVRC2012_val_00000001.JPEG"),
        (VALIDATION, {"ILSVRC2012_val_00050001.JPEG": b""}, "'ILSVRC2012_val_00050001.JPEG'; its images are called"),
    ],
)
def test_bad_archives(tmp_path, archives, archive, members, expected):
    for name in (TRAIN, VALIDATION):
        (tmp_path / name).symlink_to(archives[0] / name)
    (tmp_path / archive).unlink()
    _archive(tmp_path / archive, members)
    refused(tmp_path, archive, expected)


def test_an_archive_that_was_cut_short(tmp_path, archives):
    (tmp_path / VALIDATION).symlink_to(archives[0] / VALIDATION)
    whole = (archives[0] / TRAIN).read_bytes()
    (tmp_path / TRAIN).write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, TRAIN, "no whole .tar")


def test_a_class_archive_with_an_image_of_another_class(tmp_path, archives):
    (tmp_path / VALIDATION).symlink_to(archives[0] / VALIDATION)
    inside = tmp_path / "inside.tar"
    _archive(inside, {f"{synsets(3)[1]}_1.JPEG": b"\xff\xd8"})
    _archive(tmp_path / TRAIN, {f"{synsets(3)[0]}.tar": inside.read_bytes()})
    refused(tmp_path, "its images must be called")
