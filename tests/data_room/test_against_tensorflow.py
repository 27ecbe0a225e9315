"""Sets made here without TensorFlow against those that TFDS's own builders prepare with real TensorFlow.

TensorFlow lies in an environment of its own: `python -m venv DIR && DIR/bin/pip install tensorflow-cpu
tensorflow-datasets array_record scipy importlib_resources`, then JAX_ADVTRAIN_TF_PYTHON=DIR/bin/python. Without it
these tests are skipped.
"""

import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import imagenet_files
import numpy as np
import original_files
import pytest
from PIL import Image

from jax_advtrain import data
from jax_advtrain.data import originals

pytestmark = pytest.mark.slow
_VARIABLE = "JAX_ADVTRAIN_TF_PYTHON"


class Row(NamedTuple):
    """A set to compare.

    Attributes:
      name: TFDS's.
      write: writes the tiny original files into a folder, given photographs.
      prepare: makes the set without TensorFlow: (data_dir, folder of the files).
      config: fields of `data.load` beside name and data_dir.
      tolerance: greatest mean difference of an image's grey levels; 0: they are equal bit for bit.
    """

    name: str
    write: Callable[[Path, list[np.ndarray]], Any]
    prepare: Callable[[Path, Path], Any]
    config: dict[str, Any] = {}  # noqa: RUF012
    tolerance: float = 0.0


def _original(name: str, folder: str, write: Callable[..., Any], config: dict[str, Any], **more: Any) -> Row:
    return Row(
        name,
        lambda source, photographs: write(source / folder, photographs, **more),
        lambda data_dir, source: originals.prepare(name, data_dir, source),
        config,
    )


SVHN_SPLITS = ("train", "test", "extra")  # TFDS prepares none without all three
ROWS = [
    _original("cifar100", "cifar-100-binary", original_files.cifar100, {}),
    _original("cifar100", "cifar-100-binary", original_files.cifar100, {"label_key": "coarse_label"}, count=20),
    _original("svhn_cropped", "svhn", original_files.svhn, {}, splits=SVHN_SPLITS),
    _original("svhn_cropped", "svhn", original_files.svhn, {"train_split": "extra"}, splits=SVHN_SPLITS),
    _original("stl10", "stl10_binary", original_files.stl10, {}),
    Row(
        "imagenet2012",
        lambda source, photographs: imagenet_files.imagenet(source, images_per_class=4),
        lambda data_dir, source: originals.prepare("imagenet2012", data_dir, source),
        {"test_split": "validation", "validation_from": "train", "image_size": 64},
        tolerance=2.0,  # the CMYK image and the PNG are encoded anew, each in its own way
    ),
]


@pytest.fixture(scope="module")
def prepared_by_tfds() -> Callable[[str, Path, Path], None]:
    """prepared_by_tfds(name, source, data_dir): TFDS and TensorFlow prepare the set in their own process."""
    python = os.environ.get(_VARIABLE)
    if not python:
        pytest.skip(f"{_VARIABLE} does not name the python of an environment with TensorFlow")
    script = Path(__file__).with_name("tfds_with_tensorflow.py")

    def prepare(name: str, source: Path, data_dir: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [python, str(script), name, str(source), str(data_dir)]
        done = subprocess.run(
            command, env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return prepare


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join([row.name, *map(str, row.config.values())]))
def test_a_set_made_here_is_that_of_tfds(row, prepared_by_tfds, tmp_path, photographs):
    row.write(tmp_path / "source", photographs)
    row.prepare(tmp_path / "ours", tmp_path / "source")
    prepared_by_tfds(row.name, tmp_path / "source", tmp_path / "theirs")
    folders = [next((tmp_path / whose / row.name).iterdir()) for whose in ("ours", "theirs")]
    assert folders[0].name == folders[1].name
    config = {"name": row.name, "validation_size": 2, **row.config}
    ours, theirs = (data.load(config | {"data_dir": str(tmp_path / whose)}) for whose in ("ours", "theirs"))
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.fingerprint() == yours.fingerprint()
        assert mine.class_names == yours.class_names
        np.testing.assert_array_equal(mine.ids, yours.ids)
        np.testing.assert_array_equal(mine.labels, yours.labels)
        assert mine.images.shape == yours.images.shape and mine.images.dtype == yours.images.dtype
        differences = np.abs(mine.images.astype(int) - yours.images).reshape(len(mine), -1).mean(axis=1)
        assert differences.max() <= row.tolerance and np.sum(differences > 0) <= 2


def test_tfds_prepares_the_tiny_imagenet(prepared_by_tfds, tmp_path):
    """Its own builder takes our archives for ImageNet's, the CMYK image and the PNG among them."""
    import tensorflow_datasets as tfds

    written = imagenet_files.imagenet(tmp_path / "source", images_per_class=4)
    prepared_by_tfds("imagenet2012", tmp_path / "source", tmp_path / "tfds")
    builder = tfds.builder_from_directory(next((tmp_path / "tfds/imagenet2012").iterdir()))
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {"train": 16, "validation": 6}
    synsets = builder.info.features["label"].names
    for split, files in written.items():
        found = {
            record["file_name"].decode(): record
            for record in builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        }
        assert found.keys() == files.keys()
        for file, content in files.items():
            if split == "train":
                assert synsets[found[file]["label"]] == file.split("_")[0]
            stored = found[file]["image"]
            if file not in (imagenet_files.CMYK, imagenet_files.PNG):
                assert stored == content
                continue
            one, other = (Image.open(io.BytesIO(part)) for part in (content, stored))
            assert (other.format, other.mode, other.size) == ("JPEG", "RGB", one.size)
            assert np.abs(np.asarray(one.convert("RGB"), int) - np.asarray(other)).mean() < 4
