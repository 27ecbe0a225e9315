"""The layouts in which CIFAR-100, SVHN and STL-10 are given away: from files to features and records, as TFDS has them.

Each function takes paths by file name and returns (a tfds.features.FeaturesDict, {split: its records}); ValueError says
which file is cut short, damaged or has labels outside its classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_advtrain.data.tfds_writer import Content, as_image

CIFAR_RECORD = 2 + 32 * 32 * 3
STL_IMAGE = 96 * 96 * 3


def cifar100(files: dict[str, Path]) -> tuple[Any, Mapping[str, Content]]:
    import tensorflow_datasets as tfds

    fine, coarse = _lines(files["fine_label_names.txt"], 100), _lines(files["coarse_label_names.txt"], 20)
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=fine),
            "coarse_label": tfds.features.ClassLabel(names=coarse),
        }
    )

    def content(split: str) -> Content:
        path = files[f"{split}.bin"]
        rows = _rows(path, CIFAR_RECORD, "1 byte coarse label, 1 byte fine label, 3072 bytes of pixels")
        _check_labels(path, rows[:, 0], 0, len(coarse) - 1, "coarse labels")
        _check_labels(path, rows[:, 1], 0, len(fine) - 1, "fine labels")

        def example(k: int) -> dict[str, Any]:
            pixels = rows[k, 2:].reshape(3, 32, 32).transpose(1, 2, 0)
            labels = {"coarse_label": int(rows[k, 0]), "label": int(rows[k, 1])}
            return {"id": f"{split}_{k:05d}", "image": as_image(pixels), **labels}

        return Content(len(rows), example)

    return features, {split: content(split) for split in ("train", "test")}


def svhn(files: dict[str, Path]) -> tuple[Any, Mapping[str, Content]]:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )

    def content(split: str) -> Content:
        images, labels = _mat(files[f"{split}_32x32.mat"])

        def example(k: int) -> dict[str, Any]:
            digit = int(labels[k]) % 10  # 10 means 0
            return {"id": f"{split}_{k:06d}", "image": as_image(images[..., k]), "label": digit}

        return Content(len(labels), example)

    return features, {split: content(split) for split in ("train", "test", "extra") if f"{split}_32x32.mat" in files}


def stl10(files: dict[str, Path]) -> tuple[Any, Mapping[str, Content]]:
    import tensorflow_datasets as tfds

    names = _lines(files["class_names.txt"], 10)
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(96, 96, 3)), "label": tfds.features.ClassLabel(names=names)}
    )

    def content(images_file: str, labels_file: str | None) -> Content:
        rows = _rows(files[images_file], STL_IMAGE, "96 x 96 pixels of 3 colours, column by column")
        labels = np.zeros(len(rows), np.uint8)  # TFDS gives unlabelled images label -1
        if labels_file is not None:
            labels = np.fromfile(files[labels_file], np.uint8)
            _check_labels(files[labels_file], labels, 1, len(names), "labels")
            if len(labels) != len(rows):
                raise ValueError(
                    f"{files[images_file]} has {len(rows)} images, {files[labels_file]} {len(labels)} labels"
                )

        def example(k: int) -> dict[str, Any]:
            pixels = rows[k].reshape(3, 96, 96).transpose(2, 1, 0)
            return {"image": as_image(pixels), "label": int(labels[k]) - 1}

        return Content(len(rows), example)

    contents = {split: content(f"{split}_X.bin", f"{split}_y.bin") for split in ("train", "test")}
    if "unlabeled_X.bin" in files:
        contents["unlabelled"] = content("unlabeled_X.bin", None)
    return features, contents


def _rows(path: Path, width: int, layout: str) -> np.ndarray:
    """uint8 (N, width) of a file of records, left on disk until they are looked at."""
    size = path.stat().st_size
    if not size or size % width:
        raise ValueError(f"{path} has {size} bytes, no whole number of records of {width} bytes ({layout}): cut short?")
    return np.memmap(path, np.uint8, "r").reshape(-1, width)


def _mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (32, 32, 3, N) and labels (N,) in 1..10 of an SVHN file."""
    from scipy.io import loadmat

    try:
        found = loadmat(path, variable_names=["X", "y"])
        images, labels = found["X"], found["y"].reshape(-1)
    except Exception as error:  # scipy raises many kinds for damaged files
        raise ValueError(f"{path} is no MATLAB file with X and y ({type(error).__name__}: {error})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape != (32, 32, 3, len(labels)):
        raise ValueError(
            f"{path}: X must be uint8 (32, 32, 3, N) and y (N, 1), got {images.dtype} {images.shape} and {labels.shape}"
        )
    _check_labels(path, labels, 1, 10, "labels")
    return images, labels


def _lines(path: Path, count: int) -> list[str]:
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{path} has {len(set(names))} different class names, not {count}")
    return names


def _check_labels(path: Path, labels: np.ndarray, least: int, most: int, what: str) -> None:
    outside = np.flatnonzero((labels < least) | (labels > most))
    if outside.size:
        first = outside[0]
        raise ValueError(
            f"{path}: {outside.size} {what} are outside {least}..{most} (first: {labels[first]} of record {first})"
        )
