"""A tiny ImageNet in the exact layout in which it is given away, of cut-outs of real photographs.

    ILSVRC2012_img_train.tar    one n01440764.tar a class, of n01440764_10026.JPEG, ...
    ILSVRC2012_img_val.tar      ILSVRC2012_val_00000001.JPEG, ..., in no order

As in the original some images are grey, one has CMYK colours and one is a PNG by the name of a JPEG; these two have the
names by which TFDS's own builder knows them.
"""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"


def imagenet(
    folder: Path,
    *,
    num_classes: int = 4,
    images_per_class: int = 3,
    num_validation: int = 6,
    largest: tuple[int, int] = (400, 500),
    spoilt: Mapping[str, bytes] | None = None,
) -> dict[str, dict[str, bytes]]:
    """Writes the two archives; the same arguments give the same bytes.

    Args:
      folder: where to; made if it is not there.
      num_classes: at least 3: the first of ImageNet's 1,000 and those of the CMYK image and the PNG.
      images_per_class: of train.
      num_validation: images of validation, whose labels only TFDS's list knows (by the order of their names).
      largest: greatest height and width, at most (427, 640); sizes are 30 to 100 percent of it.
      spoilt: {file name: bytes} to write instead of some of the images.

    Returns:
      {"train": {file name: bytes as they lie in the archive}, "validation": likewise}, in the archives' order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photographs = _photographs()
    classes = synsets(num_classes)
    train = {
        name: {file: _encoded(photographs, file, largest) for file in _shuffled(_names(name, images_per_class), seed)}
        for seed, name in enumerate(classes)
    }
    numbers = [f"ILSVRC2012_val_{number + 1:08d}.JPEG" for number in range(num_validation)]
    validation = {file: _encoded(photographs, file, largest) for file in _shuffled(numbers, 0)}
    for files in (*train.values(), validation):
        files.update({file: content for file, content in (spoilt or {}).items() if file in files})
    _write(folder / TRAIN, {f"{name}.tar": _tar(files) for name, files in train.items()})
    _write(folder / VALIDATION, validation)
    return {"train": {file: content for files in train.values() for file, content in files.items()}} | {
        "validation": validation
    }


def synsets(num_classes: int) -> list[str]:
    """The names of the classes that `imagenet` writes, in ImageNet's order."""
    import tensorflow_datasets as tfds

    if num_classes < 3:
        raise ValueError("3 classes or more: the CMYK image and the PNG belong to two of their own")
    every = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    special = [file.split("_")[0] for file in (CMYK, PNG)]
    return sorted([name for name in every if name not in special][: num_classes - 2] + special)


def _names(synset: str, count: int) -> list[str]:
    """Numbers with gaps and of different lengths, as in the original; the two special files come first."""
    special = [file for file in (CMYK, PNG) if file.startswith(synset)]
    return [*special, *(f"{synset}_{7 + 1013 * k}.JPEG" for k in range(count - len(special)))]


def _shuffled(names: list[str], seed: int) -> list[str]:
    return [names[k] for k in np.random.default_rng(seed).permutation(len(names))]


def _photographs() -> list[np.ndarray]:
    """uint8 (427, 640, 3) each."""
    from sklearn.datasets import load_sample_images

    return [np.asarray(image) for image in load_sample_images().images]


def _encoded(photographs: list[np.ndarray], file: str, largest: tuple[int, int]) -> bytes:
    """A cut-out that follows from the file's name alone."""
    rng = np.random.default_rng(list(file.encode()))
    height, width = (int(side * share) for side, share in zip(largest, rng.uniform(0.3, 1, 2), strict=True))
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (rng.integers(n - size + 1) for n, size in zip(photograph.shape, (height, width), strict=False))
    image = Image.fromarray(photograph[top : top + height, left : left + width])
    content = io.BytesIO()
    if file == PNG:
        image.save(content, "PNG")
    elif file == CMYK:
        image.convert("CMYK").save(content, "JPEG", quality=90)
    else:
        image.convert("L" if rng.uniform() < 0.15 else "RGB").save(content, "JPEG", quality=90)
    return content.getvalue()


def _tar(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    path.write_bytes(_tar(files))
