"""Fixtures of the training room."""

import os
from pathlib import Path

import pytest

from jax_advtrain.data import digits

# Halves the time to compile; what is computed stays the same.
QUICK_COMPILATION = "--xla_backend_optimization_level=0"


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> Path:
    """A TFDS folder with digits in it."""
    folder = tmp_path_factory.mktemp("tfds")
    digits.prepare(folder)
    return folder


@pytest.fixture(scope="session")
def cached_compilation(tmp_path_factory) -> dict[str, str]:
    """Environment in which a program that one process compiled is compiled by no other."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("compiled"))
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {QUICK_COMPILATION}",
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
