"""Attacks on a data set as the class-wise analysis needs them: predictions, logit margins, and what the model believes.

Goes through the data in parts, so that the attacked images of one part only are held; a sample's randomness follows its
id, so the parts change nothing.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_advtrain import attacks
from jax_advtrain.attacks import losses
from jax_advtrain.attacks.gradients import answers
from jax_advtrain.data import Dataset
from jax_advtrain.devices import AXIS, gathered, spread
from jax_advtrain.evaluation.attack_dataset import LogitsFn, attack_dataset
from jax_advtrain.evaluation.ledger import VERDICT_DRAW, sample_keys

_BYTES_HELD = 64 * 2**20  # of attacked images


class Answers(NamedTuple):
    """What the model says of the attacked images: prediction int (N,), score (N,), the logit margin, probabilities
    float32 (N, outputs), or None where they were not asked for."""

    prediction: np.ndarray
    score: np.ndarray
    probabilities: np.ndarray | None


@partial(jax.jit, static_argnames=("mesh",))
def _probabilities(mesh, logits_fn, images, ids, seed):
    def local(logits_fn, images, ids, seed):
        keys = sample_keys(seed, ids, ())
        return jax.nn.softmax(losses.class_logits(answers(logits_fn, images, keys, VERDICT_DRAW)), axis=-1)

    rows, everywhere = P(AXIS), P()
    specs = (everywhere, rows, rows, everywhere)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows)(logits_fn, images, ids, seed)


def attacked_answers(
    attack: attacks.Attack | None,
    logits_fn: LogitsFn,
    data: Dataset,
    mesh: Mesh,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int = 256,
    believe: bool = True,
    state_path: str | os.PathLike | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Attacks every sample (None: clean) and asks the model; arguments as in `attack_dataset`.

    Args:
      logits_fn: a pytree (`as_pytree`).
      believe: ask for probabilities too.
      state_path: where interrupted work goes on; one file a part, "<path>-<part>.npz".
    """
    size = max(batch_size, _BYTES_HELD // (4 * math.prod(data.image_shape)))
    found, believed = [], []
    for number, first in enumerate(range(0, len(data), size)):
        part = _rows(data, slice(first, first + size))
        one = attack_dataset(
            attack,
            logits_fn,
            part,
            mesh,
            norm=norm,
            epsilon=epsilon,
            seed=seed,
            batch_size=batch_size,
            keep_images=believe,
            progress=lambda done, first=first: progress(first + done),
            state_file=None if state_path is None else Path(f"{state_path}-{number}.npz"),
        )
        found.append((one.prediction, one.score))
        if believe:
            assert one.images is not None
            believed.append(_believed(logits_fn, part, one.images, mesh, seed, batch_size))
    prediction, score = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return Answers(prediction, score, np.concatenate(believed) if believe else None)


def _believed(logits_fn, data: Dataset, images: np.ndarray, mesh: Mesh, seed: int, batch_size: int) -> np.ndarray:
    batch_size = math.ceil(min(batch_size, len(data)) / mesh.size) * mesh.size
    found = []
    for first in range(0, len(data), batch_size):
        positions = np.resize(np.arange(first, min(first + batch_size, len(data))), batch_size)
        batch = spread(mesh, images, positions), spread(mesh, data.ids.astype(np.int32), positions)
        here = gathered(_probabilities(mesh, logits_fn, *batch, jnp.int32(seed)))
        found.append(here[: len(data) - first])
    return np.concatenate(found)


def _rows(data: Dataset, rows: slice) -> Dataset:
    return dataclasses.replace(data, images=data.images[rows], labels=data.labels[rows], ids=data.ids[rows])
