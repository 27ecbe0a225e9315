"""The state of a training run: everything a checkpoint holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jax_advtrain.defenses import Defense, HeldOut
from jax_advtrain.devices import AXIS


class TrainState(NamedTuple):
    """What training carries from step to step; donated to each step.

    Attributes:
      step: updates done.
      params, batch_stats: of the network; replicated.
      opt_state: of the optax optimizer; replicated.
      sample_state: per-sample rows of the defense, (slots,) each, sharded over devices.
      method_state: of the defense; replicated.
      averaged: moving average of params, over steps or over epochs, or None; replicated.
      sums: sums of the running epoch's metrics over valid samples, with their "count"; replicated.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    sample_state: dict[str, jax.Array]
    method_state: Any
    averaged: Any
    sums: dict[str, Float[Array, ""]]


def specs(state: TrainState) -> TrainState:
    """Which axis of each array is sharded: the rows of `sample_state` over devices, all else nowhere."""
    everywhere = jax.tree.map(lambda _: P(), state)
    return everywhere._replace(sample_state=jax.tree.map(lambda _: P(AXIS), state.sample_state))


def shardings(mesh: Mesh, state: TrainState) -> TrainState:
    """The shardings of a state on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(state), is_leaf=lambda leaf: isinstance(leaf, P))


def evaluated_params(state: TrainState) -> Any:
    """The weights that evaluation uses: the averaged ones where there are any."""
    return state.params if state.averaged is None else state.averaged


def zero_sums(names: tuple[str, ...]) -> dict[str, Float[Array, ""]]:
    """The sums at the start of an epoch."""
    return {name: jnp.zeros((), jnp.float32) for name in ("count", *names)}


def averages_epochs(defense: Defense) -> bool:
    """Whether the method itself averages the weights, at the end of an epoch; see `Defense`."""
    return getattr(defense, "averages_epochs", False)


@jax.jit
def _moved(averaged: Any, params: Any, share: jax.Array) -> Any:
    return optax.incremental_update(params, averaged, share)


def epoch_ended(defense: Defense, mesh: Mesh, state: TrainState, held_out: HeldOut) -> TrainState:
    """The state with what the method makes of held-out accuracies, where it has an `epoch_end`; see `Defense`.

    Raises:
      ValueError: the hook gave another structure or other shapes. (Its numbers may be of another dtype.)
    """
    hook = getattr(defense, "epoch_end", None)
    if hook is None:
        return state
    before = jax.tree.map(np.array, state.method_state)
    if averages_epochs(defense):
        share = np.float32(getattr(defense, "epoch_share")(before, held_out))  # noqa: B009
        state = state._replace(averaged=_moved(state.averaged, state.params, share))
    after = hook(before, held_out)
    shapes = [jax.tree.map(np.shape, one) for one in (state.method_state, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"epoch_end gave a method_state of shapes {shapes[1]}; those before are {shapes[0]}")
    places = shardings(mesh, state).method_state
    return state._replace(
        method_state=jax.tree.map(
            lambda old, new, place: jax.device_put(np.asarray(new, old.dtype), place), state.method_state, after, places
        )
    )
