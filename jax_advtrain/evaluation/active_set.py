"""The active set: a sample that is finished leaves its slot of the batch, and the next one takes its place.

Shapes are static: there are so many slots on each device, and a compiled `segment` steps all of them until it pays to
stop. Then the host takes finished samples out and puts waiting ones in, a chunk of static size at a time. Under
`shard_map` each device runs its own loop over its own slots, with no collective inside. Once nothing waits, the slots
are repacked into fewer ones, where that spares more time than its compilation takes (counting what it would have spared
earlier, so that about as much is wasted at most as is compiled). All is measured as it runs, and decides on time only:
no answer hangs on who shares the batch.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.gradients import Stochastic
from jax_advtrain.attacks.protocol import LogitsFn
from jax_advtrain.attacks.stepwise import Stepwise
from jax_advtrain.data import Dataset, to_unit
from jax_advtrain.devices import AXIS, gathered, spread
from jax_advtrain.evaluation.ledger import Work, facts, sample_keys
from jax_advtrain.tasks import CLASSIFICATION, Task

# The part of a device's slots that are changed at once. Also how long finished samples may idle: slots times steps.
CHUNK_SHARE = 1 / 4
# Fewer slots are taken as if a compilation took this part of the time that it takes: 0 = always.
COMPILATION_WEIGHT = 1.0
# Steps between two looks from the host where there are several devices, which else would wait for the slowest.
STEPS_TOGETHER = 32
_NEVER = np.iinfo(np.int32).max

Harvest = Callable[[np.ndarray, dict[str, np.ndarray], Work], None]


def run(
    mesh: Mesh,
    attack: Stepwise,
    logits_fn: LogitsFn,
    data: Dataset,
    queue: np.ndarray,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    path: Sequence[int],
    batch_size: int,
    keep_images: bool,
    harvest: Harvest,
    times: "Times",
    task: Task = CLASSIFICATION,
) -> None:
    """Attacks the samples at the positions in `queue`, each until it is finished.

    Args:
      attack: rests once a sample is fooled: made by `until_success`, or its inner attack.
      path: numbers that the samples' keys are folded with.
      batch_size: a multiple of the devices.
      harvest: called with positions, their facts and the work since the last call, as samples finish.
      times: what earlier calls learnt about their programs, at first empty; this one adds to it.
      task: says when a sample is right.
    """
    if not len(queue):
        return
    program = (mesh, jax.tree.structure((attack, logits_fn)), data.image_shape)
    if program not in times:
        times[program] = _Times(_costs(attack, logits_fn, data))
    slots = _Slots(
        mesh, task, attack, logits_fn, data, norm, epsilon, seed, tuple(path), keep_images, harvest, times[program]
    )
    slots.work_off(np.asarray(queue), batch_size // mesh.size)


@dataclasses.dataclass
class _Times:
    """What is known of one attack on one model: passes of `init` and of a step, seconds of a slot's step and of the
    longest compilation, seconds spent on empty slots since the last one, and for how many slots a device there is a
    program already."""

    costs: tuple[float, float]
    step: float | None = None
    compilation: float = 0.0
    regret: float = 0.0
    compiled: set[int] = dataclasses.field(default_factory=set)


# By program: the mesh, the structure of attack and model, the shape of an image.
Times = dict[Any, _Times]


class _Slots:
    """The slots of all devices: what the host knows of them, and the state that lies on the devices.

    `positions` and `finished` have shape (devices, slots of one); position -1 = nobody.
    """

    def __init__(self, mesh, task, attack, logits_fn, data, norm, epsilon, seed, path, keep_images, harvest, times):
        self.mesh, self.task, self.attack, self.logits_fn, self.data = mesh, task, attack, logits_fn, data
        self.norm, self.seed, self.path, self.keep_images, self.harvest = norm, seed, path, keep_images, harvest
        self.epsilon = jnp.asarray(epsilon, jnp.zeros(()).dtype)
        self.times, (self.init_cost, self.step_cost) = times, times.costs
        self.work = Work()
        self.state: Any = None

    def work_off(self, queue: np.ndarray, full: int) -> None:
        """Everything; `full` = slots of a device."""
        self.full, self.queue, self.chunk = full, queue, math.ceil(full * CHUNK_SHARE)
        size = self._fitting(full, len(queue), self.attack.num_steps) or full
        self.positions = np.full((self.mesh.size, size), -1)
        self.finished = np.zeros((self.mesh.size, size), bool)
        self.steps = np.zeros((self.mesh.size, size), np.int32)
        self.idle = np.zeros(self.mesh.size, np.int32)
        while len(self.queue) and (self.positions < 0).any():
            self._enter()
        while (self.positions >= 0).any():
            if len(self.queue):
                self._step(enough=self.chunk, patience=self.chunk)
                if self._most_done() >= self.chunk or (self.idle >= self.chunk).any():
                    self._exchange()
            else:
                self._wind_up()

    def _exchange(self) -> None:
        """Takes finished samples out, a chunk of each device, and fills up; again while a whole chunk is finished."""
        once = True
        while once or self._most_done() >= self.chunk:
            once = False
            self._leave()
            if len(self.queue):
                self._enter()

    def _wind_up(self) -> None:
        """Nothing waits any more: steps until all are finished, or until fewer slots are worth their compilation."""
        alive = (self.positions >= 0) & ~self.finished
        size = self.positions.shape[1]
        remaining = self.attack.num_steps - self.steps[alive].min() if alive.any() else 0
        fewer = self._fitting(size, int(alive.sum()), remaining)
        if not alive.any() or fewer:
            while self._most_done():
                self._leave()
            if fewer:
                self._repack(fewer)
            return
        worth = [fewer for fewer in sizes(self.full) if fewer < size and self._pays(size, fewer, remaining)]
        # Of several devices one must not stop because few of its samples are left: others may have more.
        taken = self._step(floor=max(worth, default=0) if self.mesh.size == 1 else 0)
        fits = min(fewer for fewer in sizes(self.full) if alive.sum() <= fewer * self.mesh.size)
        self.times.regret += (size - fits) * taken * (self.times.step or 0.0)

    def _fitting(self, size: int, count: int, remaining: int) -> int | None:
        """The fewest slots a device that hold so many samples, of those that it pays to go over to."""
        enough = (fewer for fewer in sizes(self.full) if count <= fewer * self.mesh.size and fewer < size)
        return next((fewer for fewer in enough if self._pays(size, fewer, remaining)), None)

    def _pays(self, size: int, fewer: int, remaining: int) -> bool:
        if fewer in self.times.compiled:
            return True
        if self.times.step is None:  # nothing was compiled yet
            return not self.times.compiled
        if jax.process_count() > 1:  # each measures its own times, and they must all run the same programs
            return False
        spared = (size - fewer) * remaining * self.times.step
        return spared + self.times.regret > COMPILATION_WEIGHT * self.times.compilation

    def _most_done(self) -> int:
        return int(((self.positions >= 0) & self.finished).sum(axis=1).max())

    def _step(self, *, enough: int = _NEVER, patience: int = _NEVER, floor: int = 0) -> int:
        size = self.positions.shape[1]
        is_new = size not in self.times.compiled
        limit = _NEVER if self.mesh.size == 1 else STEPS_TOGETHER
        if is_new or self.times.step is None:  # few steps, so that a compilation and a step are timed apart
            limit = 1 if is_new else 4
        limits = np.array([enough, patience, floor, limit], np.int32)
        started = time.perf_counter()
        occupied, idle = self._spread(self.positions >= 0), self._spread(self.idle)
        self.state, *told = _segment(self.mesh, self.attack, self.logits_fn, self.state, occupied, idle, limits)
        finished, steps, taken, needed, self.idle = (np.array(gathered(values)) for values in told)
        self._time(size, int(taken.max()), time.perf_counter() - started)
        self.finished, self.steps = finished.reshape(self.positions.shape), steps.reshape(self.positions.shape)
        # A device that stopped earlier waited for the others.
        self.work = self.work.plus(
            self.step_cost * int(taken.max()) * self.positions.size, self.step_cost * int(needed.sum())
        )
        return int(taken.max())

    def _time(self, size: int, taken: int, seconds: float) -> None:
        times = self.times
        if size not in times.compiled:
            times.compiled.add(size)
            times.regret = 0.0
            times.compilation = max(times.compilation, seconds)
        elif taken:
            times.step = min(seconds / (taken * size), times.step or np.inf)

    def _chosen(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first slots of a mask, a chunk a device: (devices, chunk), and which of them are meant."""
        first = np.argsort(~mask, axis=1, kind="stable")[:, : self.chunk]
        if first.shape[1] < self.chunk:
            first = np.pad(first, ((0, 0), (0, self.chunk - first.shape[1])), mode="edge")
        order = np.arange(self.chunk)
        return first, order[None] < mask.sum(axis=1)[:, None]

    def _enter(self) -> None:
        slots, meant = self._chosen(self.positions < 0)
        # Samples go round the devices, so that each gets its share of the last ones.
        places = np.argwhere(meant.T)[: len(self.queue)][:, ::-1]
        entering, self.queue = self.queue[: len(places)], self.queue[len(places) :]
        meant = np.zeros_like(meant)
        meant[tuple(places.T)] = True
        rows = np.full(meant.shape, entering[0])
        rows[tuple(places.T)] = entering
        fresh = _fresh(
            self.mesh,
            self.attack,
            self.logits_fn,
            spread(self.mesh, self.data.images, rows.ravel()),
            spread(self.mesh, self.data.labels, rows.ravel()),
            spread(self.mesh, self.data.ids.astype(np.int32), rows.ravel()),
            self.epsilon,
            self.seed,
            self.path,
        )
        size = self.positions.shape[1]
        if self.state is None:  # slots that are never taken hold copies of a sample, so that no step meets nonsense
            self.state = _rows(self.mesh, fresh, self._spread(np.zeros((self.mesh.size, size), np.int32)))
        self.state = _put(self.mesh, self.state, fresh, self._spread(np.where(meant, slots, size)))
        devices = np.broadcast_to(np.arange(self.mesh.size)[:, None], slots.shape)
        here = devices[meant], slots[meant]
        self.positions[here], self.finished[here], self.steps[here] = rows[meant], False, 0
        self.work = self.work.plus(self.init_cost * meant.size, self.init_cost * len(entering))

    def _leave(self) -> None:
        slots, meant = self._chosen((self.positions >= 0) & self.finished)
        leaving = _rows(self.mesh, self.state, self._spread(slots))
        found = _told(self.mesh, self.task, self.norm, self.keep_images, self.attack, self.logits_fn, leaving)
        devices = np.broadcast_to(np.arange(self.mesh.size)[:, None], slots.shape)
        here = devices[meant], slots[meant]
        told = {name: gathered(values)[meant.ravel()] for name, values in found.items()}
        self.harvest(self.positions[here], told, self.work.plus(meant.size, int(meant.sum())))
        self.positions[here] = -1
        self.idle, self.work = np.zeros_like(self.idle), Work()

    def _repack(self, size: int) -> None:
        """The samples that are left, in so many slots a device."""
        kept = np.flatnonzero(self.positions.ravel() >= 0)
        # Round the devices again; empty slots hold copies.
        index = np.resize(kept, size * self.mesh.size).reshape(size, self.mesh.size).T
        used = (np.arange(size * self.mesh.size) < len(kept)).reshape(size, self.mesh.size).T
        self.state = _gather(self.mesh, self.state, np.ascontiguousarray(index.ravel(), np.int32))
        self.steps = self.steps.ravel()[index]
        self.positions = np.where(used, self.positions.ravel()[index], -1)
        self.finished = np.zeros(index.shape, bool)
        self.idle = np.zeros_like(self.idle)

    def _spread(self, values: np.ndarray) -> jax.Array:
        values = values.astype(np.int32) if values.dtype == np.int64 else values
        return spread(self.mesh, np.ascontiguousarray(values.reshape(-1)))


def sizes(full: int) -> list[int]:
    """How many slots a device may have: four to an octave, so that a size that just fits is at most 5/4 too large."""
    found, top = set(), float(full)
    while top >= 1:
        found |= {math.ceil(top * share) for share in (1, 7 / 8, 3 / 4, 5 / 8)}
        top /= 2
    return sorted(found)


def _costs(attack: Stepwise, logits_fn: LogitsFn, data: Dataset) -> tuple[float, float]:
    """Passes a sample of `init` and of one step: all but the result's one, shared out by how often the model is called
    in them."""
    calls = {"init": 0, "step": 0}
    where = "init"

    def call(*arguments):
        calls[where] += 1
        return function(*arguments)

    function = logits_fn.function if isinstance(logits_fn, Stochastic) else logits_fn
    counted: Any = Stochastic(jax.tree_util.Partial(call)) if isinstance(logits_fn, Stochastic) else call

    def begin(images, labels):
        return attack.init(jax.random.key(0), counted, images, labels)

    image = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.zeros(()).dtype)
    state = jax.eval_shape(begin, image, jax.ShapeDtypeStruct((1, *data.labels.shape[1:]), jnp.int32))
    where = "step"
    jax.eval_shape(lambda state: attack.step(counted, state), state)
    share = calls["init"] / max(calls["step"], 1)
    step_cost = (attack.passes - 1) / (attack.num_steps + share)
    return share * step_cost, step_cost


_ROWS, _EVERYWHERE = P(AXIS), P()


@partial(jax.jit, static_argnames=("mesh",))
def _segment(mesh, attack, logits_fn, state, occupied, idle, limits):
    """Steps every device's slots until enough are finished, have idled long enough, few enough go on, or the limit."""

    def local(attack, logits_fn, state, occupied, idle, limits):
        enough, patience, floor, limit = limits

        def moving(state):
            return occupied & ~attack.finished(state)

        def goes_on(carry):
            state, taken, _, idle = carry
            alive = jnp.sum(moving(state))
            finished = jnp.sum(occupied) - alive
            return (alive > floor) & (finished < enough) & (idle[0] < patience) & (taken[0] < limit)

        def step(carry):
            state, taken, needed, idle = carry
            moves = moving(state)

            def kept(old, new):  # a finished sample waits as it is
                return old if new is old else norms.select(moves, new, old)

            alive = jnp.sum(moves, dtype=jnp.int32)
            waiting = jnp.sum(occupied, dtype=jnp.int32) - alive
            return jax.tree.map(kept, state, attack.step(logits_fn, state)), taken + 1, needed + alive, idle + waiting

        none = jnp.zeros_like(idle)
        state, taken, needed, idle = jax.lax.while_loop(goes_on, step, (state, none, none, idle))
        return state, attack.finished(state), state.steps, taken, needed, idle

    specs = (_EVERYWHERE, _EVERYWHERE, _ROWS, _ROWS, _ROWS, _EVERYWHERE)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=_ROWS)(
        attack, logits_fn, state, occupied, idle, limits
    )


@partial(jax.jit, static_argnames=("mesh",))
def _fresh(mesh, attack, logits_fn, images, labels, ids, epsilon, seed, path):
    """The states of samples that enter."""

    def local(attack, logits_fn, images, labels, ids, epsilon, seed, path):
        images = to_unit(images, jnp.zeros(()).dtype)
        return attack.init(sample_keys(seed, ids, path), logits_fn, images, labels, epsilon=epsilon)

    specs = (_EVERYWHERE, _EVERYWHERE, _ROWS, _ROWS, _ROWS, _EVERYWHERE, _EVERYWHERE, _EVERYWHERE)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=_ROWS)(
        attack, logits_fn, images, labels, ids, epsilon, seed, path
    )


@partial(jax.jit, static_argnames=("mesh", "task", "norm", "keep_images"))
def _told(mesh, task, norm, keep_images, attack, logits_fn, state):
    """The facts of samples that leave."""

    def local(attack, logits_fn, state):
        found = attack.result(logits_fn, state)
        images, labels, _, _, keys = state.problem
        return facts(task, norm, keep_images, logits_fn, images, labels, keys, found.images, found)

    return jax.shard_map(local, mesh=mesh, in_specs=(_EVERYWHERE, _EVERYWHERE, _ROWS), out_specs=_ROWS)(
        attack, logits_fn, state
    )


@partial(jax.jit, static_argnames=("mesh",))
def _rows(mesh, state, slots):
    """Some of each device's slots."""

    def local(state, slots):
        return jax.tree.map(lambda values: jnp.take(values, slots, axis=0, mode="clip"), state)

    return jax.shard_map(local, mesh=mesh, in_specs=_ROWS, out_specs=_ROWS)(state, slots)


@partial(jax.jit, static_argnames=("mesh",))
def _put(mesh, state, fresh, slots):
    """New samples in some of each device's slots; a slot beyond the last is none."""

    def local(state, fresh, slots):
        return jax.tree.map(lambda old, new: old.at[slots].set(new, mode="drop"), state, fresh)

    return jax.shard_map(local, mesh=mesh, in_specs=_ROWS, out_specs=_ROWS)(state, fresh, slots)


def _gather(mesh, state, index):
    """Slots from anywhere, spread over the devices anew."""
    return _gathering(NamedSharding(mesh, _ROWS))(state, index)


@cache
def _gathering(sharding):
    return jax.jit(
        lambda state, index: jax.tree.map(lambda values: jnp.take(values, index, axis=0), state),
        out_shardings=sharding,
    )
