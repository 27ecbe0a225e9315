"""Fixtures shared by all tests: where real data and reference vectors lie, if they are at hand.

`ADVTRAIN_SHARED` names a folder with `tfds/`, `reference/` and `data/`; by default the folder `shared` beside the
repository. A clone without it skips the tests that need it, and says why.
"""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("ADVTRAIN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _existing(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not here (set ADVTRAIN_SHARED to the folder that holds it)")
    return path


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """Folder of prepared TFDS sets: mnist/3.0.1 and cifar10/3.0.2."""
    return _existing(SHARED / "tfds")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the reference implementation's numbers (*.npz)."""
    return _existing(SHARED / "reference")


@pytest.fixture(scope="session")
def medmnist_file() -> Path:
    """A real MedMNIST file (binary chest X-rays)."""
    return _existing(SHARED / "data" / "medmnist" / "pneumoniamnist.npz")
