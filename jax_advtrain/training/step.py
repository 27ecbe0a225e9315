"""One training step, the same program on every device (SPMD).

Each device holds some of the virtual shards: their slots of the per-sample state and, of every batch, the samples that
live in them. Margins are looked up and written back without talking to another device; the gradient and the metrics
are summed over all devices once a step (with weight perturbation, twice).

A step may work through its batch in parts, one after the other (`Recipe.accumulate`): their gradients are summed, so
that what a step does is the same and its memory is that of a part. Only BatchNorm tells the difference: its statistics
are those of the parts.
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
from jax_advtrain.defenses import Batch, awp
from jax_advtrain.devices import AXIS
from jax_advtrain.training import gradient as gradients
from jax_advtrain.training import state as states
from jax_advtrain.training.gradient import model_at
from jax_advtrain.training.recipe import Recipe
from jax_advtrain.training.state import TrainState

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


def init_state(
    recipe: Recipe, params: Any, batch_stats: Any, *, num_slots: int, num_classes: int, example: HostBatch
) -> TrainState:
    """The state before the first step. `num_slots` counts the slots of all shards."""
    defense = recipe.defense
    rows = defense.init_rows(num_slots)
    method_state = defense.init_method_state(num_classes)
    batch = jax.eval_shape(partial(_prepare, recipe, jnp.zeros((), jnp.int32)), example)
    few = {name: jax.ShapeDtypeStruct(batch.valid.shape, values.dtype) for name, values in rows.items()}

    def metrics(params, batch, rows):
        model = model_at(recipe, 1, params, batch_stats, batch)
        crafted = defense.craft(model, batch, rows, method_state)
        return defense.loss(model, batch_stats, batch, crafted, rows, method_state).metrics

    names = jax.eval_shape(metrics, params, batch, few)
    is_averaged = recipe.ema_decay is not None or states.averages_epochs(defense)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=recipe.optimizer.init(params),
        sample_state=rows,
        method_state=method_state,
        averaged=jax.tree.map(jnp.copy, params) if is_averaged else None,
        sums=states.zero_sums(("loss", *names)),
    )


def _prepare(recipe: Recipe, epoch: jax.Array, host: HostBatch) -> Batch:
    """Floats in [0, 1], keys by sample id, augmentation."""
    base = jax.random.fold_in(jax.random.key(recipe.seed, impl="threefry2x32"), epoch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(base, host.ids)
    split = jax.vmap(jax.random.split)(keys)
    images, labels = to_unit(host.images, jnp.zeros(()).dtype), host.labels
    if recipe.augment is not None:
        images, labels = recipe.augment(split[:, 0], images, labels)
    return Batch(images, labels, split[:, 1], host.slots != PADDING, epoch, host.unit_start)


def make_step(
    recipe: Recipe, mesh: Mesh, state: TrainState, example: HostBatch
) -> Callable[[TrainState, HostBatch, jax.Array], tuple[TrainState, jax.Array]]:
    """The jitted step: (state, batch, epoch) -> (state, mean loss of the batch). The given state is donated.

    Args:
      recipe: what to train.
      mesh: one axis "data".
      state, example: arrays of the shapes to come; their values do not matter.

    Raises:
      ValueError: shards that the number of devices does not divide, a batch that the shards, or whose rows of a shard
        the parts, do not divide.
    """
    num_devices, num_shards = mesh.size, recipe.num_shards
    if num_shards % num_devices:
        raise ValueError(f"data.num_shards is {num_shards}; {num_devices} devices must divide it")
    if example.slots.shape[0] % num_shards:
        raise ValueError(f"batch size {example.slots.shape[0]} must be a multiple of data.num_shards {num_shards}")
    if example.slots.shape[0] // num_shards % recipe.accumulate:
        raise ValueError(
            f"accumulate is {recipe.accumulate}; it must divide batch_size / num_shards = "
            f"{example.slots.shape[0] // num_shards}"
        )
    groups = num_shards // num_devices

    def step(state: TrainState, host: HostBatch, epoch: jax.Array) -> tuple[TrainState, jax.Array]:
        num_rows = host.slots.shape[0]
        batch = _prepare(recipe, epoch, host)
        # Rows are ordered by shard, so a row's shard is known from its position.
        shard = jnp.arange(num_rows, dtype=jnp.int32) // (num_rows // groups)

        def index(values):
            shard_size = values.shape[0] // groups
            return jnp.where(batch.valid, shard * shard_size + host.slots, PADDING)

        rows = jax.tree.map(lambda values: values.at[index(values)].get(mode="clip"), state.sample_state)
        # Replicated weights would have their gradient summed over devices by the transpose of their broadcast, leaf
        # by leaf; marked as varying, the gradient stays local until the reduction below.
        local = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), state.params)
        part = gradients.Part(batch, rows)
        if recipe.accumulate > 1:
            part = gradients.cut(part, groups, recipe.accumulate)
        part = gradients.craft(recipe, groups, state, local, part)
        gamma = awp.size(recipe.defense, epoch)
        if gamma is not None:
            slope = jax.lax.psum(gradients.sums(recipe, groups, state, local, part)[0].gradient, AXIS)
            local = awp.moved(local, slope, gamma)
        sums, batch_stats, rows = gradients.sums(recipe, groups, state, local, part)
        sums = jax.lax.psum(sums, AXIS)
        weight = jnp.where(sums.weight > 0, sums.weight, 1)
        gradient = jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), sums.gradient)
        logged = sums.logged
        logged["loss"] = logged["loss"] * logged["count"] / weight.astype(jnp.float32)
        updates, opt_state = recipe.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = state.averaged
        if recipe.ema_decay is not None:
            averaged = optax.incremental_update(params, averaged, 1 - recipe.ema_decay)
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            sample_state=jax.tree.map(
                lambda values, new: values.at[index(values)].set(new.astype(values.dtype), mode="drop"),
                state.sample_state,
                rows,
            ),
            method_state=state.method_state,
            averaged=averaged,
            sums={name: state.sums[name] + logged[name] for name in state.sums},
        )
        return state, logged["loss"] / jnp.maximum(logged["count"], 1)

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
