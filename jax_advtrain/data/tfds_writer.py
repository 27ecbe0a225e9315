"""Writing a TFDS set in array_record form without TensorFlow, in the order that TFDS's own preparation gives it.

TFDS shuffles records by a hash of their keys. Its shuffler needs TensorFlow above 1 GB, so the same order is computed
here, and records are written one by one: nothing is held in memory.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_SHARD_BYTES = 256_000_000


class Content(NamedTuple):
    """One split.

    Attributes:
      count: number of records.
      example: k -> record k, a value for each feature. Images are PIL's, or files of encoded bytes.
      keys: what TFDS's own builder yields record k under; None: k.
      num_bytes: about how large all records are; decides into how many files they go.
    """

    count: int
    example: Callable[[int], dict[str, Any]]
    keys: Sequence[str] | None = None
    num_bytes: int = 0


def write_set(
    folder: Path,
    name: str,
    features: Any,
    contents: Mapping[str, Content],
    description: str,
    supervised: tuple[str, str],
) -> None:
    """Writes a whole set into a folder, in shards of about 256 MB.

    Args:
      folder: .../<name>/<version>, empty.
      name: TFDS name.
      features: a tfds.features.FeaturesDict.
      contents: {split: its records}; where TFDS has such a set, the same records in the same order as its own builder
        yields them, so that ids agree with a set that TFDS prepared.
      description: what the set is.
      supervised: the features that are input and target.

    Raises:
      OSError: nothing can be written, or there is less room than the records take.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
    from etils import epath

    folder.mkdir(parents=True, exist_ok=True)
    wanted, free = sum(content.num_bytes for content in contents.values()), shutil.disk_usage(folder).free
    if wanted > free:
        raise OSError(f"the records take {wanted / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")
    split_infos = []
    for split, content in contents.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=epath.Path(folder), dataset_name=name, split=split, filetype_suffix="array_record"
        )
        num_shards = max(1, min(content.count, -(-content.num_bytes // _SHARD_BYTES)))
        num_bytes, shards = 0, np.array_split(_order(split, content.keys or range(content.count)), num_shards)
        for number, shard in enumerate(shards):
            path = str(template.sharded_filepath(shard_index=number, num_shards=num_shards))
            writer = array_record_module.ArrayRecordWriter(path, "group_size:1")  # TFDS's own setting
            for k in shard.tolist():
                record = features.serialize_example(features.encode_example(content.example(k)))
                num_bytes += len(record)
                _write(path, writer.write, record)
            _write(path, writer.close)
        lengths = [len(shard) for shard in shards]
        split_infos.append(
            tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features,
        split_infos=split_infos,
        description=description,
        supervised_keys=supervised,
        check_data=False,  # it would read them with TensorFlow
    )


def _write(path: str, function: Callable[..., Any], *arguments: Any) -> None:
    """array_record tells of a full disk by a RuntimeError; here it becomes the system's own kind."""
    try:
        function(*arguments)
    except RuntimeError as error:
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from error


def _order(split: str, keys: Sequence[Any]) -> list[int]:
    """Which record comes first, second, ... where TFDS orders them: by the hash of their keys, salted by the split."""
    from tensorflow_datasets.core import hashing

    hasher = hashing.Hasher(split)
    hashes = [hasher.hash_key(key) for key in keys]
    return sorted(range(len(hashes)), key=hashes.__getitem__)


def as_image(pixels: np.ndarray) -> Any:
    """uint8 (H, W) or (H, W, 3) as PIL image, which TFDS encodes as PNG without TensorFlow."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))
