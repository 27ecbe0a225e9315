"""The gradient of a batch on one device, whole or in parts, one after the other (`Recipe.accumulate`).

Nothing here divides: sums over the parts are sums over the batch, and sums over the devices are those of the step.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_advtrain.defenses import Batch, DefenseLoss, Model
from jax_advtrain.devices import AXIS
from jax_advtrain.models import functional
from jax_advtrain.tasks import answer
from jax_advtrain.training.recipe import Recipe
from jax_advtrain.training.state import TrainState


def model_at(recipe: Recipe, groups: int, params, batch_stats, batch: Batch, over_devices=None) -> Model:
    """The model at these weights; `over_devices` is the mean of BatchNorm averages."""
    apply = partial(functional.apply, recipe.graphdef)
    fixed = jax.lax.stop_gradient(params)

    def batch_logits(images):
        logits, _ = apply(fixed, batch_stats, images, train=True, mask=batch.valid, groups=groups)
        logits = answer(logits)
        # Padding is normalised by the statistics of valid images; without this, its loss would steer their attack.
        valid = batch.valid.reshape(-1, *(1,) * (logits.ndim - 1))
        return jnp.where(valid, logits, jax.lax.stop_gradient(logits))

    def forward(stats, images, mask):
        outputs, stats = apply(params, stats, images, train=True, mask=mask, groups=groups)
        # After each forward, for the next one starts from the averages of all shards, wherever they are.
        return outputs, over_devices(jax.lax.stop_gradient(stats)) if over_devices and stats else stats

    return Model(
        task=recipe.task,
        logits_fn=functional.logits_fn(recipe.graphdef, fixed, batch_stats),
        batch_logits_fn=batch_logits,
        forward=forward,
    )


class Part(NamedTuple):
    """A part of a batch with its rows and what was crafted; every leaf leads with the batch axis but `batch.epoch`."""

    batch: Batch
    rows: Any
    crafted: Any = None


def cut(part: Part, groups: int, count: int) -> Part:
    """The same with a leading axis of `count` parts, each of which holds rows of every shard."""

    def rows(values):
        shards = values.reshape(groups, count, -1, *values.shape[1:])
        return jnp.swapaxes(shards, 0, 1).reshape(count, -1, *values.shape[1:])

    batch = jax.tree.map(rows, part.batch._replace(epoch=None))
    epoch = jnp.broadcast_to(part.batch.epoch, (count,))
    return Part(batch._replace(epoch=epoch), jax.tree.map(rows, part.rows))


def joined(rows: Any, groups: int) -> Any:
    """Rows of all parts in the order of the whole batch: what `cut` undone gives."""

    def join(values):
        shards = values.reshape(len(values), groups, -1, *values.shape[2:])
        return jnp.swapaxes(shards, 0, 1).reshape(-1, *values.shape[2:])

    return jax.tree.map(join, rows)


def craft(recipe: Recipe, groups: int, state: TrainState, params, part: Part) -> Part:
    """The attack on a batch, or on each of its parts, with weights held fixed."""

    def one(part):
        model = model_at(recipe, groups, params, state.batch_stats, part.batch)
        return jax.lax.stop_gradient(recipe.defense.craft(model, part.batch, part.rows, state.method_state))

    return part._replace(crafted=one(part) if recipe.accumulate == 1 else jax.lax.map(one, part))


class Sums(NamedTuple):
    """Sums over the valid samples of this device: gradient of the weighted loss, the weights, numbers for the log."""

    gradient: Any
    weight: jax.Array
    logged: dict[str, jax.Array]


def sums(recipe: Recipe, groups: int, state: TrainState, params, part: Part) -> tuple[Sums, Any, Any]:
    """Sums over a batch, or over its parts, that is crafted; the moved BatchNorm averages and the new rows.

    Args:
      params: where the gradient is taken; varying over devices, so that it stays local.
    """
    if recipe.accumulate == 1:
        return _sums(recipe, groups, state, params, state.batch_stats, part)

    def add(carried, part):
        found, batch_stats, rows = _sums(recipe, groups, state, params, carried[1], part)
        return (jax.tree.map(jnp.add, carried[0], found), batch_stats), rows

    first = jax.tree.map(lambda values: values[0], part)
    shapes = jax.eval_shape(lambda: _sums(recipe, groups, state, params, state.batch_stats, first)[0])
    zeros = jax.tree.map(lambda of: jax.lax.pcast(jnp.zeros(of.shape, of.dtype), AXIS, to="varying"), shapes)
    (found, batch_stats), rows = jax.lax.scan(add, (zeros, state.batch_stats), part)
    return found, batch_stats, joined(rows, groups)


def _sums(recipe: Recipe, groups: int, state: TrainState, params, batch_stats, part: Part) -> tuple[Sums, Any, Any]:
    batch = part.batch
    mean_over_devices = partial(jax.lax.pmean, axis_name=AXIS)

    def total(params) -> tuple[jax.Array, DefenseLoss]:
        model = model_at(recipe, groups, params, batch_stats, batch, mean_over_devices)
        found = recipe.defense.loss(model, batch_stats, batch, part.crafted, part.rows, state.method_state)
        losses = found.losses if found.weights is None else found.losses * jax.lax.stop_gradient(found.weights)
        return jnp.sum(jnp.where(batch.valid, losses, 0)), found

    (loss, found), gradient = jax.value_and_grad(total, has_aux=True)(params)
    weights = jnp.ones_like(found.losses) if found.weights is None else found.weights
    logged = {"count": jnp.sum(batch.valid), "loss": loss}
    for name, values in found.metrics.items():
        logged[name] = jnp.sum(jnp.where(batch.valid, values, 0))
    logged = {name: value.astype(jnp.float32) for name, value in logged.items()}
    found_sums = Sums(gradient, jnp.sum(jnp.where(batch.valid, weights, 0)).astype(loss.dtype), logged)
    return found_sums, found.batch_stats, dict(found.rows)
