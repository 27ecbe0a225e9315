"""Any prepared TFDS image classification set, read without TensorFlow.

TFDS's data source gives the records of a prepared folder by number; the image is decoded here with Pillow, which is
twice as fast as TFDS's own way for small images and reads palette and CMYK images rightly. Which features are the image
and the label, the classes, the shape and the splits come from the set's own info.

Nothing here ever downloads or prepares: the folder is looked for first, so a missing set is an error at once.
"""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jax_advtrain.data.source import Records, Source
from jax_advtrain.data.tfds_folder import check_shards, find_folder, missing

CHUNK = 2048  # records whose bytes are in memory at a time
THREADED_PIXELS = 64 * 64  # below this, threads lose more to the interpreter lock than decoding in parallel wins
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def default_data_dir() -> str:
    """The user's TFDS folder, by TFDS's own rule."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")


def open_tfds(config: dict[str, Any]) -> Source:
    """Opens a prepared set.

    Uses of `config`: name ("mnist", "mnist:3.0.1", "set/config:1.0.0"), data_dir, train_split, validation_split,
    test_split (any TFDS split expression, e.g. "train[:80%]"; the ids count in that expression), image_key, label_key.

    Raises:
      ValueError: the set is not there, half-written, damaged, not in array_record form, or is no image classification.
    """
    import tensorflow_datasets as tfds

    name, data_dir = config["name"], config["data_dir"] or default_data_dir()
    folder = find_folder(name, data_dir)
    open_folder = tfds.builder_from_directory
    try:
        builder = open_folder(folder)
        info: Any = builder.info
        available = tuple(info.splits)
    except Exception as error:  # whatever TFDS, protobuf or JSON say of a damaged description
        raise ValueError(f"{folder} is damaged ({_first_line(error)}): delete it; {missing(name, data_dir)}") from error
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{folder} is stored as {info.file_format and info.file_format.value}, not as array_record: "
            f"delete it; {missing(name, data_dir)}"
        )
    image_key = _feature_key(info, tfds.features.Image, config["image_key"], 0, "image_key")
    label_key = _feature_key(info, tfds.features.ClassLabel, config["label_key"], 1, "label_key")
    image, label = info.features[image_key], info.features[label_key]
    if image.np_dtype != np.uint8:
        raise ValueError(
            f"{name}: feature {image_key!r} is {np.dtype(image.np_dtype)}; only 8-bit images are supported"
        )

    def records(split: str) -> Records:
        try:
            info.splits[split]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{name} has no split {split!r}; its splits are {', '.join(available)}") from error
        check_shards(info.splits[split], split, missing(name, data_dir))
        raw_bytes = tfds.decode.DeserializeMethod.RAW_BYTES
        raw = builder.as_data_source(split, deserialize_method=raw_bytes)  # pyright: ignore[reportCallIssue]
        return _records(name, split, raw, image_key, label_key, image.shape)

    train = config["train_split"] or "train"
    test = config["test_split"] or ("test" if "test" in available else None)
    own_validation = "validation" if "validation" in available and test != "validation" else None
    validation = config["validation_split"] or own_validation
    if test is not None and test in (train, validation):
        raise ValueError(
            f"{name}: data.test_split={test!r} is used for {'training' if test == train else 'validation'} too"
        )
    return Source(
        name=info.full_name.removesuffix(f"/{info.version}"),
        version=str(info.version),
        class_names=tuple(label.names or map(str, range(label.num_classes))),
        train=records(train),
        validation=records(validation) if validation else None,
        test=records(test) if test else None,
    )


def _feature_key(info: Any, kind: type, configured: str | None, supervised: int, field: str) -> str:
    """The feature of this kind: as configured, else the one TFDS calls input (0) or target (1), else the only one."""
    candidates = [key for key, feature in info.features.items() if isinstance(feature, kind)]
    if configured:
        if configured not in candidates:
            found = ", ".join(candidates) or "none"
            raise ValueError(
                f"{info.name}: data.{field}={configured!r} is no {kind.__name__} feature; there are: {found}"
            )
        return configured
    if info.supervised_keys and info.supervised_keys[supervised] in candidates:
        return info.supervised_keys[supervised]
    if len(candidates) != 1:
        found = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in info.features.items())
        problem = f"several: set data.{field}" if candidates else "none: it is no image classification set"
        raise ValueError(f"{info.name}: need one {kind.__name__} feature, there are {problem}. Its features: {found}")
    return candidates[0]


def _records(name: str, split: str, raw: Any, image_key: str, label_key: str, shape: Sequence[int | None]) -> Records:
    from tensorflow_datasets.proto import tf_example_pb2 as protos

    parse = protos.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]

    def raw_records(ids: np.ndarray) -> list[Any]:
        try:
            found = raw.__getitems__(ids.tolist()) if len(ids) else []
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"{name}, split {split!r}: damaged record ({_first_line(error)}); prepare the set anew"
            ) from error
        return [parse(record).features.feature for record in found]

    def label_of(features: Any) -> int:
        return features[label_key].int64_list.value[0]

    def decode(sample: int, features: Any) -> np.ndarray:
        try:
            return _decode(features[image_key].bytes_list.value[0], _MODES.get(shape[-1] or 0))
        except Exception as error:  # Pillow raises a dozen kinds for damaged images
            raise ValueError(f"{name}, split {split!r}: image of id {sample} cannot be decoded ({error})") from error

    # Some sets promise no size though all their images have one: the first image tells.
    image_shape = tuple(side for side in shape if side is not None)
    if len(image_shape) < len(shape):
        image_shape = decode(0, raw_records(np.zeros(1, np.int64))[0]).shape
    threaded = image_shape[0] * image_shape[1] >= THREADED_PIXELS

    def read(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(ids), *image_shape), np.uint8)
        labels = np.empty(len(ids), np.int64)

        def fill(at: int, features: Any) -> None:
            image = decode(int(ids[at]), features)
            if image.shape != image_shape:
                raise ValueError(
                    f"{name}, split {split!r}: images differ in size ({image.shape} at id {ids[at]}, {image_shape}); "
                    "sets that must be resized, or do not fit into memory, are not supported yet"
                )
            images[at], labels[at] = image, label_of(features)

        _for_each_chunk(ids, raw_records, fill, threaded)
        return images, labels

    def read_labels(ids: np.ndarray) -> np.ndarray:
        labels = np.empty(len(ids), np.int64)

        def fill(at: int, features: Any) -> None:
            labels[at] = label_of(features)

        _for_each_chunk(ids, raw_records, fill, threaded=False)
        return labels

    return Records(split, len(raw), image_shape, np.dtype(np.uint8), read, read_labels)


def _for_each_chunk(ids: np.ndarray, raw_records: Callable, fill: Callable[[int, Any], None], threaded: bool) -> None:
    """Calls fill(k, record of ids[k]) for each k; the bytes of CHUNK records are held at a time."""
    with ThreadPoolExecutor(os.cpu_count() if threaded else 1) as pool:
        for start in range(0, len(ids), CHUNK):
            found = raw_records(ids[start : start + CHUNK])
            places = range(start, start + len(found))
            # list: an exception in a thread is raised here
            list((pool.map if threaded else map)(fill, places, found))


def _decode(encoded: bytes, mode: str | None) -> np.ndarray:
    """uint8 (H, W, C) of an encoded image; `mode` None keeps the channels that it has."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        mode = mode or ("L" if image.mode in ("L", "1") else "RGB")
        pixels = image if image.mode == mode else image.convert(mode)
        # tobytes is twice as fast as np.asarray, which goes through a dictionary and a copy
        return np.frombuffer(pixels.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
