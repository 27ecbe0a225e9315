"""Any prepared TFDS image classification set, read without TensorFlow.

TFDS's data source gives the records of a prepared folder by number; the image is decoded here with Pillow, which is
twice as fast as TFDS's own way for small images and reads palette and CMYK images rightly. Which features are the image
and the label, the classes, the shape and the splits come from the set's own info.

Nothing here ever downloads or prepares: the folder is looked for first, so a missing set is an error at once.
"""

import io
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.data import decode, label_cache
from jax_advtrain.data.decode import BadRecord
from jax_advtrain.data.label_cache import Stretch
from jax_advtrain.data.source import Encoded, Records, Samples, Source, as_resized
from jax_advtrain.data.tfds_folder import check_shards, find_folder, missing


class _Wanted(NamedTuple):
    """What is read of a record, and how."""

    image_key: str
    label_key: str
    shape: Sequence[int | None]
    size: tuple[int, int] | None
    resize: int | None
    skip: bool
    mask_values: tuple[int, ...] | None = None  # of masks: the grey level of each label


def default_data_dir() -> str:
    """The user's TFDS folder, by TFDS's own rule."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")


def open_tfds(config: dict[str, Any]) -> Source:
    """Opens a prepared set.

    Uses of `config`: name ("mnist", "mnist:3.0.1", "set/config:1.0.0"), data_dir, train_split, validation_split,
    test_split (any TFDS split expression, e.g. "train[:80%]"; the ids count in that expression), image_key, label_key,
    image_size, resize and channels (what images are made to), on_bad_record (damaged images only), mask_key and
    mask_values (labels one a pixel; then each image is a group of its own).

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
    image, values = info.features[image_key], config["mask_values"]
    if config["mask_key"] is None:
        label_key = _feature_key(info, tfds.features.ClassLabel, config["label_key"], 1, "label_key")
        label = info.features[label_key]
        class_names = tuple(label.names or map(str, range(label.num_classes)))
    else:
        label_key = _feature_key(info, tfds.features.Image, config["mask_key"], 1, "mask_key")
        class_names = tuple(map(str, values))
    if image.np_dtype != np.uint8:
        raise ValueError(
            f"{name}: feature {image_key!r} is {np.dtype(image.np_dtype)}; only 8-bit images are supported"
        )

    channels = config["channels"] or image.shape[-1]
    shape = (*(config["image_size"] or image.shape[:2]), channels)
    skip = config["on_bad_record"] == "skip"
    wanted = _Wanted(image_key, label_key, shape, config["image_size"], config["resize"], skip, values)

    def records(split: str) -> Records:
        try:
            info.splits[split]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{name} has no split {split!r}; its splits are {', '.join(available)}") from error
        check_shards(info.splits[split], split, missing(name, data_dir))
        raw_bytes = tfds.decode.DeserializeMethod.RAW_BYTES
        raw = builder.as_data_source(split, deserialize_method=raw_bytes)  # pyright: ignore[reportCallIssue]
        return _records(name, split, raw, wanted, stretches(split))

    def stretches(split: str) -> list[Stretch]:
        return [
            Stretch(str(instruction.filename), instruction.skip, instruction.take)
            for instruction in info.splits[split].file_instructions
        ]

    def overlap(one: str, other: str) -> bool:
        try:
            pairs = itertools.product(stretches(one), stretches(other))
        except (ValueError, KeyError):  # `records` says which split is not there
            return False
        return any(_meet(*pair) for pair in pairs)

    train = config["train_split"] or "train"
    test = config["test_split"] or ("test" if "test" in available else None)
    validation = config["validation_split"]
    if not validation and "validation" in available:
        is_used = any(overlap(split, "validation") for split in (train, test) if split)
        validation = None if is_used else "validation"
    parts = {"train": train, "validation": validation, "test": test}
    for one, other in itertools.combinations([part for part in parts if parts[part]], 2):
        if overlap(parts[one], parts[other]):
            raise ValueError(
                f"{name}: data.{other}_split={parts[other]!r} and data.{one}_split={parts[one]!r} have records in "
                f"common; give splits that have none, such as 'train[:80%]' and 'train[80%:]'"
            )
    return Source(
        name=info.full_name.removesuffix(f"/{info.version}"),
        version=as_resized(str(info.version), config),
        class_names=class_names,
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


def _records(name: str, split: str, raw: Any, wanted: _Wanted, stretches: Sequence[Stretch]) -> Records:
    where = f"{name}, split {split!r}"

    def fetch(ids: np.ndarray) -> list[Any]:
        return features_of(lambda: raw.__getitems__(ids.tolist()) if len(ids) else [])

    def features_of(read_records: Callable[[], list[bytes]]) -> list[Any]:
        # Here, since this function goes to other processes, and protobuf's cannot.
        from tensorflow_datasets.proto import tf_example_pb2 as protos

        parse = protos.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
        try:
            found = read_records()
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{where}: damaged record ({_first_line(error)}); prepare the set anew") from error
        return [parse(record).features.feature for record in found]

    def label_of(sample: int, features: Any) -> int | np.ndarray:
        if wanted.mask_values is None:
            return features[wanted.label_key].int64_list.value[0]
        return _labels_of_mask(features[wanted.label_key].bytes_list.value[0], wanted, f"{where}: mask of id {sample}")

    def image_of(sample: int, features: Any) -> np.ndarray:
        try:
            encoded = io.BytesIO(features[wanted.image_key].bytes_list.value[0])
            return decode.decode_image(encoded, wanted.shape[-1], wanted.size, wanted.resize)
        except Exception as error:  # Pillow raises a dozen kinds for damaged images
            raise decode.undecodable(called(sample), error) from error

    def called(sample: int) -> str:
        return f"{where}: image of id {sample}"

    def encoded(sample: int) -> Encoded:
        # One by one: for a list array_record starts threads, which takes five times as long as to read one record.
        try:
            (features,) = features_of(lambda: [raw.data_source[sample]])
        except ValueError as error:
            raise BadRecord(f"{called(sample)}: {error}") from error
        return Encoded(called(sample), features[wanted.image_key].bytes_list.value[0])

    def first_image() -> np.ndarray:
        problem = None
        for sample in range(len(raw)):
            try:
                return image_of(sample, fetch(np.array([sample]))[0])
            except BadRecord as error:
                problem = problem or error
                if not wanted.skip:
                    break
        raise problem or ValueError(f"{where} has no records")

    # Some sets promise no size though all their images have one: the first image tells.
    image_shape = tuple(side for side in wanted.shape if side is not None)
    if len(image_shape) < len(wanted.shape):
        image_shape = first_image().shape
    threaded = wanted.size is not None or image_shape[0] * image_shape[1] >= decode.THREADED_PIXELS

    is_mask = wanted.mask_values is not None
    label_shape = image_shape[:2] if is_mask else ()

    def read(ids: np.ndarray) -> Samples:
        how: dict[str, Any] = dict(threaded=threaded, skip=wanted.skip, label_shape=label_shape)
        return decode.read_images(where, ids, image_shape, fetch, image_of, label_of, **how)

    if is_mask:
        return Records(
            split,
            len(raw),
            image_shape,
            np.dtype(np.uint8),
            read,
            lambda ids: read(ids).labels,
            label_shape=label_shape,
            groups=np.arange(len(raw), dtype=np.int64),
            group_names=tuple(map(str, range(len(raw)))),
        )

    def labels_of(ids: np.ndarray) -> np.ndarray:
        labels = np.empty(len(ids), np.int64)

        def fill(at: int, features: Any) -> None:
            labels[at] = label_of(int(ids[at]), features)

        decode.for_each(ids, fetch, fill, threaded=False)
        return labels

    read_labels = label_cache.cached(labels_of, len(raw), stretches, wanted.label_key)
    return Records(split, len(raw), image_shape, np.dtype(np.uint8), read, read_labels, encoded=encoded)


def _labels_of_mask(content: bytes, wanted: _Wanted, called: str) -> np.ndarray:
    """int32 (H, W): the number of each pixel's grey level in `mask_values`, resized as the image is."""
    try:
        mask = decode.decode_image(io.BytesIO(content), 1, wanted.size, wanted.resize, nearest=True)[..., 0]
    except Exception as error:  # Pillow raises a dozen kinds for damaged images
        raise decode.undecodable(called, error) from error
    values = wanted.mask_values or ()
    labels = np.full(256, -1, np.int32)
    labels[list(values)] = np.arange(len(values))
    found = labels[mask]
    if (found < 0).any():
        strange = int(mask[found < 0][0])
        raise BadRecord(f"{called} holds the value {strange}; data.mask_values are {', '.join(map(str, values))}")
    return found


def _meet(one: Stretch, other: Stretch) -> bool:
    """Whether two stretches have a record in common."""

    def end(stretch: Stretch) -> float:
        return math.inf if stretch.take < 0 else stretch.skip + stretch.take

    return one.path == other.path and max(one.skip, other.skip) < min(end(one), end(other))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
