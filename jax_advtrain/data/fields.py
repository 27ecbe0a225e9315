"""The fields of `config.data`: what they are called, their defaults, and the check of their values."""

import difflib
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jax_advtrain.data import augment, augment_dense
from jax_advtrain.data.augment_dense import DenseAugment

SOURCES = ("tfds", "npz", "image_folder", "decathlon", "digits", "moons")
_DECODED = ("tfds", "image_folder", "digits")  # sources of encoded images
_ONLY_FOR = {
    "image_size": (*_DECODED, "decathlon"),
    "resize": _DECODED,
    "channels": _DECODED,
    "slices": ("decathlon",),
    "spacing": ("decathlon",),
    "mask_key": ("tfds",),
}

# None: not set. The meanings are in the docstring of `load`.
_DEFAULTS: dict[str, Any] = {
    "name": None,
    "source": None,
    "data_dir": None,
    "path": None,
    "train_split": None,
    "validation_split": None,
    "test_split": None,
    "image_key": None,
    "label_key": None,
    "mask_key": None,
    "mask_values": None,
    "image_size": None,
    "resize": None,
    "channels": None,
    "slices": None,
    "spacing": None,
    "on_bad_record": "fail",
    "classes": None,
    "exclude_classes": None,
    "exclude_how": "relabel",
    "validation_size": None,
    "validation_from": None,
    "test_size": None,
    "train_ids": None,
    "test_ids": None,
    "num_train": None,
    "num_test": None,
    "seed": 0,
    "augment": (),
    "streaming": None,
    "num_workers": None,
    "max_ram_gb": 8.0,
    "noise": 0.1,
}
_TEXTS = (
    *("name", "source", "data_dir", "path", "train_split", "validation_split", "test_split"),
    *("image_key", "label_key", "mask_key", "validation_from", "on_bad_record", "exclude_how"),
)
_CHOICES = {
    "validation_from": (None, "split", "rest", "train"),
    "channels": (None, 1, 3),
    "on_bad_record": ("fail", "skip"),
    "exclude_how": ("relabel", "keep"),
}


def default_config() -> dict[str, Any]:
    """All fields with their defaults, plain values; `name` must be set."""
    return dict(_DEFAULTS)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in defaults and checks every value; "" counts as not set in text fields.

    Raises:
      ValueError: unknown field (the nearest valid one is named), or a value that the field cannot have.
    """
    given = dict(config.items())
    for field in given:
        if field not in _DEFAULTS:
            nearest = difflib.get_close_matches(str(field), _DEFAULTS, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown field data.{field}: did you mean data.{nearest}? Valid: {', '.join(_DEFAULTS)}")
    full = {**_DEFAULTS, **given}
    for field in _TEXTS:
        full[field] = _text(field, full[field])
    for field in ("validation_size", "test_size"):
        full[field] = _size(field, full[field])
    for field in ("num_train", "num_test"):
        if full[field] is not None and not (_is_whole(full[field]) and full[field] > 0):
            raise ValueError(f"data.{field} must be a whole number above 0, got {full[field]!r}")
    if not (_is_whole(full["seed"]) and 0 <= full["seed"] < 2**32):
        raise ValueError(f"data.seed must be a whole number in [0, 2**32), got {full['seed']!r}")
    for field, least in (("max_ram_gb", "above 0"), ("noise", "0 or more")):
        value = full[field]
        if not _is_number(value) or not math.isfinite(value) or value < 0 or (value == 0 and least == "above 0"):
            raise ValueError(f"data.{field} must be a finite number {least}, got {value!r}")
    for field, choices in _CHOICES.items():
        if full[field] not in choices or isinstance(full[field], (bool, float)):  # 1.0 == 1 == True
            *others, last = [repr(choice) for choice in choices if choice is not None]
            raise ValueError(f"data.{field} must be {', '.join(others)} or {last}, got {full[field]!r}")
    if full["streaming"] is not None and not isinstance(full["streaming"], bool):
        raise ValueError(f"data.streaming must be True, False, or not set, got {full['streaming']!r}")
    if full["num_workers"] is not None and not (_is_whole(full["num_workers"]) and full["num_workers"] >= 0):
        raise ValueError(f"data.num_workers must be a whole number from 0, got {full['num_workers']!r}")
    if full["slices"] is not None and not (_is_whole(full["slices"]) and full["slices"] in (0, 1, 2)):
        raise ValueError(f"data.slices must be 0, 1 or 2 (an axis), or None for whole volumes, got {full['slices']!r}")
    full["spacing"] = _spacing(full["spacing"])
    full["mask_values"] = _mask_values(full["mask_key"], full["mask_values"])
    for field in ("classes", "exclude_classes"):
        full[field] = _classes(field, full[field])
    if full["classes"] is not None and full["exclude_classes"] is not None:
        raise ValueError("data.classes (those to keep) and data.exclude_classes cannot both be set")
    full = _with_source(full)
    is_volume = full["source"] == "decathlon" and full["slices"] is None
    full["image_size"] = _image_size(full["image_size"], 3 if is_volume else 2)
    _check_resize(full["resize"], full["image_size"])
    return full


def is_dense(config: Mapping[str, Any]) -> bool:
    """Whether the labels that a config names are one a pixel."""
    return config["source"] == "decathlon" or bool(config["mask_key"])


def augmentation(config: Mapping[str, Any]) -> DenseAugment | None:
    """(keys, images, labels) -> (images, labels) as data.augment says; None where it says nothing.

    Raises:
      ValueError: as `augment.build` and `augment_dense.build`.
    """
    spec = config["augment"]
    dense = augment_dense.build(spec) if is_dense(config) else None
    images_only = augment.build(spec) if dense is None else None

    def made(keys: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        if dense is not None:
            return dense(keys, images, labels)
        assert images_only is not None
        return images_only(keys, images), labels

    return made if len(spec) else None


def _with_source(full: dict[str, Any]) -> dict[str, Any]:
    """Derives the source from name and path, and the path from a name that is one."""
    name = full["name"]
    if name is None:
        raise ValueError(
            "data.name must be set: a TFDS name, 'digits', 'moons', or any name with data.path to a .npz file or "
            "data.source='image_folder' and data.data_dir"
        )
    if full["source"] is None:
        is_npz = full["path"] is not None or name.endswith(".npz")
        full["source"] = "npz" if is_npz else name if name in ("digits", "moons") else "tfds"
    elif full["source"] not in SOURCES:
        nearest = difflib.get_close_matches(full["source"], SOURCES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown data.source {full['source']!r}: did you mean {nearest!r}? Valid: {', '.join(SOURCES)}"
        )
    if full["source"] == "npz" and full["path"] is None:
        if not name.endswith(".npz"):
            raise ValueError("data.source='npz' needs data.path, the .npz file to read")
        full["path"] = name
    elif full["source"] != "npz" and full["path"] is not None:
        raise ValueError(
            f"data.path is for .npz files, but data.source is {full['source']!r}; folders go into data.data_dir"
        )
    if full["source"] == "image_folder" and full["data_dir"] is None:
        raise ValueError("data.source='image_folder' needs data.data_dir, the folder with one subfolder a class")
    if full["source"] == "decathlon" and full["data_dir"] is None:
        raise ValueError("data.source='decathlon' needs data.data_dir, the TaskNN folder with its dataset.json")
    for field, sources in _ONLY_FOR.items():
        if full[field] is not None and full["source"] not in sources:
            raise ValueError(
                f"data.{field} is for {', '.join(sources)}; data.source is {full['source']!r}, whose images are "
                "taken as they are"
            )
    for field in ("classes", "exclude_classes"):
        if full[field] is not None and is_dense(full):
            raise ValueError(
                f"data.{field} leaves samples of a class out; where labels are one a pixel there is no such"
            )
    return full


def _text(field: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"data.{field} must be a string, got {value!r}")
    return value


def _size(field: str, size: Any) -> int | float | None:
    if size is None:
        return None
    if _is_whole(size) and size >= 0:
        return int(size)
    if not (_is_number(size) and 0 < size < 1):
        raise ValueError(f"data.{field} must be a count (whole number) or a fraction between 0 and 1, got {size!r}")
    return float(size)


def _image_size(size: Any, axes: int) -> tuple[int, ...] | None:
    """(H, W), or (H, W, D) of volumes, of one number or one an axis."""
    if size is None:
        return None
    sides: list[Any] = [size] * axes if _is_whole(size) else list(size) if isinstance(size, Sequence) else []
    if len(sides) != axes or not all(_is_whole(side) and side > 0 for side in sides):
        several = "(height, width)" if axes == 2 else "(height, width, depth) of volumes"
        raise ValueError(f"data.image_size must be a whole number above 0, or {several}, got {size!r}")
    return tuple(map(int, sides))


def _spacing(spacing: Any) -> tuple[float, ...] | None:
    """Millimetres of a voxel along three axes, of one number or three."""
    if spacing is None:
        return None
    sizes: list[Any] = [spacing] * 3 if _is_number(spacing) else list(spacing) if isinstance(spacing, Sequence) else []
    if len(sizes) != 3 or not all(_is_number(size) and 0 < size < math.inf for size in sizes):
        raise ValueError(f"data.spacing must be a number of millimetres above 0, or three of them, got {spacing!r}")
    return tuple(map(float, sizes))


def _mask_values(key: str | None, values: Any) -> tuple[int, ...] | None:
    """The grey levels of the labels 0, 1, ..., the background first."""
    if (key is None) != (values is None):
        raise ValueError(
            "data.mask_key and data.mask_values go together: the feature that holds masks, and the values in them, the "
            f"background's first, e.g. (2, 1, 3); got {key!r} and {values!r}"
        )
    if values is None:
        return None
    levels: list[Any] = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    if len(set(levels)) < max(2, len(levels)) or not all(_is_whole(value) and 0 <= value < 256 for value in levels):
        raise ValueError(f"data.mask_values must be two or more different whole numbers below 256, got {values!r}")
    return tuple(map(int, levels))


def _check_resize(resize: Any, size: tuple[int, ...] | None) -> None:
    """Raises ValueError where the images would be made smaller than what is cut out of them."""
    if resize is None:
        return
    if not _is_whole(resize) or size is None or resize < max(size):
        raise ValueError(
            f"data.resize must be a whole number, at least data.image_size (now {size}), out of which that is cut; "
            f"got {resize!r}"
        )


def _classes(field: str, given: Any) -> tuple[str | int, ...] | None:
    """Class names and numbers; which there are, only the source can tell. A text holds several, split at commas."""
    items: list[Any] = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if items in ([], [None], [""]):
        return None
    if not all(isinstance(item, str) or _is_whole(item) for item in items):
        raise ValueError(f"data.{field} must hold class names or numbers, got {given!r}")
    return tuple(item if isinstance(item, str) else int(item) for item in items)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
