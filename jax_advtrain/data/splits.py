"""Which records train, validate and test: id lists, and seeded carving, stratified or by group."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.data.order import first_positions
from jax_advtrain.data.permutation import TEST, VALIDATION, permutation
from jax_advtrain.data.source import Records, Source

DEFAULT_VALIDATION = 0.1


class Part(NamedTuple):
    """Some records of one source split: ids int64 (n,), in the order that the samples will have."""

    records: Records
    ids: np.ndarray


class Choice(NamedTuple):
    train: Part
    validation: Part
    test: Part


def choose(source: Source, config: dict[str, Any]) -> Choice:
    """Chooses the records of the three splits; the fields are explained at `load`.

    Raises:
      ValueError: ids outside the source, doubled, or in both train and test; sizes larger than what there is; no test
        split.
    """
    train = source.train
    test, pool = _choose_test(source, config)
    if config["train_ids"] is None:
        listed = pool
    else:
        listed = _listed(train, config, "train_ids")
        if source.test is None and len(_without(train, listed, test.ids)) < len(listed):
            what = "ids" if train.groups is None else "cases"
            raise ValueError(f"data.train_ids and the test samples, taken from the same split, have {what} in common")
    chosen = _first(train, listed, config["num_train"], "num_train")
    rest = _without(train, pool, chosen)

    origin = config["validation_from"]
    if origin is None:
        subset = config["train_ids"] is not None or config["num_train"] is not None
        origin = "split" if source.validation is not None else "rest" if subset and len(rest) else "train"
    if origin == "split":
        if source.validation is None:
            raise ValueError(f"data.validation_from='split', but {source.name} has no validation split")
        validation = source.validation
        kept, _ = carve(validation, validation.ids, config["validation_size"], config["seed"], VALIDATION)
        return Choice(Part(train, chosen), Part(validation, kept), test)
    size = DEFAULT_VALIDATION if config["validation_size"] is None else config["validation_size"]
    if origin == "rest":
        kept, _ = carve(train, rest, size, config["seed"], VALIDATION)
    else:
        kept, chosen = carve(train, chosen, size, config["seed"], VALIDATION)
    if not len(chosen):
        raise ValueError(f"data.validation_size={size} takes all {len(kept)} training samples of {source.name}")
    return Choice(Part(train, chosen), Part(train, kept), test)


def _choose_test(source: Source, config: dict[str, Any]) -> tuple[Part, np.ndarray]:
    """The test part, and the ids of the train split that are left for training."""
    records = source.test or source.train
    if config["test_ids"] is not None and config["test_size"] is not None:
        raise ValueError("data.test_ids and data.test_size cannot both be set")
    if source.test is not None and config["test_size"] is not None:
        raise ValueError(
            f"{source.name} has a test split: data.test_size cannot be set; data.num_test takes its first k"
        )
    if config["test_ids"] is not None:
        ids = _listed(records, config, "test_ids")
    elif source.test is not None:
        ids = records.ids
    elif config["test_size"]:
        ids, _ = carve(records, records.ids, config["test_size"], config["seed"], TEST)
    else:
        raise ValueError(
            f"{source.name} has no test split: set data.test_size (e.g. 0.2, carved from train), data.test_ids, or "
            "data.test_split"
        )
    everything = source.train.ids
    pool = everything if source.test is not None else _without(records, everything, ids)
    ids = _first(records, ids, config["num_test"], "num_test")
    if not len(ids) or not len(pool):
        raise ValueError(f"{source.name}: {len(ids)} test samples and {len(pool)} for training; neither may be empty")
    return Part(records, ids), pool


def carve(
    records: Records, pool: np.ndarray, size: float | None, seed: int, purpose: int
) -> tuple[np.ndarray, np.ndarray]:
    """Takes a stratified random subset out of a pool of ids.

    Every class gives its share of `size`, rounded such that the sum is right (largest remainders); which of its samples
    is decided by `permutation(count, purpose, seed, label)`. Where records have groups, whole groups are taken instead,
    of which `size` is the number or the fraction; `permutation(groups, purpose, seed, 0)` says which.

    Args:
      records: where the labels are read.
      pool: int64 (n,) distinct ids.
      size: a count, or a fraction of the pool in (0,1); None: all.
      seed: in [0, 2**32).
      purpose: a constant of `permutation`.

    Returns:
      (ids taken, ids left), both in the pool's order.

    Raises:
      ValueError: size is larger than the pool, or a fraction of it that is less than one sample.
    """
    groups = pool if records.groups is None else np.unique(records.groups[pool])
    count = len(groups) if size is None else size if isinstance(size, int) else round(size * len(groups))
    field = {VALIDATION: "validation_size", TEST: "test_size"}[purpose]
    if count > len(groups) or (size and not count):
        what = f"{len(groups)} {'samples' if records.groups is None else 'cases'} of split {records.split!r}"
        raise ValueError(f"data.{field}={size} cannot be taken from {what}; give fewer, or a fraction such as 0.1")
    if count in (0, len(groups)):
        return (pool, pool[:0]) if count else (pool[:0], pool)
    if records.groups is not None:
        taken = np.isin(records.groups[pool], groups[permutation(len(groups), purpose, seed, 0)[:count]])
        return pool[taken], pool[~taken]
    labels = records.read_labels(pool)
    classes, counts = np.unique(labels, return_counts=True)
    exact = count * counts
    quota = exact // len(pool)
    by_remainder = np.argsort(-(exact % len(pool)), kind="stable")
    quota[by_remainder[: count - quota.sum()]] += 1
    taken = np.zeros(len(pool), bool)
    for label, total, take in zip(classes, counts, quota, strict=True):
        members = np.flatnonzero(labels == label)
        taken[members[permutation(total, purpose, seed, int(label) % 2**32)[:take]]] = True
    return pool[taken], pool[~taken]


def read_ids(spec: str | Sequence[int], count: int, field: str) -> np.ndarray:
    """Ids from a list or a file, in their order: int64 (n,).

    Args:
      spec: a sequence of ids; or a path to .txt (one a line), .npy, or .npz, with `:key` behind where it has several
        arrays.
      count: number of records of the split that they name.
      field: name of the config field, for messages.

    Raises:
      ValueError: unreadable file, unknown key, not integers, no ids, doubled ids, ids outside [0, count).
    """
    where = f"data.{field}={spec!r}" if isinstance(spec, str) else f"data.{field}"
    try:
        ids = _ids_file(spec) if isinstance(spec, str) else np.asarray(spec)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} cannot be read: {str(error).splitlines()[0]}") from error
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise ValueError(f"{where} must be a list of whole numbers, got {ids.dtype} of shape {ids.shape}")
    ids = ids.astype(np.int64)
    outside = ids[(ids < 0) | (ids >= count)]
    if len(outside):
        raise ValueError(f"{where}: {len(outside)} ids are outside 0..{count - 1} (first: {outside[0]})")
    values, times = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise ValueError(f"{where}: {np.sum(times > 1)} ids are doubled (first: {values[times > 1][0]})")
    return ids


def _listed(records: Records, config: dict[str, Any], field: str) -> np.ndarray:
    """The ids of a list that may be used, in its order."""
    ids = read_ids(config[field], records.count, field)
    if records.kept is None:
        return ids
    left = ids[np.isin(ids, records.kept)]
    if not len(left):
        raise ValueError(f"data.{field} names {len(ids)} samples, all of classes that are left out")
    return left


def _ids_file(spec: str) -> np.ndarray:
    path, key = spec, None
    if ".npz:" in spec:
        path, _, key = spec.rpartition(":")
    file = Path(path).expanduser()
    if file.suffix == ".txt":
        return np.array([int(line) for line in file.read_text().split()], np.int64)
    if file.suffix not in (".npy", ".npz"):
        raise ValueError("need a .txt, .npy or .npz file, or a list")
    loaded = np.load(file, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return loaded
    with loaded:
        if key is None and len(loaded.files) == 1:
            key = loaded.files[0]
        if key not in loaded.files:
            raise ValueError(
                f"{'no key given' if key is None else f'no array {key!r}'}; it has {', '.join(loaded.files)}"
            )
        return loaded[key]


def _first(records: Records, ids: np.ndarray, count: int | None, field: str) -> np.ndarray:
    """The first `count` samples (see `first_positions`), or those of the first `count` groups."""
    if count is None:
        return ids
    owners = ids if records.groups is None else records.groups[ids]
    distinct = list(dict.fromkeys(owners.tolist()))
    if count > len(distinct):
        what = "samples" if records.groups is None else "cases"
        raise ValueError(f"data.{field}={count}, but there are only {len(distinct)} {what}")
    if records.groups is None and not records.label_shape:
        return ids[first_positions(records.read_labels(ids), count)]
    return ids[np.isin(owners, distinct[:count])]


def _without(records: Records, ids: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The ids that are not taken, and none of whose group is."""
    if records.groups is None:
        return ids[~np.isin(ids, taken)]
    return ids[~np.isin(records.groups[ids], records.groups[taken])]
