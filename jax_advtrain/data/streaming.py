"""Training images that do not fit into memory: read and decoded batch by batch in worker processes (Grain).

What a batch holds is a pure function of the step (`slots.Visits`), and a random crop one of (seed, epoch, sample id):
neither the number of workers nor where a run was resumed changes a pixel.
"""

import dataclasses
import gc
import io
import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.data import decode
from jax_advtrain.data.decode import BadRecord
from jax_advtrain.data.random_crop import random_resized_crop
from jax_advtrain.data.slots import Visits
from jax_advtrain.data.source import Encoded
from jax_advtrain.errors import ConfigError

_BATCHES_AHEAD = 2  # of each worker
_BATCHES_HELD = 2 * _BATCHES_AHEAD + 1  # queued, in Grain's interleaving, and the one at work
_SHARED_MEMORY = "/dev/shm"


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImages:
    """The images of a set that is streamed: what stands in `Dataset.images` in place of an array.

    Attributes:
      ids: int64 (N,).
      image_shape: (H, W, C) as they will be.
      encoded: id -> its image as it is stored.
      resize: as in `decode.decode_image`; not used where there is a random crop.
      least_area: None, or the smallest share of the image that a random crop takes.
      skip: whether records that cannot be read are left out, instead of fatal.
      num_workers: processes that decode; 0: none, this process does; None: as many as there are cores.
    """

    ids: np.ndarray
    image_shape: tuple[int, ...]
    encoded: Callable[[int], Encoded]
    resize: int | None
    least_area: float | None
    skip: bool
    num_workers: int | None

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.ids), *self.image_shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int, epoch: int, seed: int, out: np.ndarray) -> None:
        """Writes one image, as that epoch of a run of that seed sees it, into uint8 (H, W, C); raises BadRecord."""
        sample = int(self.ids[position])
        where, content = self.encoded(sample)
        height, width, channels = self.image_shape
        try:
            if self.least_area is not None:
                random_resized_crop(content, out, self.least_area, seed, epoch, sample)
            else:
                out[:] = decode.decode_image(io.BytesIO(content), channels, (height, width), self.resize)
        except Exception as error:  # Pillow raises a dozen kinds for damaged images
            raise decode.undecodable(where, error) from error


class ReadBatch(NamedTuple):
    """Rows of a batch that were read.

    Attributes:
      images: uint8 (n, H, W, C); zeros where there is no sample, or none that can be read.
      problems: {row: why its record could not be read}.
    """

    images: np.ndarray
    problems: dict[int, str]


def read_batches(
    images: EncodedImages, visits: Visits, rows: np.ndarray, first_step: int, num_steps: int
) -> Generator[ReadBatch]:
    """The batches of the steps from `first_step` to `num_steps`.

    The workers start at once; they end when the iterator is closed, with the program, and also where it is killed.

    Args:
      images: the set.
      visits: which samples a step visits.
      rows: int (n,) the rows of a batch that are wanted here (those of this process's devices).

    Raises:
      BadRecord: a record that cannot be read, where these are fatal.
      ConfigError: too little shared memory for so many workers.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain's workers read its flags; a caller that is no command line has none
        flags.FLAGS.mark_as_parsed()
    workers = _cores() if images.num_workers is None else images.num_workers
    _check_shared_memory(workers, len(rows) * math.prod(images.image_shape))
    source = _Batches(images, visits, rows, num_steps)
    steps = grain.MapDataset.source(source).slice(slice(first_step, num_steps))
    # A worker that reads ahead by threads of its own would only take turns with itself.
    batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_BATCHES_AHEAD)
        batches = batches.mp_prefetch(options, worker_init_fn=_in_worker)
    iterator: Any = iter(batches)
    if hasattr(iterator, "start_prefetch"):
        iterator.start_prefetch()
    return _closing(iterator)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Raises ConfigError where /dev/shm is smaller than what the workers hold in it: a write beyond it kills them."""
    if not workers or not os.path.isdir(_SHARED_MEMORY):
        return
    wanted, free = workers * _BATCHES_HELD * batch_bytes, shutil.disk_usage(_SHARED_MEMORY).free
    if wanted > free:
        raise ConfigError(
            f"{workers} workers hold up to {wanted / 1e9:.3g} GB of batches in {_SHARED_MEMORY}, and {free / 1e9:.3g} "
            "GB are free there: take fewer (data.num_workers), or give a container more (docker's --shm-size)"
        )


def _closing(iterator: Any) -> Generator[ReadBatch]:
    try:
        for found in iterator:
            # Copied, so that shared memory is given back at once, and not by whoever holds the batch when all ends.
            read = ReadBatch(np.array(found["images"]), dict(found["problems"]))
            del found
            yield read
    finally:
        iterator.close()
        del iterator
        gc.collect()  # Grain's iterators hold each worker's last batch, in shared memory, and are in cycles


class _Batches:
    """Random access to batches by step, as Grain wants it; goes to the workers whole."""

    def __init__(self, images: EncodedImages, visits: Visits, rows: np.ndarray, num_steps: int):
        self._images, self._visits, self._rows, self._num_steps = images, visits, rows, num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, index: int) -> dict[str, Any]:
        visit = self._visits(int(index))
        images = _zeros((len(self._rows), *self._images.image_shape))
        pixels = images.view(np.ndarray)
        problems = []
        for at, position in enumerate(visit.positions[self._rows]):
            if position < 0:
                continue
            try:
                self._images.read(int(position), visit.epoch, self._visits.seed, pixels[at])
            except BadRecord as error:
                if not self._images.skip:
                    _forget(images)
                    raise
                pixels[at] = 0
                problems.append((at, str(error)))
        return {"images": images, "problems": tuple(problems)}


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """In a worker in memory that the program sees too, so that Grain need not copy it there."""
    import grain

    return np.zeros(shape, np.uint8) if _parent() is None else grain.multiprocessing.SharedMemoryArray(shape, np.uint8)


def _forget(images: Any) -> None:
    """Gives back what `_zeros` made, where the program will never hear of it."""
    if _parent() is not None:
        images.shm.unlink()


def _parent() -> Any:
    """The process that this one works for; None where this is the program itself."""
    return multiprocessing.parent_process()


def _in_worker(number: int, count: int) -> None:
    """One core a worker, no accelerator, and an end with the program, also where that is killed."""
    import cv2
    import jax

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the program decides when all ends
    jax.config.update("jax_platforms", "cpu")  # nothing here computes with it; an accelerator belongs to the program
    cv2.setNumThreads(0)
    if (parent := _parent()) is not None:

        def end_with_it() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=end_with_it, daemon=True).start()
