"""What a source of data is: named splits of numbered records that are read by number, and only when asked for.

`load` reads the chosen records into memory; training images that do not fit stay encoded, and `streaming` reads them
batch by batch.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Samples(NamedTuple):
    """Records that were read.

    Attributes:
      ids: int64 (n,); images: (n, ...), an array or what is streamed; labels: int64 (n,), or dense: int32 (n, ...), one
        of each pixel.
      problems: one line for each record that could not be read and was left out (data.on_bad_record="skip").
    """

    ids: np.ndarray
    images: Any
    labels: np.ndarray
    problems: tuple[str, ...] = ()


class Encoded(NamedTuple):
    """An image as its file holds it.

    Attributes:
      where: what messages call it: its set or path, and its id.
      content: the bytes of a PNG or JPEG.
    """

    where: str
    content: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """One split of a source.

    Attributes:
      split: its name in the source, e.g. "train" or "train[:80%]".
      count: number of records; their ids are 0..count-1.
      image_shape: (H, W, C), or (D,) for points.
      image_dtype: uint8, or float32 for pixels already in [0,1].
      read: ids int64 (n,) -> Samples with images (n, *image_shape), in the order asked for.
      read_labels: ids int64 (n,) -> labels int64 (n,), without decoding an image.
      kept: int64 (k,) rising, the only ids that may be used (data.classes, data.exclude_classes); None: all.
      label_shape: () for one label a record, (H, W) or (H, W, D) for one a pixel.
      groups: int64 (count,) the group (a patient) of each record, which is never split between training, validation and
        test; None: every record stands for itself.
      group_names: one name a group.
      spacing: as in `Dataset`.
      encoded: id -> its image as it is stored, for streaming; it can be sent to other processes (cloudpickle), and
        raises BadRecord. None: images are not stored one by one.
    """

    split: str
    count: int
    image_shape: tuple[int, ...]
    image_dtype: np.dtype
    read: Callable[[np.ndarray], Samples]
    read_labels: Callable[[np.ndarray], np.ndarray]
    kept: np.ndarray | None = None
    label_shape: tuple[int, ...] = ()
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    spacing: np.ndarray | None = None
    encoded: Callable[[int], Encoded] | None = None

    @property
    def ids(self) -> np.ndarray:
        """The ids that may be used, int64, rising."""
        return np.arange(self.count, dtype=np.int64) if self.kept is None else self.kept

    def num_bytes(self, num_samples: int) -> int:
        """Memory that the images of so many samples take, and their labels where there is one a pixel."""
        labels = 4 * math.prod(self.label_shape) if self.label_shape else 0
        return num_samples * (math.prod(self.image_shape) * self.image_dtype.itemsize + labels)


class Source(NamedTuple):
    """An opened source; splits that it does not have are None."""

    name: str
    version: str
    class_names: tuple[str, ...]
    train: Records
    validation: Records | None
    test: Records | None


def records_in_memory(split: str, images: np.ndarray, labels: np.ndarray) -> Records:
    """Records over arrays at hand: images (N, ...) uint8 or float32, labels (N,) integers."""
    labels = labels.astype(np.int64)
    return Records(
        split=split,
        count=len(labels),
        image_shape=images.shape[1:],
        image_dtype=images.dtype,
        read=lambda ids: Samples(ids, images[ids], labels[ids]),
        read_labels=lambda ids: labels[ids],
    )


def as_resized(version: str, config: dict[str, Any]) -> str:
    """The version of a source whose images are made to another size or other channels: other images, other version."""
    height_width, channels, resize = config["image_size"], config["channels"], config["resize"]
    resized = f"-{height_width[0]}x{height_width[1]}" if height_width else ""
    resized += f"of{resize}" if resize else ""
    return f"{version}{resized}{f'-channels{channels}' if channels else ''}"


def check_fits(name: str, num_bytes: int, max_ram_gb: float, *, is_streamed: bool = False) -> None:
    """Raises ValueError where images of `num_bytes` are more than `max_ram_gb` (1 GB = 1e9 bytes).

    `is_streamed`: those of training are not among them.
    """
    if num_bytes <= max_ram_gb * 1e9:
        return
    what = "validation and test images" if is_streamed else "images"
    fields = ("num_test", "validation_size") if is_streamed else ("num_train", "train_ids", "num_test")
    raise ValueError(
        f"data set {name!r}: its {what} take {num_bytes / 1e9:.3g} GB, more than data.max_ram_gb={max_ram_gb:g}; take "
        f"fewer samples ({', '.join(f'data.{field}' for field in fields)}) or raise data.max_ram_gb"
    )
