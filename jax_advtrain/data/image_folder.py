"""A folder of PNG and JPEG images with one subfolder a class: no TFDS, no Grain.

Which splits, classes and records there are is said in `folder_tree`. Rotation notes of cameras (EXIF) are not followed,
and transparency is dropped.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.data import decode, folder_tree
from jax_advtrain.data.decode import BadRecord
from jax_advtrain.data.source import Encoded, Records, Samples, Source, as_resized

_LOG = logging.getLogger(__name__)


class _Header(NamedTuple):
    """What an image says of itself before it is decoded."""

    size: tuple[int, int]
    is_grey: bool


def open_image_folder(config: dict[str, Any]) -> Source:
    """Opens the folder `config["data_dir"]`; ids are positions in the sorted list of a split's paths.

    Uses of `config`: name, data_dir, image_size (None: all images have one size), resize, channels (None: grey if all
    are, else RGB), on_bad_record.

    Raises:
      ValueError: no such folder, or not laid out as above; images of different sizes and no image_size; a bad record
        where these are fatal.
    """
    root = Path(config["data_dir"]).expanduser()
    fields = ("train_split", "validation_split", "test_split", "image_key", "label_key")
    names = [field for field in fields if config[field]]
    if names:
        raise ValueError(
            f"an image folder has splits by its subfolders and no keys: data.{', data.'.join(names)} cannot be set"
        )
    tree = folder_tree.find(root)
    if tree.others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tree.others.items())[:5])
        _LOG.warning("%s: files that are no images (%s) are left out: %s", root, ", ".join(folder_tree.SUFFIXES), kinds)
    image_shape = _image_shape(tree, config)
    parts = {split: _records(tree, split, image_shape, config) for split in tree.splits}
    version = as_resized(tree.version, config)
    return Source(config["name"], version, tree.class_names, parts["train"], parts.get("validation"), parts.get("test"))


def _records(tree: folder_tree.Tree, split: str, image_shape: tuple[int, int, int], config: dict[str, Any]) -> Records:
    entries, folder = tree.splits[split], tree.folders[split]
    labels = np.array([entry.label for entry in entries], np.int64)
    where = f"{folder}, split {split!r}"
    decoder = partial(decode.decode_image, channels=image_shape[2], size=config["image_size"], resize=config["resize"])

    def image_of(sample: int, entry: folder_tree.Entry) -> np.ndarray:
        return _opened(folder, sample, entry, decoder)

    def encoded(sample: int) -> Encoded:
        entry = entries[sample]
        return Encoded(_called(folder, sample, entry), _opened(folder, sample, entry, Path.read_bytes))

    def read(ids: np.ndarray) -> Samples:
        return decode.read_images(
            where,
            ids,
            image_shape,
            fetch=lambda chunk: [entries[sample] for sample in chunk],
            image_of=image_of,
            label_of=lambda _, entry: entry.label,
            threaded=True,  # files must be opened, too
            skip=config["on_bad_record"] == "skip",
        )

    return Records(split, len(entries), image_shape, np.dtype(np.uint8), read, lambda ids: labels[ids], encoded=encoded)


def _image_shape(tree: folder_tree.Tree, config: dict[str, Any]) -> tuple[int, int, int]:
    """(H, W, C) of the images as they will be; where the config does not say it, all files are looked at."""
    size, channels = config["image_size"], config["channels"]
    if size is not None and channels is not None:
        return size[0], size[1], channels
    first, kinds = None, {True: 0, False: 0}
    last: dict[bool, Path] = {}
    for path, header in _headers(tree, skip=config["on_bad_record"] == "skip"):
        first = first or (path, header.size)
        if size is None and header.size != first[1]:
            sizes = [f"{path} has {height}x{width}" for path, (height, width) in (first, (path, header.size))]
            raise ValueError(
                f"images differ in size (height x width): {', '.join(sizes)}; set data.image_size to the one that all "
                "are to be resized to"
            )
        kinds[header.is_grey] += 1
        last[header.is_grey] = path
    if first is None:
        raise ValueError(f"none of the images in {config['data_dir']} can be read")
    height, width = size or first[1]
    if channels is None and kinds[True] and kinds[False]:
        rarer = min(kinds, key=lambda is_grey: kinds[is_grey])
        _LOG.warning(
            "%d images are grey, %d in colour (of the fewer, %s): all become colour; data.channels=1 makes them grey",
            *(kinds[True], kinds[False], last[rarer]),
        )
    return height, width, channels or (3 if kinds[False] else 1)


def _headers(tree: folder_tree.Tree, *, skip: bool) -> Iterator[tuple[Path, _Header]]:
    """Of every file that can be opened, in the order of splits and ids."""
    with ThreadPoolExecutor() as pool:
        for split, entries in tree.splits.items():
            folder = tree.folders[split]

            def header(numbered: tuple[int, folder_tree.Entry], folder: Path = folder) -> _Header | None:
                try:
                    return _opened(folder, *numbered, _read_header)
                except BadRecord:
                    if not skip:
                        raise
                    return None

            for entry, found in zip(entries, pool.map(header, enumerate(entries)), strict=True):
                if found is not None:
                    yield folder / entry.path, found


def _read_header(path: Path) -> _Header:
    from PIL import Image

    with Image.open(path) as image:
        return _Header((image.height, image.width), decode.is_grey(image))


def _opened(folder: Path, sample: int, entry: folder_tree.Entry, reader: Callable[[Path], Any]) -> Any:
    """What the reader makes of a record's file; raises BadRecord with its path and id."""
    path = folder / entry.path
    if entry.problem:
        raise BadRecord(f"{_called(folder, sample, entry)} {entry.problem}")
    try:
        return reader(path)
    except Exception as error:  # Pillow raises a dozen kinds for damaged images
        raise decode.undecodable(_called(folder, sample, entry), error) from error


def _called(folder: Path, sample: int, entry: folder_tree.Entry) -> str:
    return f"{folder / entry.path} (id {sample})"
