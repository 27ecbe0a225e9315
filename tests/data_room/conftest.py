"""Fixtures of the data room: prepared digits, and small TFDS sets made for one test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jax_advtrain.data import digits


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS folder with digits in it."""
    folder = tmp_path_factory.mktemp("tfds")
    digits.prepare(folder)
    return folder


@pytest.fixture
def prepare_set(tmp_path: Path) -> Callable[..., Path]:
    """Prepares a TFDS set `toy` from features and examples by split, without TensorFlow; returns its data_dir."""

    def prepare(features: Any, examples: dict[str, list[dict[str, Any]]], supervised: tuple[str, str] | None = None):
        import tensorflow_datasets as tfds

        class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=supervised,
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(rows) for split, rows in examples.items()}

            def _generate_examples(self, rows):
                yield from enumerate(rows)

        config = tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP, try_download_gcs=False)
        Toy(data_dir=str(tmp_path), file_format="array_record").download_and_prepare(download_config=config)
        return tmp_path

    return prepare
