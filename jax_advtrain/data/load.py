"""The one entry to data: from plain config values to the three splits in memory."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jax_advtrain.data import augment, fields, splits
from jax_advtrain.data.dataset import Dataset, Splits
from jax_advtrain.data.digits import open_digits
from jax_advtrain.data.moons import open_moons
from jax_advtrain.data.npz_source import open_npz
from jax_advtrain.data.source import Source, check_fits
from jax_advtrain.data.tfds_source import open_tfds

_OPEN: dict[str, Callable[[dict[str, Any]], Source]] = {
    "tfds": open_tfds,
    "npz": open_npz,
    "digits": open_digits,
    "moons": open_moons,
}


def load(config: Mapping[str, Any]) -> Splits:
    """Opens a source, chooses the records of train, validation and test, and reads those into memory.

    Args:
      config: plain values, all optional but `name`:
        name: TFDS name ("mnist", "set/config:1.0.0"), "digits", "moons", or any name for a .npz file.
        source: "tfds", "npz", "digits" or "moons"; derived from name and path where not set.
        data_dir: TFDS folder (tfds, digits); default $TFDS_DATA_DIR or ~/tensorflow_datasets.
        path: the .npz file.
        train_split, validation_split, test_split: TFDS split expressions, e.g. "train[:80%]"; ids count in the
          expression. Default "train", "validation", "test", the latter two where the set has them.
        image_key, label_key: features to use, where the set's info leaves a choice.
        train_ids, test_ids: a list of ids, or a .txt, .npy or .npz[:key] file; samples keep this order.
        num_train, num_test: the first k (of the ids, where given). For moons: how many points to draw.
        validation_from: "split" (the source's own validation split; default where there is one), "rest" (carved from
          the records that train_ids/num_train leave out; default where these are given and leave any), "train" (carved
          from the training samples; default otherwise).
        validation_size: count or fraction of where it is taken from, seeded, stratified; 0: no validation. Default: all
          of the source's own split, else 0.1.
        test_size: count or fraction, carved from train in the same way; only for sources without a test split.
        seed: decides what is carved (and moons' points).
        augment: names for `augment.build`; checked here, applied on the device by whoever trains.
        max_ram_gb: upper limit of the images' memory.
        noise: moons only, standard deviation in scikit-learn's units.

    Returns:
      Splits(train, validation, test).

    Raises:
      ValueError: one line that says what is wrong, where, and what would be right.
    """
    full = fields.complete(config)
    augment.build(full["augment"])
    source = _OPEN[full["source"]](full)
    choice = splits.choose(source, full)
    check_fits(source.name, sum(part.records.num_bytes(len(part.ids)) for part in choice), full["max_ram_gb"])
    return Splits(*(_read(source, part) for part in choice))


def _read(source: Source, part: splits.Part) -> Dataset:
    images, labels = part.records.read(part.ids)
    # Clipped, so that a label which int32 cannot hold is found outside the classes and not wrapped into them.
    return Dataset(
        name=source.name,
        images=images,
        labels=np.clip(labels, -(2**31), 2**31 - 1).astype(np.int32),
        ids=part.ids,
        class_names=source.class_names,
        version=source.version,
        split=part.records.split,
    )
