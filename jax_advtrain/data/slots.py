"""Virtual shards: where each training sample lives, and in which order an epoch visits them.

The samples are cut into V shards that do not depend on the number of devices; shard v owns row v of every per-sample
array. A batch takes the same number of samples from each shard, so a device that holds shards holds the state of all
its samples and looks it up without communication, and 1, 2 or 8 devices see the same batches in the same order.
"""

from typing import NamedTuple

import numpy as np

from jax_advtrain.data.permutation import EPOCH, SLOTS, permutation


def make_slots(num_samples: int, num_shards: int, seed: int) -> np.ndarray:
    """Deals the training samples to slots at random, once for a whole run.

    Args:
      num_samples: N >= 1.
      num_shards: V >= 1.
      seed: in [0, 2**32).

    Returns:
      int32 (V, S), S = ceil(N / V): positions into the train arrays, a random permutation of 0..N-1. Shards differ by
      one sample at most; where a shard has one less, its last slot is padding, -1.
    """
    if num_samples < 1 or num_shards < 1:
        raise ValueError(f"need at least one sample and one shard, got {num_samples} and {num_shards}")
    order = permutation(num_samples, SLOTS, seed)
    per_shard = -(-num_samples // num_shards)
    slots = np.full((num_shards, per_shard), -1, np.int32)
    sizes = np.full(num_shards, num_samples // num_shards)
    sizes[: num_samples % num_shards] += 1
    slots[np.arange(per_shard) < sizes[:, None]] = order  # row by row: each shard a contiguous piece of the order
    return slots


def epoch_batches(slots: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The batches of one epoch: every sample exactly once, in a new order every epoch.

    A pure function of its arguments, so that a run restored at any step needs no iterator state.

    Args:
      slots: int32 (V, S) of `make_slots`.
      batch_size: B, a multiple of V.
      seed: in [0, 2**32).
      epoch: number of the epoch, from 0.

    Returns:
      int32 (steps, V, B/V): local slot numbers in [0, S), or S where there is no sample (only in a shard's last
      batches). Row v of a batch are slots of shard v.

    Raises:
      ValueError: batch_size is not a positive multiple of the number of shards.
    """
    num_shards, per_shard = slots.shape
    if batch_size < 1 or batch_size % num_shards:
        nearest = max(num_shards, round(batch_size / num_shards) * num_shards)
        raise ValueError(
            f"batch size {batch_size} is not divisible by the {num_shards} shards: each batch takes as many samples "
            f"from every shard; {nearest} would do"
        )
    batch_per_shard = batch_size // num_shards
    real = [np.flatnonzero(row >= 0) for row in slots]
    steps = -(-max(len(row) for row in real) // batch_per_shard)
    visits = np.full((num_shards, steps * batch_per_shard), per_shard, np.int32)
    for shard, row in enumerate(real):
        visits[shard, : len(row)] = row[permutation(len(row), EPOCH, seed, epoch, shard)]
    return np.ascontiguousarray(visits.reshape(num_shards, steps, batch_per_shard).swapaxes(0, 1))


def positions(slots: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Positions into the train arrays of one batch's samples, -1 where there is none.

    Args:
      slots: int32 (V, S).
      batch: int32 (V, B/V), one step of `epoch_batches`.

    Returns:
      int32 (V, B/V).
    """
    padded = np.concatenate([slots, np.full((len(slots), 1), -1, slots.dtype)], axis=1)
    return np.take_along_axis(padded, batch, axis=1)


class Visit(NamedTuple):
    """One step's rows, in the order of shards.

    Attributes:
      epoch: number of the epoch.
      positions: int32 (B,) into the train arrays, -1 where there is no sample.
      slots: int32 (B,) local slot numbers.
    """

    epoch: int
    positions: np.ndarray
    slots: np.ndarray


class Visits:
    """step -> Visit, over all epochs of a run; keeps the order of the epoch that was asked for last."""

    def __init__(self, layout: np.ndarray, batch_size: int, seed: int):
        """`layout` of `make_slots`; the others as in `epoch_batches`, which says what is raised."""
        self._arguments = layout, batch_size, seed
        self.seed = seed
        self._kept = 0, epoch_batches(*self._arguments, epoch=0)
        self.steps_per_epoch = len(self._kept[1])

    def __call__(self, step: int) -> Visit:
        epoch, at = divmod(step, self.steps_per_epoch)
        if self._kept[0] != epoch:
            self._kept = epoch, epoch_batches(*self._arguments, epoch=epoch)
        batch = self._kept[1][at]
        return Visit(epoch, positions(self._arguments[0], batch).reshape(-1), batch.reshape(-1))
