"""What every attack is: a pytree with `init`, `step` and `result`, and what passes between them.

An attack is a frozen dataclass registered with JAX. Numbers (epsilon, step size, temperature) are leaves and may be
traced, so that a new value never recompiles; what shapes the program (norm, number of steps, functions) is static.

    state = attack.init(key, logits_fn, images, labels)      # every leaf leads with the batch axis
    for _ in range(attack.num_steps):
        state = attack.step(logits_fn, state)
    found = attack.result(logits_fn, state)                  # AttackResult

`run` does just this inside one `lax` loop, and calling the attack returns the attacked images alone. Since all of the
state is per sample, a driver may take a finished sample out of its slot of the batch and put the next one in.

`logits_fn` is any callable from images to outputs. Pass weights as `jax.tree_util.Partial(apply, params)`: then they
are traced arguments, and two checkpoints share one compilation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

LogitsFn = Callable[[jax.Array], jax.Array]


class Problem(NamedTuple):
    """What is attacked. Every array leads with the batch axis.

    Attributes:
      images: in [0, 1].
      labels: the truth, (batch,) or dense.
      targets: None, or what each sample shall be taken for.
      epsilon: (batch,) radius in pixel units of [0, 1].
      keys: (batch,) random keys.
    """

    images: Float[Array, "batch *image"]
    labels: Int[Array, "batch *dense"]
    targets: Int[Array, "batch *dense"] | None
    epsilon: Float[Array, "batch"]
    keys: Key[Array, "batch"]


class AttackResult(NamedTuple):
    """What an attack found.

    Attributes:
      images: attacked images.
      is_right: whether the model is still right on them.
      score: how wrong the model is on them (the logit margin); orders results of several attacks.
      hits: how many of the visited iterates fooled the model (targeted: were taken for the target).
      zero_gradients: at how many steps the gradient was zero everywhere.
      nonfinite_gradients: at how many steps it held NaN or infinity (those entries count as zero).
      winner: for composed attacks, the number of the member or restart that this result comes from.
    """

    images: Float[Array, "batch *image"]
    is_right: Bool[Array, "batch"]
    score: Float[Array, "batch"]
    hits: Int[Array, "batch"]
    zero_gradients: Int[Array, "batch"]
    nonfinite_gradients: Int[Array, "batch"]
    winner: Int[Array, "batch"]


@runtime_checkable
class Attack(Protocol):
    """Anything that can be run on a batch; see the module's text."""

    def run(
        self,
        key: jax.Array,
        logits_fn: LogitsFn,
        images: jax.Array,
        labels: jax.Array,
        *,
        targets: jax.Array | None = None,
        epsilon: jax.typing.ArrayLike | None = None,
        start: jax.Array | None = None,
    ) -> AttackResult: ...

    @property
    def passes(self) -> int:
        """Forward plus backward passes a sample."""
        ...


def per_sample_keys(key: jax.Array, batch: int) -> Key[Array, "batch"]:
    """One key a sample: `key` as it is if it holds one a sample, else folded with the position in the batch.

    Keys a sample make results independent of batch size and order; under `shard_map` give them always, for a single
    replicated key would draw the same numbers on every device.

    Raises:
      ValueError: neither one key nor `batch` keys, or keys of the "rbg" kind: under `vmap` those do not draw from each
        key alone, so a sample's numbers would depend on its batch.
    """
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise ValueError(f"key is {key!r}; give jax.random.key(seed), or one key a sample")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            'key is of the "rbg" kind, which does not draw per sample; give jax.random.key(0, impl="threefry2x32")'
        )
    if key.shape == (batch,):
        return key
    if key.shape != ():
        raise ValueError(f"key has shape {key.shape}; give one key or one a sample: ({batch},)")
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def make_problem(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    targets: jax.Array | None,
    epsilon: jax.typing.ArrayLike,
) -> Problem:
    """Checks shapes and dtypes (values are checked by `validate`, on concrete arrays) and spreads epsilon and key.

    Raises:
      ValueError: images that are not floating point, are float16, or have no batch axis; labels that are not integers
        or not one a sample; targets unlike the labels; epsilon neither a scalar nor one a sample, or a concrete one
        that is negative or NaN.
    """
    check_number("epsilon", epsilon)
    for name, values in (("images", images), ("labels", labels), ("targets", targets)):
        if not isinstance(values, (jax.Array, np.ndarray, type(None))):
            raise ValueError(f"{name} are a {type(values).__name__}; give an array")
    if images.ndim < 2 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; give floating point in [0, 1] with a batch axis "
            "(integer pixels: divide by 255)"
        )
    if images.dtype == jnp.float16:
        raise ValueError("images are float16, whose smallest numbers small gradients pass; give float32 or bfloat16")
    for name, values in (("labels", labels), ("targets", targets)):
        if values is None:
            continue
        if not jnp.issubdtype(values.dtype, jnp.integer) or values.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"{name} are {values.dtype} of shape {values.shape}; give integers, one a sample of {images.shape[0]}"
            )
    if targets is not None and targets.shape != labels.shape:
        raise ValueError(f"targets have shape {targets.shape}; give the shape of the labels: {labels.shape}")
    epsilon = jnp.asarray(epsilon, images.dtype)
    if epsilon.shape not in ((), images.shape[:1]):
        raise ValueError(f"epsilon has shape {epsilon.shape}; give a scalar or one a sample: {images.shape[:1]}")
    spread = zeros_per_sample(images, images.dtype) + epsilon
    return Problem(images, labels, targets, spread, per_sample_keys(key, images.shape[0]))


def zeros_per_sample(images: Float[Array, "batch *image"], dtype: jax.typing.DTypeLike) -> Array:
    """Zeros of shape (batch,) that vary over devices as the images do, as a loop's carry under `shard_map` must."""
    return jnp.zeros_like(images[(slice(None), *(0,) * (images.ndim - 1))], dtype=dtype)


def check_number(name: str, value: Any, *, positive: bool = False) -> None:
    """Raises ValueError where a concrete number is negative (or, if `positive`, zero), NaN or infinite.

    Numbers, lists and numpy arrays are looked at; JAX arrays are not: they may be traced.
    """
    wanted = f"give finite numbers {'above' if positive else 'from'} 0"
    if isinstance(value, (str, bytes, type(None))):
        raise ValueError(f"{name} is {value!r}; {wanted}")
    if not isinstance(value, (int, float, list, tuple, np.ndarray, np.generic)):
        return
    numbers = np.asarray(value)
    if not jnp.issubdtype(numbers.dtype, jnp.number):
        raise ValueError(f"{name} is {value!r}; {wanted}")
    numbers = numbers.astype(float)
    if not np.all(np.isfinite(numbers) & ((numbers > 0) if positive else (numbers >= 0))):
        said = f"is {value}" if numbers.ndim == 0 else f"ranges over [{numbers.min():g}, {numbers.max():g}]"
        raise ValueError(f"{name} {said}; {wanted}")


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Returns `value`; raises ValueError where it is not a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; give a whole number from {least}")
    return value


def checked_start(start: jax.Array, images: Float[Array, "batch *image"]) -> Float[Array, "batch *image"]:
    """The images to start from, clamped to [0, 1] and of the dtype of `images`.

    Raises:
      ValueError: not floating point, or not of the shape of `images`.
    """
    if start.shape != images.shape or not jnp.issubdtype(start.dtype, jnp.floating):
        raise ValueError(f"start is {start.dtype} of shape {start.shape}; give images of shape {images.shape}")
    return jnp.clip(start.astype(images.dtype), 0, 1)


def is_fooled(
    is_right: Callable[[jax.Array, jax.Array], jax.Array], outputs: jax.Array, problem: Problem
) -> Bool[Array, "batch"]:
    """Whether the model is wrong, or with targets whether it takes the sample for its target."""
    aim = problem.labels if problem.targets is None else problem.targets
    right = check_per_sample("is_right", is_right(outputs, aim), len(aim))
    return ~right if problem.targets is None else right


def check_per_sample(name: str, values: jax.Array, batch: int) -> jax.Array:
    """Returns `values`; raises ValueError where a function of (outputs, labels) did not give one value a sample."""
    if values.shape != (batch,):
        raise ValueError(f"{name} gave shape {values.shape}; it must give one value a sample: ({batch},)")
    return values


def validate(images: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, num_classes: int | None = None) -> None:
    """Checks values on concrete arrays, once, at the door; the attacks themselves never look at values.

    Raises:
      ValueError: images with NaN or outside [0, 1] (the range found is said), labels outside the classes or not as
        many as images.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; give floating point in [0, 1] (integer pixels: divide by 255)")
    if images.size:
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images range over [{low:g}, {high:g}]; they must lie in [0, 1], without NaN")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; give integers")
    if labels.shape[:1] != images.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape} for images of shape {images.shape}; give one a sample")
    if labels.size and (labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes)):
        classes = "classes are counted from 0" if num_classes is None else f"there are {num_classes} classes from 0"
        raise ValueError(f"labels range over [{labels.min()}, {labels.max()}]; {classes}")
