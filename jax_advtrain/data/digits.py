"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, as a TFDS set made without TensorFlow.

They ship inside scikit-learn, so this set needs no network. It is prepared on first use into the user's TFDS folder and
read like any other TFDS set from then on.

The splits are fixed. In each class, samples are ordered by `permutation(count, DIGITS, 0, class)`; the first 20%
(rounded) are test, the next 10% validation, the others train. Within a split, records keep scikit-learn's order (field
`index`).
"""

import contextlib
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np

from jax_advtrain.data.permutation import DIGITS, permutation
from jax_advtrain.data.placing import ABANDONED_AFTER_SECONDS, place
from jax_advtrain.data.source import Source
from jax_advtrain.data.tfds_source import default_data_dir, open_tfds

VERSION = "1.0.0"
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1


def open_digits(config: dict[str, Any]) -> Source:
    """Opens the digits, preparing them first where that was not done: images uint8 (8, 8, 1), 10 classes."""
    data_dir = Path(config["data_dir"] or default_data_dir()).expanduser()
    prepare(data_dir)
    return open_tfds({**config, "name": f"digits:{VERSION}", "data_dir": str(data_dir)})._replace(name=config["name"])


def prepare(data_dir: Path) -> Path:
    """Writes the TFDS set below `data_dir` unless it is there, and returns its folder.

    It is written in a temporary folder beside and moved in one step, so that a kill leaves nothing half-written, and of
    two at once the first one wins and the other takes its result.
    """
    final = data_dir / "digits" / VERSION

    def write(workplace: Path) -> Path:
        _write(workplace)
        return workplace / "digits" / VERSION

    place(final, write, "digits", ABANDONED_AFTER_SECONDS)
    return final


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """scikit-learn's positions of each split, ascending, by the rule above; labels int (1797,)."""
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[permutation(len(members), DIGITS, 0, int(label))]
        num_test = round(TEST_SHARE * len(members))
        num_validation = round(VALIDATION_SHARE * len(members))
        parts["test"].append(members[:num_test])
        parts["validation"].append(members[num_test : num_test + num_validation])
        parts["train"].append(members[num_test + num_validation :])
    return {name: np.sort(np.concatenate(members)) for name, members in parts.items()}


def _write(data_dir: Path) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    builder = _builder_class()(data_dir=str(data_dir), file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
    # TFDS announces downloads and draws four bars for a quarter of a second's work.
    tqdm_utils.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config)
    finally:
        tqdm_utils.enable_progress_bar()


@functools.cache
def _builder_class() -> type:
    import tensorflow_datasets as tfds

    # Not registered: reading goes by the folder alone, and a registry of builders would be global state.
    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        """1,797 handwritten digits, 8x8, grey levels 0..16 scaled to 0..255."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
                "index": tfds.features.Scalar(np.int64),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=type(self).__doc__,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,  # ids stay in scikit-learn's order, whatever TFDS's shuffle does
            )

        def _split_generators(self, dl_manager):
            from sklearn.datasets import load_digits

            pixels, labels = load_digits(return_X_y=True)
            images = np.round(np.asarray(pixels).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
            labels = np.asarray(labels)
            indices = split_indices(labels)
            return {name: self._generate_examples(images, labels, part) for name, part in indices.items()}

        def _generate_examples(self, images, labels, indices):
            from PIL import Image

            for index in indices:
                image = Image.fromarray(images[index])
                yield int(index), {"image": image, "label": int(labels[index]), "index": int(index)}

    return Digits
