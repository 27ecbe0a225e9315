"""One attack on every sample of a data set: static batch shapes, no sample dropped, one entry a sample."""

import dataclasses
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_advtrain import attacks
from jax_advtrain.attacks import norms
from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.data import Dataset, to_unit
from jax_advtrain.devices import AXIS, gathered, make_mesh, spread

LogitsFn = Callable[[jax.Array], jax.Array]


class Attacked(NamedTuple):
    """What became of each sample; every array has shape (N,), but for `images`.

    Attributes:
      is_right, score, zero_gradients, nonfinite_gradients: as in `attacks.AttackResult`.
      prediction: class on the attacked image.
      confidence: softmax probability of that class.
      distance: norm of the perturbation.
      images: the attacked images, or None where they were not asked for.
    """

    is_right: np.ndarray
    score: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    distance: np.ndarray
    zero_gradients: np.ndarray
    nonfinite_gradients: np.ndarray
    images: np.ndarray | None


@partial(jax.jit, static_argnames=("mesh", "norm", "keep_images"))
def _attack_batch(mesh, norm, keep_images, attack, logits_fn, images, labels, ids, epsilon, seed):
    def local(attack, logits_fn, images, labels, ids, epsilon, seed):
        images = to_unit(images, jnp.zeros(()).dtype)
        if attack is None:
            return _facts(norm, keep_images, logits_fn, images, labels, images, None)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed, impl="threefry2x32"), ids)
        found = attack.run(keys, logits_fn, images, labels, epsilon=epsilon)
        return _facts(norm, keep_images, logits_fn, images, labels, found.images, found)

    rows, everywhere = P(AXIS), P()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, everywhere, rows, rows, rows, everywhere, everywhere),
        out_specs=rows,
    )(attack, logits_fn, images, labels, ids, epsilon, seed)


def _facts(norm, keep_images, logits_fn, images, labels, attacked, found):
    outputs = logits_fn(attacked)
    prediction = attacks.predict(outputs)
    logits = outputs if outputs.ndim > 1 else jnp.stack([jnp.zeros_like(outputs), outputs], axis=-1)
    none = jnp.zeros_like(prediction)
    return {
        "is_right": attacks.is_right(outputs, labels),
        "score": attacks.classification_margin(outputs, labels),
        "prediction": prediction,
        "confidence": jnp.max(jax.nn.softmax(logits), axis=-1),
        "distance": norms.length(attacked - images, norm),
        "zero_gradients": none if found is None else found.zero_gradients,
        "nonfinite_gradients": none if found is None else found.nonfinite_gradients,
        **({"images": attacked} if keep_images else {}),
    }


def name_seed(seed: int, name: str) -> int:
    """A seed for one named evaluation; the same in every process and run."""
    return (seed * 2654435761 + zlib.crc32(name.encode())) % 2**31


def first(data: Dataset, count: int | None) -> Dataset:
    """The first so many samples of a set; all where None, or more than there are."""
    if count is None or count >= len(data):
        return data
    return dataclasses.replace(data, images=data.images[:count], labels=data.labels[:count], ids=data.ids[:count])


def as_pytree(logits_fn: LogitsFn) -> LogitsFn:
    """The model as something that `jax.jit` takes as an argument.

    Pytrees (`jax.tree_util.Partial` with the weights as arguments, NNX and Equinox modules) stay as they are: their
    weights are traced, so other weights compile nothing. Any other callable is wrapped, and is part of the program: it
    compiles once for each function, with the arrays that it closes over as constants.
    """
    if not jax.tree_util.all_leaves([logits_fn]):
        return logits_fn
    try:
        hash(logits_fn)
    except TypeError:
        return jax.tree_util.Partial(lambda images: logits_fn(images))
    return jax.tree_util.Partial(logits_fn)


def num_outputs(logits_fn: LogitsFn, data: Dataset) -> int:
    """How many logits the model gives for such samples, nothing computed; 1 where it gives shape (B,).

    Raises:
      ValueError: there are no samples; logits of another shape than (B, classes) or (B,); fewer than the classes.
    """
    if not len(data):
        raise ValueError(f"data set {data.name!r}, split {data.split!r} has no samples to attack")
    images = jax.ShapeDtypeStruct((2, *data.image_shape), jnp.zeros(()).dtype)
    shape = getattr(jax.eval_shape(as_pytree(logits_fn), images), "shape", None)
    if shape == (2,):
        if data.num_classes != 2:
            raise ValueError(f"the model gives one logit a sample; {data.name!r} has {data.num_classes} classes, not 2")
        return 1
    if shape is None or len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"the model gives {shape} for 2 samples; give logits (2, classes), or (2,) for one logit")
    if shape[1] < max(2, data.num_classes):
        raise ValueError(f"the model gives {shape[1]} logits; {data.name!r} has {data.num_classes} classes")
    return shape[1]


def attack_dataset(
    attack: attacks.Attack | None,
    logits_fn: LogitsFn,
    data: Dataset,
    mesh: Mesh | None = None,
    *,
    norm: str = "linf",
    epsilon: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
    keep_images: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Attacked:
    """Attacks every sample; a sample's randomness follows (seed, sample id), so batch size and devices don't matter.

    Args:
      attack: None = clean.
      logits_fn: any function from images in [0, 1], (B, *image), to logits (B, classes) or (B,), that `jax.jit` can
        trace; see `as_pytree` for what another checkpoint costs.
      data: what to attack; its values were checked when it was made.
      mesh: devices along one axis; None = all there are.
      norm: in which distances are told.
      epsilon: radius given to the attack; traced, so that another radius compiles nothing.
      batch_size: rounded up to a multiple of the devices; the last batch is padded with repeated samples.
      keep_images: return the attacked images too.
      progress: called with the number of samples done after each batch.

    Raises:
      ValueError: no samples, a negative or NaN epsilon, logits that do not fit the classes.

    Example:
      >>> attack = attacks.pgd(norm="l2", epsilon=0.0, num_steps=20)
      >>> found = attack_dataset(attack, lambda images: images @ weights, data, norm="l2", epsilon=0.5)
      >>> found.is_right.mean(), found.distance.max()
    """
    check_number("epsilon", epsilon)
    num_outputs(logits_fn, data)
    mesh, logits_fn = mesh or make_mesh(), as_pytree(logits_fn)
    batch_size = math.ceil(min(batch_size, len(data)) / mesh.size) * mesh.size
    parts: list[dict[str, np.ndarray]] = []
    for first in range(0, len(data), batch_size):
        positions = np.arange(first, first + batch_size) % len(data)
        found = _attack_batch(
            mesh,
            norm,
            keep_images,
            attack,
            logits_fn,
            spread(mesh, data.images, positions),
            spread(mesh, data.labels, positions),
            spread(mesh, data.ids.astype(np.int32), positions),
            jnp.asarray(epsilon, jnp.zeros(()).dtype),
            seed,
        )
        here = min(batch_size, len(data) - first)
        parts.append({name: gathered(values)[:here] for name, values in found.items()})
        progress(first + here)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Attacked(**{"images": None, **whole})
