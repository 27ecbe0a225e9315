"""Labels of a large prepared set, which stand in its records beside the images: read once, and kept on the disk.

ImageNet's labels take a pass over its 140 GB. What is kept is a file of numbers in the user's cache folder; it can be
deleted at any time.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_LOG = logging.getLogger(__name__)
LARGE_BYTES = 1_000_000_000  # of smaller splits the labels are read again: seconds

ReadLabels = Callable[[np.ndarray], np.ndarray]


class Stretch(NamedTuple):
    """The records of a file that a split takes: `take` (-1: all) after the first `skip`."""

    path: str
    skip: int
    take: int


def cached(read_labels: ReadLabels, count: int, stretches: Sequence[Stretch], label_key: str) -> ReadLabels:
    """The same function, which for a large split reads all labels at the first call and then remembers them.

    Args:
      read_labels: ids int64 (n,) -> labels int64 (n,).
      count: number of records.
      stretches: what the split is made of; another size or time of change of a file means other labels.
      label_key: the feature that is the label.
    """
    try:
        found = [os.stat(one.path) for one in stretches]
    except OSError:  # not on a local disk
        return read_labels
    if sum(one.st_size for one in found) < LARGE_BYTES:
        return read_labels
    parts = [
        (os.path.abspath(stretch.path), stretch.skip, stretch.take, one.st_size, one.st_mtime_ns)
        for stretch, one in zip(stretches, found, strict=True)
    ]
    name = hashlib.sha256(repr((label_key, count, parts)).encode()).hexdigest()[:32]
    kept: list[np.ndarray] = []

    def read(ids: np.ndarray) -> np.ndarray:
        if not kept:
            kept.append(_all_labels(folder() / f"{name}.npy", read_labels, count))
        return kept[0][ids]

    return read


def folder() -> Path:
    """Where they are kept: $XDG_CACHE_HOME/jax_advtrain/labels, else below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jax_advtrain" / "labels"


def _all_labels(path: Path, read_labels: ReadLabels, count: int) -> np.ndarray:
    try:
        labels = np.load(path, allow_pickle=False)
        if labels.shape == (count,) and labels.dtype == np.int64:
            return labels
    except (OSError, ValueError, EOFError):
        pass
    _LOG.warning("reading the labels of %d records once; they are then kept as %s", count, path)
    labels = read_labels(np.arange(count))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            np.save(file, labels)
        os.replace(file.name, path)
    except OSError as error:
        _LOG.warning("the labels cannot be kept (%s); the next run reads them again", error)
    return labels
