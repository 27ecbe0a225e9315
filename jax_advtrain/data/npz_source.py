"""Images and labels from one .npz file: no TFDS, no Grain, no pickle.

Keys, by split:
  train       `images`, `labels`; or `train_images`, `train_labels`
  validation  `validation_images`, `validation_labels`; or `val_...` as MedMNIST writes
  test        `test_images`, `test_labels`
and `class_names` (strings) if wanted; without it the classes are 0..largest label. Only train must be there.
Images are integers 0..255 (N, H, W) or (N, H, W, C), or floats in [0,1] (N, ...). Labels are integers (N,) or (N, 1).
So every 2D file of MedMNIST can be read, binary or multi-class. Its sets of volumes and of several labels an image
cannot.
"""

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jax_advtrain.data.source import Records, Source, check_fits, records_in_memory

_PREFIXES = {"train": ("", "train_"), "validation": ("validation_", "val_"), "test": ("test_",)}


def open_npz(config: dict[str, Any]) -> Source:
    """Opens the file `config["path"]`; its version is a hash of its bytes, its record ids are row numbers.

    Raises:
      ValueError: missing or unreadable file, pickled objects, missing keys, shapes or types that are not as above.
    """
    path = Path(config["path"]).expanduser()
    names = {field: config[field] for field in ("train_split", "validation_split", "test_split") if config[field]}
    if names:
        raise ValueError(f"a .npz file has no named splits: {', '.join(names)} cannot be set")
    arrays = _read(path, config)
    parts: dict[str, Records] = {}
    for split, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            if prefix + "images" in arrays and split not in parts:
                parts[split] = _records(path, split, arrays, prefix)
    if "train" not in parts:
        raise ValueError(f"{path} has arrays {', '.join(sorted(arrays))}: 'images' and 'labels' are needed")
    with path.open("rb") as file:
        version = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    class_names = _class_names(path, arrays, parts)
    return Source(config["name"], version, class_names, parts["train"], parts.get("validation"), parts.get("test"))


def _read(path: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    if path.is_dir():
        raise ValueError(f"data.path={str(path)!r} is a folder: set data.source='image_folder' and data.data_dir to it")
    if not path.is_file():
        raise ValueError(
            f"data.path={str(path)!r} is no file (a .npz file with arrays 'images' and 'labels' was looked for)"
        )
    try:
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(_unreadable(path, error)) from error
    check_fits(config["name"], size, config["max_ram_gb"])
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"{path} is no readable .npz of plain arrays ({reason}); write it with "
        "numpy.savez(path, images=..., labels=...); pickled objects are never loaded"
    )


def _records(path: Path, split: str, arrays: dict[str, np.ndarray], prefix: str) -> Records:
    images, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
    where = f"{path}: '{prefix}images'"
    if labels is None:
        raise ValueError(f"{path} has '{prefix}images' but no '{prefix}labels': add them, whole numbers (N,)")
    if labels.ndim == 2 and labels.shape[1] == 1:  # MedMNIST's way
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} {labels.shape}"
        several = "; several labels an image (multi-label) are not supported (one-hot: store the argmax)"
        why = several if labels.ndim == 2 else ""
        raise ValueError(f"{path}: '{prefix}labels' must be integers (N,) or (N, 1), got {got}{why}")
    if images.ndim < 2 or len(images) != len(labels):
        raise ValueError(f"{where} has shape {images.shape} but there are {len(labels)} labels; need (N, ...), same N")
    if images.dtype.kind == "f":
        return records_in_memory(split, images.astype(np.float32), labels)
    # A volume (D, H, W) without a channel axis would pass as an image of D x H pixels with W channels.
    is_cube = images.ndim == 4 and images.shape[1] == images.shape[2] == images.shape[3] > 4
    if is_cube or images.ndim == 5:
        raise ValueError(f"{where} has shape {images.shape}: volumes; need images (N, H, W) or (N, H, W, C)")
    if images.dtype.kind not in "iu" or images.ndim not in (3, 4):
        got = f"{images.dtype} {images.shape}"
        raise ValueError(f"{where} must be integers (N, H, W) or (N, H, W, C), or floats in [0,1]; got {got}")
    if images.dtype != np.uint8 and images.size and not 0 <= images.min() <= images.max() <= 255:
        raise ValueError(f"{where} holds integers from {images.min()} to {images.max()}; need 0..255")
    images = images.astype(np.uint8, copy=False)
    return records_in_memory(split, images[..., None] if images.ndim == 3 else images, labels)


def _class_names(path: Path, arrays: dict[str, np.ndarray], parts: dict[str, Records]) -> tuple[str, ...]:
    if "class_names" in arrays:
        names = arrays["class_names"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ValueError(f"{path}: 'class_names' must be strings (K,), got {names.dtype} {names.shape}")
        return tuple(map(str, names))
    labels = [part.read_labels(np.arange(part.count)) for part in parts.values()]
    largest = max((int(part.max()) for part in labels if len(part)), default=0)
    return tuple(map(str, range(largest + 1)))
