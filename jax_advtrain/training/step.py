"""One training step, the same program on every device (SPMD).

Each device holds some of the virtual shards: their slots of the per-sample state and, of every batch, the samples that
live in them. Margins are looked up and written back without talking to another device; the gradient and the metrics
are summed over all devices once a step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from jax_advtrain.data import to_unit
from jax_advtrain.defenses import Batch, Defense, Model
from jax_advtrain.devices import AXIS
from jax_advtrain.models import functional
from jax_advtrain.tasks import Task
from jax_advtrain.training import state as states
from jax_advtrain.training.state import TrainState

Augment = Callable[[jax.Array, jax.Array], jax.Array]


PADDING = np.iinfo(np.int32).max


class HostBatch(NamedTuple):
    """A global batch as it comes from the data, its rows ordered by virtual shard and sharded over devices.

    Attributes:
      images: (B, *image) integers, or floats in [0, 1].
      labels: (B,) or dense.
      ids: (B,) sample ids; randomness follows them.
      slots: (B,) slot number inside the row's virtual shard; `PADDING` where the row holds no sample.
      unit_start: None, or noise as in `defenses.Batch`.
    """

    images: Array
    labels: Int[Array, "batch *dense"]
    ids: Int[Array, "batch"]
    slots: Int[Array, "batch"]
    unit_start: Array | None = None


class Recipe(NamedTuple):
    """What shapes the training program; all of it static.

    Attributes:
      graphdef: of the network.
      task, defense, optimizer: what is asked, how a batch becomes a loss, how the weights move.
      num_shards: virtual shards of the data; the number of devices divides it.
      seed: of all randomness in training.
      augment: (key a sample, images) -> images, on device.
      ema_decay: None, or the decay of the averaged weights.
    """

    graphdef: Any
    task: Task
    defense: Defense
    optimizer: optax.GradientTransformation
    num_shards: int
    seed: int
    augment: Augment | None = None
    ema_decay: float | None = None


def init_state(
    recipe: Recipe, params: Any, batch_stats: Any, *, num_slots: int, num_classes: int, example: HostBatch
) -> TrainState:
    """The state before the first step. `num_slots` counts the slots of all shards."""
    defense = recipe.defense
    rows = defense.init_rows(num_slots)
    method_state = defense.init_method_state(num_classes)
    batch = jax.eval_shape(partial(_prepare, recipe, jnp.zeros((), jnp.int32)), example)
    few = {name: jax.ShapeDtypeStruct(batch.valid.shape, values.dtype) for name, values in rows.items()}
    names = jax.eval_shape(
        lambda params, batch, rows: _losses(recipe, 1, params, batch_stats, batch, rows, method_state).metrics,
        params,
        batch,
        few,
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=recipe.optimizer.init(params),
        sample_state=rows,
        method_state=method_state,
        averaged=None if recipe.ema_decay is None else jax.tree.map(jnp.copy, params),
        sums=states.zero_sums(("loss", *names)),
    )


def _prepare(recipe: Recipe, epoch: jax.Array, host: HostBatch) -> Batch:
    """Floats in [0, 1], keys by sample id, augmentation."""
    base = jax.random.fold_in(jax.random.key(recipe.seed, impl="threefry2x32"), epoch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(base, host.ids)
    split = jax.vmap(jax.random.split)(keys)
    images = to_unit(host.images, jnp.zeros(()).dtype)
    if recipe.augment is not None:
        images = recipe.augment(split[:, 0], images)
    return Batch(images, host.labels, split[:, 1], host.slots != PADDING, epoch, host.unit_start)


def _losses(recipe: Recipe, groups: int, params, batch_stats, batch: Batch, rows, method_state, over_devices=None):
    """Craft with fixed weights, then the differentiable half; `over_devices` is the mean of BatchNorm averages."""
    apply = partial(functional.apply, recipe.graphdef)
    fixed = jax.lax.stop_gradient(params)

    def batch_logits(images):
        logits, _ = apply(fixed, batch_stats, images, train=True, mask=batch.valid, groups=groups)
        # Padding is normalised by the statistics of valid images; without this, its loss would steer their attack.
        valid = batch.valid.reshape(-1, *(1,) * (logits.ndim - 1))
        return jnp.where(valid, logits, jax.lax.stop_gradient(logits))

    def forward(stats, images, mask):
        outputs, stats = apply(params, stats, images, train=True, mask=mask, groups=groups)
        # After each forward, for the next one starts from the averages of all shards, wherever they are.
        return outputs, over_devices(jax.lax.stop_gradient(stats)) if over_devices and stats else stats

    model = Model(
        task=recipe.task,
        logits_fn=functional.logits_fn(recipe.graphdef, fixed, batch_stats),
        batch_logits_fn=batch_logits,
        forward=forward,
    )
    defense = recipe.defense
    crafted = jax.lax.stop_gradient(defense.craft(model, batch, rows, method_state))
    return defense.loss(model, batch_stats, batch, crafted, rows, method_state)


def make_step(
    recipe: Recipe, mesh: Mesh, state: TrainState, example: HostBatch
) -> Callable[[TrainState, HostBatch, jax.Array], tuple[TrainState, jax.Array]]:
    """The jitted step: (state, batch, epoch) -> (state, mean loss of the batch). The given state is donated.

    Args:
      recipe: what to train.
      mesh: one axis "data".
      state, example: arrays of the shapes to come; their values do not matter.

    Raises:
      ValueError: shards that the number of devices does not divide, a batch that the shards do not divide.
    """
    num_devices, num_shards = mesh.size, recipe.num_shards
    if num_shards % num_devices:
        raise ValueError(f"data.num_shards is {num_shards}; {num_devices} devices must divide it")
    if example.slots.shape[0] % num_shards:
        raise ValueError(f"batch size {example.slots.shape[0]} must be a multiple of data.num_shards {num_shards}")
    groups = num_shards // num_devices
    over_devices = partial(jax.lax.pmean, axis_name=AXIS)

    def step(state: TrainState, host: HostBatch, epoch: jax.Array) -> tuple[TrainState, jax.Array]:
        num_rows = host.slots.shape[0]
        batch = _prepare(recipe, epoch, host)
        # Rows are ordered by shard, so a row's shard is known from its position.
        shard = jnp.arange(num_rows, dtype=jnp.int32) // (num_rows // groups)

        def index(values):
            shard_size = values.shape[0] // groups
            return jnp.where(batch.valid, shard * shard_size + host.slots, PADDING)

        rows = jax.tree.map(lambda values: values.at[index(values)].get(mode="clip"), state.sample_state)
        count = jax.lax.psum(jnp.sum(batch.valid), AXIS)

        def mean_loss(params):
            found = _losses(recipe, groups, params, state.batch_stats, batch, rows, state.method_state, over_devices)
            losses = jnp.where(batch.valid, found.losses, 0)
            return jnp.sum(losses) / jnp.maximum(count, 1).astype(losses.dtype), (losses, found)

        # Replicated weights would have their gradient summed over devices by the transpose of their broadcast, leaf
        # by leaf; marked as varying, the gradient stays local until the one reduction below.
        local = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), state.params)
        gradient, (losses, found) = jax.grad(mean_loss, has_aux=True)(local)
        sums = {"count": jnp.sum(batch.valid), "loss": jnp.sum(losses)}
        for name, values in found.metrics.items():
            sums[name] = jnp.sum(jnp.where(batch.valid, values, 0))
        sums = {name: value.astype(jnp.float32) for name, value in sums.items()}
        gradient, sums = jax.lax.psum((gradient, sums), AXIS)
        updates, opt_state = recipe.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = state.averaged
        if recipe.ema_decay is not None:
            averaged = optax.incremental_update(params, averaged, 1 - recipe.ema_decay)
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=found.batch_stats,
            opt_state=opt_state,
            sample_state=jax.tree.map(
                lambda values, new: values.at[index(values)].set(new.astype(values.dtype), mode="drop"),
                state.sample_state,
                dict(found.rows),
            ),
            method_state=state.method_state,
            averaged=averaged,
            sums={name: state.sums[name] + sums[name] for name in state.sums},
        )
        return state, sums["loss"] / jnp.maximum(sums["count"], 1)

    state_specs = states.specs(state)
    batch_specs = jax.tree.map(lambda _: P(AXIS), example)
    return jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(state_specs, batch_specs, P()), out_specs=(state_specs, P())),
        donate_argnums=0,
    )


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Means over an epoch's valid samples, from its sums."""
    count = max(float(sums["count"]), 1.0)
    return {name: float(value) / count for name, value in sums.items() if name != "count"}
