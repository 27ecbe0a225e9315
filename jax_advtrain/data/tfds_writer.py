"""Writing a TFDS set in array_record form without TensorFlow, in the order that TFDS's own preparation gives it.

TFDS shuffles records by a hash of their keys. Its shuffler needs TensorFlow above 1 GB, so the same order is computed
here, and records are written one by one: nothing is held in memory.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Content(NamedTuple):
    """One split: its record k of `count` is `example(k)`, a value for each feature. Images are PIL's."""

    count: int
    example: Callable[[int], dict[str, Any]]


def write_set(
    folder: Path,
    name: str,
    features: Any,
    contents: Mapping[str, Content],
    description: str,
    supervised: tuple[str, str],
) -> None:
    """Writes a whole set into a folder, one shard a split.

    Args:
      folder: .../<name>/<version>, empty.
      name: TFDS name.
      features: a tfds.features.FeaturesDict.
      contents: {split: its records}; where TFDS has such a set, the same records in the same order as its own builder
        yields with keys 0, 1, ..., so that ids agree with a set that TFDS prepared.
      description: what the set is.
      supervised: the features that are input and target.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
    from etils import epath

    folder.mkdir(parents=True, exist_ok=True)
    split_infos = []
    for split, content in contents.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=epath.Path(folder), dataset_name=name, split=split, filetype_suffix="array_record"
        )
        path = str(template.sharded_filepath(shard_index=0, num_shards=1))
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")  # TFDS's own setting
        num_bytes = 0
        for key in _order(split, content.count):
            record = features.serialize_example(features.encode_example(content.example(key)))
            num_bytes += len(record)
            writer.write(record)
        writer.close()
        split_infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[content.count], num_bytes=num_bytes, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features,
        split_infos=split_infos,
        description=description,
        supervised_keys=supervised,
        check_data=False,  # it would read them with TensorFlow
    )


def _order(split: str, count: int) -> list[int]:
    """Keys 0..count-1 as TFDS orders them: by their hash, salted with the split's name."""
    from tensorflow_datasets.core import hashing

    hasher = hashing.Hasher(split)
    return sorted(range(count), key=hasher.hash_key)


def as_image(pixels: np.ndarray) -> Any:
    """uint8 (H, W) or (H, W, 3) as PIL image, which TFDS encodes as PNG without TensorFlow."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))
