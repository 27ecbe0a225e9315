"""Labelled images: `Dataset`, its fingerprint, and the way from stored bytes to [0,1] pixels."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain.data.streaming import EncodedImages


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one split; row k of `images`, `labels` and `ids` is one sample.

    Attributes:
      name: name of the set, e.g. "mnist".
      images: uint8 (N, H, W, C), or float32 (N, ...) with values in [0,1] (two moons: (N, 2)); or the images of a
        training set that is streamed, of the same shape, which only `streaming.read_batches` reads.
      labels: int32 (N,), each in [0, len(class_names)); or dense, one a pixel: int32 (N, H, W) or (N, H, W, D), for
        images (N, H, W, C) or (N, H, W, D, C).
      ids: int64 (N,), position of the record in the source split `split`. It depends on nothing else: the same record
        has the same id whatever subset, order or seed it was loaded with.
      class_names: one name a class.
      version: version of the source, e.g. "3.0.1"; of a .npz file the hash of its bytes, of an image folder that of its
        paths and file sizes. Images that were resized say so: "3.0.1-64x64".
      split: the source split that the ids count in. A validation set carved from train says "train".
      kept_classes: numbers, in the source, of the classes that stayed where others were left out (data.classes,
        data.exclude_classes), rising; None: all are here. Where labels were renumbered, label k is kept_classes[k].
      spacing: (groups, 3) millimetres of a voxel of each group, along the axis in which its samples follow each other
        and then their own; of whole volumes along their own. None where the set does not tell.
      groups: int64 (N,) the group (a patient) of each sample, a number of `group_names`, which names those of the whole
        source; None where every sample stands for itself. No two splits share a group.

    Raises ValueError where shapes or dtypes are others, a label is outside the classes, an id is doubled or negative,
    or a float pixel is NaN or outside [0,1].
    """

    name: str
    images: Any  # np.ndarray, or EncodedImages: those who need an array are told so before (is_streamed)
    labels: np.ndarray
    ids: np.ndarray
    class_names: tuple[str, ...]
    version: str = ""
    split: str = "train"
    kept_classes: tuple[int, ...] | None = None
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    spacing: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_arrays(self)
        _check_labels(self)
        if not self.is_streamed and self.images.dtype != np.uint8:
            _check_unit_range(self)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_streamed(self) -> bool:
        """Whether the images are on the disk, and not in memory."""
        return isinstance(self.images, EncodedImages)

    @property
    def is_dense(self) -> bool:
        """Whether there is a label for each pixel."""
        return self.labels.ndim > 1

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def take(self, rows: np.ndarray | slice) -> "Dataset":
        """The samples at these positions, in this order."""
        groups = None if self.groups is None else self.groups[rows]
        return dataclasses.replace(
            self, images=self.images[rows], labels=self.labels[rows], ids=self.ids[rows], groups=groups
        )

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that tell this data apart from any other, for checkpoints and results.

        Per-sample state belongs to samples: a set prepared anew in another order, or another subset, changes a hash.
        """
        found = {
            "name": self.name,
            "version": self.version,
            "split": self.split,
            "count": len(self),
            "labels_sha256": hashlib.sha256(self.labels.astype("<i4").tobytes()).hexdigest(),
            "ids_sha256": hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest(),
        }
        if self.groups is not None:
            found["groups_sha256"] = hashlib.sha256(self.groups.astype("<i8").tobytes()).hexdigest()
        # Only where classes were left out: workdirs of before hold fingerprints without it.
        if self.kept_classes is not None:
            found |= {"kept_classes": list(self.kept_classes), "num_classes": self.num_classes}
        return found


class Splits(NamedTuple):
    """What `load` returns. `validation` may have no samples (validation_size=0); the two others never are empty."""

    train: Dataset
    validation: Dataset
    test: Dataset


def to_unit(images: Any, dtype: Any = jnp.float32) -> Any:
    """Pixels in [0,1]: integers are divided by 255 in `dtype`, floats are taken as they are (and cast to `dtype`).

    uint8 becomes the correctly rounded k/255 of `dtype` in numpy and JAX alike, with or without jit.

    Args:
      images: array of any shape, numpy or JAX; integers are grey levels 0..255, floats already lie in [0,1].
      dtype: float dtype of the result.

    Returns:
      Array of `dtype`, same shape and kind of array.
    """
    if isinstance(images, jax.Array) and images.dtype == jnp.uint8:
        # XLA multiplies by 1/255 instead of dividing: on CPU 126 of the 256 levels come out one ulp off in float32.
        levels = np.arange(256).astype(jax.dtypes.canonicalize_dtype(dtype))
        return jnp.asarray(levels / levels[-1])[images]
    is_integer = jnp.issubdtype(images.dtype, jnp.integer)
    return images.astype(dtype) / 255 if is_integer else images.astype(dtype)


def _check_arrays(data: Dataset) -> None:
    where = f"data set {data.name!r}, split {data.split!r}"
    if not (len(data.images) == len(data.labels) == len(data.ids)):
        counts = f"{len(data.images)} images, {len(data.labels)} labels, {len(data.ids)} ids"
        raise ValueError(f"{where}: {counts}; there must be one label and one id for each image")
    if data.images.dtype == np.uint8:
        if data.images.ndim != 4:
            raise ValueError(f"{where}: uint8 images must be (N, H, W, C), got shape {data.images.shape}")
    elif data.images.dtype != np.float32 or data.images.ndim < 2:
        got = f"{data.images.dtype} {data.images.shape}"
        raise ValueError(f"{where}: images must be uint8 (N, H, W, C) or float32 (N, ...), got {got}")
    if data.labels.dtype != np.int32 or data.labels.shape[1:] not in ((), data.images.shape[1:-1]):
        got = f"{data.labels.dtype} {data.labels.shape}"
        raise ValueError(f"{where}: labels must be int32 (N,), or one a pixel of images {data.images.shape}, got {got}")
    for what, array in (("ids", data.ids), ("groups", data.groups)):
        if array is not None and (array.dtype != np.int64 or array.shape != (len(data.images),)):
            raise ValueError(f"{where}: {what} must be int64 (N,), got {array.dtype} {array.shape}")
    if (
        data.groups is not None
        and len(data.groups)
        and not 0 <= data.groups.min() <= data.groups.max() < len(data.group_names)
    ):
        raise ValueError(f"{where}: groups must be numbers of the {len(data.group_names)} names of groups")
    if len(data.ids) and (data.ids.min() < 0 or len(np.unique(data.ids)) < len(data.ids)):
        raise ValueError(f"{where}: ids must be distinct and not negative")


def _check_labels(data: Dataset) -> None:
    outside = (data.labels < 0) | (data.labels >= data.num_classes)
    if outside.any():
        first = tuple(np.argwhere(outside)[0])
        raise ValueError(
            f"data set {data.name!r}, split {data.split!r}: {outside.sum()} labels are outside the {data.num_classes} "
            f"classes 0..{data.num_classes - 1} (first: label {data.labels[first]} of id {data.ids[first[0]]})"
        )


def _check_unit_range(data: Dataset) -> None:
    inside = (data.images >= 0) & (data.images <= 1)  # False for NaN too
    bad = np.flatnonzero(~inside.reshape(len(data), -1).all(axis=1)) if len(data) else np.zeros(0, np.int64)
    if bad.size:
        values = data.images[bad[0]]
        what = "NaN pixels" if np.isnan(values).any() else f"pixels from {values.min():g} to {values.max():g}"
        raise ValueError(
            f"data set {data.name!r}, split {data.split!r}: float images must lie in [0,1], but {bad.size} do not "
            f"(first: id {data.ids[bad[0]]} has {what}); scale them, or store uint8"
        )
