"""Fixtures of the data room: prepared digits, and small TFDS sets made for one test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Two real photographs, uint8 (427, 640, 3)."""
    from sklearn.datasets import load_sample_images

    return [np.asarray(image) for image in load_sample_images().images]


@pytest.fixture
def image_folder(tmp_path: Path, photographs: list[np.ndarray]) -> Callable[..., Path]:
    """Writes cut-outs of real photographs: image_folder("train/cat/a.png", "train/dog/b.jpg", sizes=(40, 50)) gives
    tmp_path/images; file k has size sizes[k % 2] as height and width."""

    def write(*paths: str, sizes: tuple[int, int] = (40, 40), mode: str = "RGB") -> Path:
        for number, path in enumerate(paths):
            file = tmp_path / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            side = sizes[number % 2]
            corner = 7 * number % 300
            cut = photographs[number % 2][corner : corner + side, corner : corner + side]
            Image.fromarray(cut).convert(mode).save(file)
        return tmp_path / "images"

    return write
