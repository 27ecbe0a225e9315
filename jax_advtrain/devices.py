"""Devices along one axis, and rows spread over them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices of all processes (or those given) along the one axis "data"."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def spread(mesh: Mesh, rows: np.ndarray, positions: np.ndarray | None = None) -> jax.Array:
    """rows, or rows[positions], spread over the devices; a process reads only the rows of its own devices."""
    sharding = NamedSharding(mesh, P(AXIS))
    if positions is None:
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])
    shape = (len(positions), *rows.shape[1:])
    return jax.make_array_from_callback(shape, sharding, partial(_rows_at, rows, positions))


def local_rows(mesh: Mesh, count: int) -> np.ndarray:
    """Which of `count` rows that are spread lie on this process's devices: int64 (n,), rising."""
    places = NamedSharding(mesh, P(AXIS)).addressable_devices_indices_map((count,))
    return np.sort(np.concatenate([np.arange(count)[index] for index in places.values()]))


def assembled(mesh: Mesh, count: int, rows: np.ndarray) -> jax.Array:
    """`count` rows spread over the devices, of which each process gives its `local_rows`."""
    here = local_rows(mesh, count)

    def local(index: tuple[slice, ...] | None) -> np.ndarray:
        wanted = np.arange(count) if index is None else np.arange(count)[index[0]]
        start = np.searchsorted(here, wanted[0])
        return rows[start : start + len(wanted)]

    return jax.make_array_from_callback((count, *rows.shape[1:]), NamedSharding(mesh, P(AXIS)), local)


def _rows_at(rows: np.ndarray, positions: np.ndarray, index: tuple[slice, ...] | None) -> np.ndarray:
    return rows[positions if index is None else positions[index[0]]]


def gathered(rows: jax.Array) -> np.ndarray:
    """The whole array on every process, as numpy."""
    if jax.process_count() == 1:
        return np.asarray(rows)
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
