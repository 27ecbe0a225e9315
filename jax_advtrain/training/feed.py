"""From a data set in memory to batches on the devices, one ahead of the step that uses them."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator

import numpy as np
from jax.sharding import Mesh

from jax_advtrain.data import Dataset, slots
from jax_advtrain.devices import spread
from jax_advtrain.training.step import PADDING, HostBatch

_AHEAD = 2


def host_batch(mesh: Mesh, data: Dataset, positions: np.ndarray, slot_numbers: np.ndarray) -> HostBatch:
    """One batch from positions into the arrays; position -1 is padding (slot `PADDING`, some real image, id 0)."""
    there = np.maximum(positions, 0)
    return HostBatch(
        images=spread(mesh, data.images, there),
        labels=spread(mesh, data.labels, there),
        ids=spread(mesh, data.ids.astype(np.int32), there),
        slots=spread(mesh, np.where(positions < 0, PADDING, slot_numbers).astype(np.int32)),
    )


def epoch(
    mesh: Mesh, data: Dataset, layout: np.ndarray, batch_size: int, seed: int, number: int, first_step: int = 0
) -> Iterator[HostBatch]:
    """The batches of one epoch from `first_step` on: a pure function of (seed, epoch, step)."""
    for batch in slots.epoch_batches(layout, batch_size, seed, number)[first_step:]:
        yield host_batch(mesh, data, slots.positions(layout, batch).reshape(-1), batch.reshape(-1))


class Waiting:
    """Seconds that the consumer of `ahead` spent waiting for a batch; the first batch of each epoch counts too."""

    def __init__(self) -> None:
        self.seconds = 0.0


def ahead(batches: Iterable[HostBatch], waiting: Waiting) -> Iterator[HostBatch]:
    """The same batches, made by a thread that stays a little ahead; an error in it is raised here."""
    ready: queue.Queue = queue.Queue(maxsize=_AHEAD)
    stopped = threading.Event()

    def put(item) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for batch in batches:
                if not put((batch, None)):
                    return
            put((None, None))
        except BaseException as error:
            put((None, error))

    threading.Thread(target=produce, name="input", daemon=True).start()
    try:
        while True:
            started = time.perf_counter()
            batch, error = ready.get()
            waiting.seconds += time.perf_counter() - started
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        stopped.set()
