"""Networks as pure functions of their weights: the only place where NNX modules are split and merged."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Tree = dict[str, Any]


class Network(NamedTuple):
    """A network taken apart.

    Attributes:
      graphdef: what the network is, without numbers; static, hashable, equal for equal configs.
      params: nested dict of arrays (float32), what is trained.
      batch_stats: nested dict of running averages; `{}` for networks without any.
    """

    graphdef: nnx.GraphDef
    params: Tree
    batch_stats: Tree


def split(module: nnx.Module) -> Network:
    """Takes an NNX module apart into a `Network` of plain nested dicts.

    Raises:
      ValueError: the module has variables that are neither `nnx.Param` nor `nnx.BatchStat` (dropout keys, caches).
    """
    graphdef, params, batch_stats, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    if rest:
        kinds = sorted({type(variable).__name__ for variable in jax.tree.leaves(rest, is_leaf=_is_variable)})
        raise ValueError(f"a network holds nnx.Param and nnx.BatchStat only, this one also {', '.join(kinds)}")
    return Network(graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))


def apply(
    graphdef: nnx.GraphDef,
    params: Tree,
    batch_stats: Tree,
    images: Float[Array, "batch *image"],
    *,
    train: bool = False,
    mask: Array | None = None,
    groups: int = 1,
) -> tuple[Float[Array, "batch *classes"], Tree]:
    """Runs a network.

    Args:
      graphdef, params, batch_stats: a `Network`.
      images: (B, *image), floats in [0, 1].
      train: normalise by batch statistics and move the running averages. False: batch independent.
      mask: (B,), nonzero = valid: only these samples enter batch statistics. None: all.
      groups: virtual shards in the batch; batch statistics are those of each run of B / groups samples.

    Returns:
      Logits (B, classes), or (B,) for one logit, at least float32; and the new batch_stats (with `train=False`
      the given ones), in the same structure and dtypes.

    Raises:
      ValueError: images that are not floats; a mask or groups that do not fit the batch.
    """
    _check(images, mask, groups)
    if not train:
        return _logits(graphdef, params, batch_stats, images), batch_stats
    # The merge copies JAX arrays only; numpy ones the module would change in the caller's hands.
    module = nnx.merge(graphdef, params, jax.tree.map(jnp.asarray, batch_stats), copy=True)
    logits = module(images, train=True, mask=mask, groups=groups)
    return logits, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def logits_fn(graphdef: nnx.GraphDef, params: Tree, batch_stats: Tree) -> jax.tree_util.Partial:
    """The network in evaluation mode as a function from images (B, *image) to logits (B, classes) or (B,).

    The weights are leaves of the returned pytree: given to a jitted function they are traced arguments, so that a
    second checkpoint of the same network compiles nothing.

    Example:
      >>> network = create({"name": "mlp"}, num_classes=10, image_shape=(8, 8, 1), seed=0)
      >>> logits_fn(*network)(jnp.zeros((4, 8, 8, 1))).shape
      (4, 10)
    """
    return jax.tree_util.Partial(_logits, graphdef, params, batch_stats)


def _logits(graphdef, params, batch_stats, images):
    _check(images, None, 1)
    return nnx.merge(graphdef, params, batch_stats, copy=True)(images)


def _check(images, mask, groups):
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images of dtype {images.dtype}: expected floats in [0, 1] (integers: divide by 255)")
    batch = images.shape[0]
    if mask is not None and mask.shape != (batch,):
        raise ValueError(f"mask of shape {mask.shape} for {batch} images: expected ({batch},)")
    if groups < 1 or batch % groups:
        raise ValueError(f"{batch} images do not divide into groups = {groups}")


def _is_variable(leaf) -> bool:
    return isinstance(leaf, nnx.Variable)
