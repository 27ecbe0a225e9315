"""From a data set to batches on the devices, a few ahead of the step that uses them."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Generator, Iterator

import numpy as np
from jax.sharding import Mesh

from jax_advtrain.data import Dataset, streaming
from jax_advtrain.data.decode import BadRecord
from jax_advtrain.data.slots import Visit, Visits
from jax_advtrain.devices import assembled, local_rows, spread
from jax_advtrain.errors import ConfigError
from jax_advtrain.training.step import PADDING, HostBatch

_AHEAD = 2
_LOG = logging.getLogger(__name__)


class WorkersGone(ConfigError):
    """A process that reads a streamed set was killed: by the system for its memory, or by a signal to the whole job."""


def example(mesh: Mesh, data: Dataset, visit: Visit) -> HostBatch:
    """A batch of the right shapes and shardings; the images of a streamed set are left black."""
    if not data.is_streamed:
        return _host_batch(mesh, data, visit)
    num_rows = len(local_rows(mesh, len(visit.slots)))
    return _host_batch(mesh, data, visit, np.zeros((num_rows, *data.image_shape), np.uint8))


def batches(mesh: Mesh, data: Dataset, visits: Visits, first_step: int, num_steps: int) -> Generator[HostBatch]:
    """The batches of the steps from `first_step` to `num_steps`: a pure function of the visits.

    Close it to end the processes that read a streamed set.

    Raises:
      ConfigError: a record of a streamed set cannot be read, or (WorkersGone) those who read them were killed.
    """
    if not data.is_streamed:
        for step in range(first_step, num_steps):
            yield _host_batch(mesh, data, visits(step))
        return
    rows = local_rows(mesh, len(visits(first_step).slots))
    with contextlib.closing(streaming.read_batches(data.images, visits, rows, first_step, num_steps)) as found:
        for step in range(first_step, num_steps):
            try:
                read = next(found)
            except BadRecord as error:
                raise ConfigError(f"{error}; data.on_bad_record='skip' leaves such records out") from error
            except RuntimeError as error:  # Grain's, of a worker that the system killed
                raise WorkersGone(f"a process that reads images is gone: {str(error).splitlines()[0]}") from error
            visit = visits(step)
            if read.problems:
                _LOG.warning("left out of the batch: %s", "; ".join(read.problems.values()))
                visit = _without(visit, rows[list(read.problems)])
            yield _host_batch(mesh, data, visit, read.images)


def _host_batch(mesh: Mesh, data: Dataset, visit: Visit, images: np.ndarray | None = None) -> HostBatch:
    """One batch; position -1 is padding (slot `PADDING`, some real label, id 0). `images`: this process's rows, where
    they do not come from memory."""
    there = np.maximum(visit.positions, 0)
    return HostBatch(
        images=spread(mesh, data.images, there) if images is None else assembled(mesh, len(there), images),
        labels=spread(mesh, data.labels, there),
        ids=spread(mesh, data.ids.astype(np.int32), there),
        slots=spread(mesh, np.where(visit.positions < 0, PADDING, visit.slots).astype(np.int32)),
    )


def _without(visit: Visit, rows: np.ndarray) -> Visit:
    """The visit, with some of its rows as padding."""
    positions = visit.positions.copy()
    positions[rows] = -1
    return visit._replace(positions=positions)


class Waiting:
    """Seconds that the consumer of `ahead` spent waiting for a batch; the first batch counts too."""

    def __init__(self) -> None:
        self.seconds = 0.0


@contextlib.contextmanager
def ahead(made: Generator[HostBatch], waiting: Waiting) -> Iterator[Iterator[HostBatch]]:
    """The same batches, made by a thread that begins at once and stays a little ahead.

    An error in it is raised where its batch is asked for. At the end the thread is gone and `made` is closed.
    """
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
            with contextlib.closing(made):
                for batch in made:
                    if not put((batch, None)):
                        return
            put((None, None))
        except BaseException as error:
            put((None, error))

    def consume() -> Iterator[HostBatch]:
        while True:
            started = time.perf_counter()
            batch, error = ready.get()
            waiting.seconds += time.perf_counter() - started
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch

    thread = threading.Thread(target=produce, name="input", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        thread.join()
