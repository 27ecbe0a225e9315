"""The gradient that attacks climb, and models that answer at random."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_advtrain.attacks import losses, norms
from jax_advtrain.attacks.protocol import LogitsFn, Problem, check_per_sample
from jax_advtrain.attacks.pytrees import register_dataclass
from jax_advtrain.attacks.stepwise import fold_in


@partial(register_dataclass, data_fields=["function"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Stochastic:
    """A model that answers at random; see `stochastic`."""

    function: Callable[[jax.Array, jax.Array], jax.Array]

    def __call__(self, images: jax.Array) -> jax.Array:
        raise ValueError(
            "this attack needs a model that always answers alike; attack a stochastic one with pgd, mim or apgd, "
            "through eot(attack, num_passes)"
        )


def stochastic(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Stochastic:
    """A model whose answer is random: `function(images, keys)`, one key a sample, gives the outputs.

    Only attacks that hand out keys take it: pgd, fgsm, ifgsm, mim and apgd, which draw anew at every pass. `function`
    is a pytree (`jax.tree_util.Partial(apply, params)`) or is wrapped in one.
    """
    if jax.tree_util.all_leaves([function]):
        function = jax.tree_util.Partial(function)
    return Stochastic(function)


def outputs_of(logits_fn: LogitsFn, images: jax.Array, problem: Problem, number: jax.typing.ArrayLike) -> jax.Array:
    """The model's outputs; see `answers`."""
    return answers(logits_fn, images, problem.keys, number)


def answers(
    logits_fn: LogitsFn, images: jax.Array, keys: Key[Array, "batch"], number: jax.typing.ArrayLike
) -> jax.Array:
    """The model's outputs; a stochastic model draws from each sample's key folded with its `number`, (batch,)."""
    if not isinstance(logits_fn, Stochastic):
        return logits_fn(images)
    number = jnp.broadcast_to(jnp.asarray(number, jnp.int32), keys.shape)
    return logits_fn.function(images, jax.vmap(jax.random.fold_in)(fold_in(keys, _DRAWS), number))


# Keeps a stochastic model's draws apart from those of the attack itself, which folds small numbers into the same key.
_DRAWS = 0x5EED


class Ascent(NamedTuple):
    """What is known at an iterate.

    Attributes:
      gradient: of the loss of each sample; entries that were not finite are zero.
      loss: what is ascended, averaged over the passes.
      outputs: of the last pass.
      zero, nonfinite: whether the gradient was zero everywhere, and whether it held NaN or infinity.
    """

    gradient: Float[Array, "batch *image"]
    loss: Float[Array, "batch"]
    outputs: Float[Array, "batch *outputs"]
    zero: Bool[Array, "batch"]
    nonfinite: Bool[Array, "batch"]


def ascent(
    logits_fn: LogitsFn,
    loss: losses.Loss,
    images: Float[Array, "batch *image"],
    problem: Problem,
    *,
    number: jax.typing.ArrayLike = 0,
    eot_passes: int = 1,
) -> Ascent:
    """One forward and backward pass; with `eot_passes` the average over so many draws of a stochastic model.

    Args:
      number: (batch,) or a scalar, tells this step's draws of a stochastic model from those of other steps.

    Raises:
      ValueError: the loss does not give one value a sample.
    """

    def total(images, draw):
        outputs = outputs_of(logits_fn, images, problem, draw)
        values = check_per_sample("the loss", loss.ascended(outputs, problem.labels, problem.targets), len(images))
        return jnp.sum(values), (values, outputs)

    differentiated = jax.grad(total, has_aux=True)
    if eot_passes == 1:
        gradient, (values, outputs) = differentiated(images, number)
    else:
        first = differentiated(images, number * eot_passes)

        def once(draw, sums):
            gradient, (values, outputs) = differentiated(images, number * eot_passes + draw)
            return sums[0] + gradient, (sums[1][0] + values, outputs)

        gradient, (values, outputs) = jax.lax.fori_loop(1, eot_passes, once, first)
        gradient, values = gradient / eot_passes, values / eot_passes
    gradient, nonfinite = norms.finite(gradient)
    zero = (norms.length(gradient, "linf") == 0) & ~nonfinite
    return Ascent(gradient, values, outputs, zero, nonfinite)
