"""CIFAR-100, SVHN, STL-10 and ImageNet from their original files, as the TFDS sets of those names; without TensorFlow.

Splits, features, class names and the order of the records are those of TFDS's own builders, so that a set prepared here
and one prepared by TFDS have the same ids. Pickled batches ("cifar-100-python") are never read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax_advtrain.data import imagenet, original_layouts
from jax_advtrain.data.placing import ABANDONED_AFTER_SECONDS, place
from jax_advtrain.data.source_files import find_files
from jax_advtrain.data.tfds_writer import Content, write_set


class Original(NamedTuple):
    """A set that can be made from its original files.

    Attributes:
      version: TFDS's.
      files: names of the files that must be there; optional: those that may (a split each).
      archive: the file that holds them all, "" where they are had one by one.
      url: where they are had.
      megabytes: how much that is.
      read: paths by name -> (features, {split: its records}).
      description: what the set is.
    """

    version: str
    files: tuple[str, ...]
    optional: tuple[str, ...]
    archive: str
    url: str
    megabytes: int
    read: Callable[[dict[str, Path]], tuple[Any, Mapping[str, Content]]]
    description: str


def prepare(name: str, data_dir: Path, manual_dir: Path) -> Path:
    """Writes the TFDS set `name` (one of ORIGINALS) below `data_dir` unless it is there; returns its folder.

    Args:
      manual_dir: where the original files lie: the archive, or what it holds (also in a folder of its name).

    Raises:
      ValueError: files are missing, cut short or damaged; an archive has a path that leaves its folder.
    """
    original = ORIGINALS[name]
    final = data_dir / name / original.version

    def write(workplace: Path) -> Path:
        files = find_files(manual_dir, original.files, original.optional, original.archive, workplace / "extracted")
        features, contents = original.read(files)
        write_set(
            workplace / name / original.version, name, features, contents, original.description, ("image", "label")
        )
        return workplace / name / original.version

    place(final, write, name, ABANDONED_AFTER_SECONDS)
    return final


ORIGINALS = {
    "cifar100": Original(
        version="3.0.2",
        files=("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"),
        optional=(),
        archive="cifar-100-binary.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        megabytes=169,
        read=original_layouts.cifar100,
        description="CIFAR-100: 32x32 colour images in 100 classes of 20 superclasses.",
    ),
    "svhn_cropped": Original(
        version="3.1.0",
        files=("train_32x32.mat", "test_32x32.mat"),
        optional=("extra_32x32.mat",),
        archive="",
        url="http://ufldl.stanford.edu/housenumbers/",
        megabytes=1576,
        read=original_layouts.svhn,
        description="Street View House Numbers, cropped to 32x32.",
    ),
    "stl10": Original(
        version="1.0.0",
        files=("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt"),
        optional=("unlabeled_X.bin",),
        archive="stl10_binary.tar.gz",
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        megabytes=2640,
        read=original_layouts.stl10,
        description="STL-10: 96x96 colour images in 10 classes, and unlabelled ones.",
    ),
    "imagenet2012": Original(
        version="5.1.0",
        files=(imagenet.TRAIN, imagenet.VALIDATION),
        optional=(),
        archive="",
        url="https://image-net.org/download-images (with an account)",
        megabytes=144_100,
        read=imagenet.imagenet,
        description="ImageNet, ILSVRC 2012: 1,000 classes of photographs.",
    ),
}
