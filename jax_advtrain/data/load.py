"""The one entry to data: from plain config values to the three splits, in memory but for a streamed training set."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jax_advtrain.data import augment, classes, fields, splits
from jax_advtrain.data.dataset import Dataset, Splits
from jax_advtrain.data.decathlon import open_decathlon
from jax_advtrain.data.digits import open_digits
from jax_advtrain.data.image_folder import open_image_folder
from jax_advtrain.data.moons import open_moons
from jax_advtrain.data.npz_source import open_npz
from jax_advtrain.data.source import Samples, Source, check_fits
from jax_advtrain.data.streaming import EncodedImages
from jax_advtrain.data.tfds_source import open_tfds

_LOG = logging.getLogger(__name__)
_OPEN: dict[str, Callable[[dict[str, Any]], Source]] = {
    "tfds": open_tfds,
    "npz": open_npz,
    "image_folder": open_image_folder,
    "decathlon": open_decathlon,
    "digits": open_digits,
    "moons": open_moons,
}


def load(config: Mapping[str, Any]) -> Splits:
    """Opens a source, chooses the records of train, validation and test, and reads those into memory.

    Args:
      config: plain values, all optional but `name`:
        name: TFDS name ("mnist", "set/config:1.0.0"), "digits", "moons", or any name for a .npz file or a folder
          of images.
        source: "tfds", "npz", "image_folder", "decathlon", "digits" or "moons"; derived from name and path where not
          set.
        data_dir: TFDS folder (tfds, digits); default $TFDS_DATA_DIR or ~/tensorflow_datasets. image_folder: the folder
          with one subfolder a class, or with train/, validation/ (or val/) and test/ that have such. decathlon: TaskNN.
        path: the .npz file.
        train_split, validation_split, test_split: TFDS split expressions, e.g. "train[:80%]"; ids count in the
          expression. Default "train", "validation", "test", the latter two where the set has them.
        image_key, label_key: features to use, where the set's info leaves a choice.
        mask_key, mask_values: tfds only: the image feature whose pixels are labels (oxford_iiit_pet's
          "segmentation_mask"), and the values in it that become the labels 0 (background), 1, ..., e.g. (2, 1, 3).
        image_size: a whole number or (height, width), for encoded images (tfds, image_folder, digits): each is resized,
          its shorter side to the size, and the centre cut out, when it is read. Not set: all have one size.
          decathlon: each is padded with zeros or cut, equally on both sides; whole volumes take 3 numbers.
        resize: what the shorter side is resized to instead (256, with an image_size of 224).
        slices: decathlon only: the axis (0, 1, 2) along which a volume falls into samples; not set: it is one sample.
        spacing: decathlon only: millimetres of a voxel, one number or three, to which volumes are resampled; not set:
          they stay as they are.
        channels: 1 or 3: images are made grey or RGB. Not set: what the set's info says; image_folder: grey if all are.
        on_bad_record: an image that cannot be decoded, or a link that leaves the folder: "fail" (named, default), or
          "skip" (left out and logged; the ids of the others stay).
        classes, exclude_classes: names or numbers of the classes to keep, or to leave out, in all splits; as one text
          with commas between them. Ids stay those of the source; lists of ids lose those of other classes; num_train,
          num_test and sizes count what is left.
        exclude_how: "relabel" (default): labels become 0..k-1 in the old order; "keep": labels, class names and so the
          network's outputs stay.
        train_ids, test_ids: a list of ids, or a .txt, .npy or .npz[:key] file; samples keep this order.
        num_train, num_test: the first k (of the ids, where given); where samples lie class by class, the first
          of every class. For moons: how many points to draw. Of a source with groups (the cases of decathlon) these,
          validation_size and test_size count groups, which are never split.
        validation_from: "split" (the source's own validation split; default where there is one), "rest" (carved from
          the records that train_ids/num_train leave out; default where these are given and leave any), "train" (carved
          from the training samples; default otherwise).
        validation_size: count or fraction of where it is taken from, seeded, stratified; 0: no validation. Default: all
          of the source's own split, else 0.1.
        test_size: count or fraction, carved from train in the same way; only for sources without a test split.
        seed: decides what is carved (and moons' points).
        augment: names for `augment.build`, or where labels are one a pixel for `augment_dense.build`, which moves these
          along; checked here, applied on the device by whoever trains. But
          "random_resized_crop", first: a random rectangle of each training image, resized to image_size, where it is
          decoded; it streams.
        streaming: True: training images stay on the disk, and are read and decoded batch by batch (tfds, image_folder);
          False: never. Not set: where they do not fit into max_ram_gb, or must be (random_resized_crop).
        num_workers: processes that decode streamed images; 0: none, the training's own does. Not set: one a core.
        max_ram_gb: upper limit of the memory of images that are not streamed (1 GB = 1e9 bytes).
        noise: moons only, standard deviation in scikit-learn's units.

    Returns:
      Splits(train, validation, test). Validation and test are in memory always.

    Raises:
      ValueError: one line that says what is wrong, where, and what would be right.
    """
    full = fields.complete(config)
    fields.augmentation(full)
    source, selection = classes.select(_OPEN[full["source"]](full), full)
    choice = splits.choose(source, full)
    streams = _streams(source, choice, full)
    found = [_encoded(choice.train, full) if streams else choice.train.records.read(choice.train.ids)]
    found += [part.records.read(part.ids) for part in choice[1:]]
    _report_skipped(source.name, choice, found)
    return Splits(*(_dataset(source, selection, part, samples) for part, samples in zip(choice, found, strict=True)))


def _streams(source: Source, choice: splits.Choice, full: dict[str, Any]) -> bool:
    """Whether the training images are streamed; raises ValueError where they must be and cannot, or nothing fits."""
    train, *others = (part.records.num_bytes(len(part.ids)) for part in choice)
    must = augment.crop_area(full["augment"]) is not None
    can = source.train.encoded is not None
    if must and full["streaming"] is False:
        raise ValueError("augmentation 'random_resized_crop' needs the stored images: data.streaming cannot be False")
    if must and full["image_size"] is None:
        raise ValueError("augmentation 'random_resized_crop' needs data.image_size, the size that is made of a crop")
    if (must or full["streaming"]) and not can:
        why = "augmentation 'random_resized_crop' needs" if must else "data.streaming needs"
        raise ValueError(f"{why} images stored one by one (tfds, image_folder); {source.name!r} is {full['source']!r}")
    too_large = train + sum(others) > full["max_ram_gb"] * 1e9
    streams = full["streaming"] if full["streaming"] is not None else must or (can and too_large)
    held = sum(others) if streams else train + sum(others)
    check_fits(source.name, held, full["max_ram_gb"], is_streamed=streams)
    return streams


def _encoded(part: splits.Part, full: dict[str, Any]) -> Samples:
    """The training samples of a streamed set: their images are not read."""
    assert part.records.encoded is not None
    images = EncodedImages(
        ids=part.ids,
        image_shape=part.records.image_shape,
        encoded=part.records.encoded,
        resize=full["resize"],
        least_area=augment.crop_area(full["augment"]),
        skip=full["on_bad_record"] == "skip",
        num_workers=full["num_workers"],
    )
    return Samples(part.ids, images, part.records.read_labels(part.ids))


def _dataset(source: Source, selection: classes.Selection, part: splits.Part, samples: Samples) -> Dataset:
    # Clipped, so that a label which int32 cannot hold is found outside the classes and not wrapped into them.
    is_dense = samples.labels.ndim > 1  # those are renumbered nowhere, and checked where they are read
    labels = samples.labels if is_dense else np.clip(selection.relabel(samples.labels), -(2**31), 2**31 - 1)
    groups = part.records.groups
    return Dataset(
        name=source.name,
        images=samples.images,
        labels=labels.astype(np.int32, copy=False),
        ids=samples.ids,
        class_names=selection.class_names,
        version=source.version,
        split=part.records.split,
        kept_classes=selection.kept,
        groups=None if groups is None else groups[samples.ids],
        group_names=part.records.group_names,
        spacing=part.records.spacing,
    )


def _report_skipped(name: str, choice: splits.Choice, found: list[Samples]) -> None:
    """Logs one line on the records that could not be read; raises ValueError where no sample is left."""
    counts = {part: len(samples.problems) for part, samples in zip(Splits._fields, found, strict=True)}
    if not any(counts.values()):
        return
    first = next(problem for samples in found for problem in samples.problems)
    for part, asked, samples in zip(Splits._fields, choice, found, strict=True):
        if len(asked.ids) and not len(samples.ids):
            raise ValueError(f"{name}: none of the {len(asked.ids)} {part} records can be read; first: {first}")
    where = ", ".join(f"{count} of {part}" for part, count in counts.items() if count)
    _LOG.warning("data set %r: left out %s that cannot be read; first: %s", name, where, first)
