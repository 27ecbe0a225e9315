"""What the Square attack tries: start images, and changes of random windows of pixels, one a sample.

Images have shape (batch, height, width, channels). Each sample has a window side and places of its own, so windows are
masks made by comparing row and column numbers: shapes stay static, and a step draws a few integers a sample, never an
image of random numbers.
"""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jax_advtrain.attacks import norms

# At which of 10,000 queries the share of the pixels that a window covers is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULES = ("rescaled", "fixed")

_TINY = 1e-12  # the authors', against divisions by zero
_CANCELLED = 1e-5  # of 1: what rounding leaves of a sum that is zero


def halved_before(num_steps: int, schedule: str) -> np.ndarray:
    """The first change (counted from 0) with a share halved once, twice, ...; "rescaled" stretches 10,000 to num_steps.

    Rounded as in the authors' code.
    """
    change = np.arange(num_steps)
    if schedule == "rescaled":
        change = (change / num_steps * 10_000).astype(int)
    return np.searchsorted(change, HALVINGS, side="right")


def sides(
    change: Int[Array, "batch"],
    p_init: jax.typing.ArrayLike,
    *,
    num_steps: int,
    schedule: str,
    image_shape: tuple[int, int],
    norm: str,
) -> Int[Array, "batch"]:
    """Each sample's window side at its change number `change`: sqrt(p * height * width), rounded.

    For "l2" and "l1" odd and 3 at least, if the image is so large; "linf" windows of elongated images may be longer
    than the image is wide, and are cut.
    """
    halvings = jnp.sum(change[:, None] >= jnp.asarray(halved_before(num_steps, schedule)), axis=1)
    height, width = image_shape
    share = jnp.asarray(p_init, jnp.float32) * 0.5 ** halvings.astype(jnp.float32)
    side = jnp.round(jnp.sqrt(share * (height * width))).astype(jnp.int32)
    if norm == "linf":
        return jnp.clip(side, 1, max(height, width))
    limit = min(height, width)
    if limit < 3:
        return jnp.full_like(side, limit)
    return jnp.clip(side + (side % 2 == 0), 3, limit - (limit % 2 == 0))


def draws(keys: Key[Array, "batch"], number: Int[Array, "batch"], count: int) -> UInt32[Array, "batch count"]:
    """`count` random words a sample, from its key and its number."""
    return jax.vmap(lambda key, number: jax.random.bits(jax.random.fold_in(key, number), (count,), jnp.uint32))(
        keys, number
    )


def num_draws(norm: str, channels: int) -> int:
    """How many random words a sample `changed` takes."""
    return channels + (2 if norm == "linf" else 5)


def _offsets(word: UInt32[Array, "batch"], side: Int[Array, "batch"], size: int) -> Int[Array, "batch size"]:
    """Row (or column) numbers counted from a random beginning of the window, which lies inside the image."""
    places = jnp.maximum(size - side, 0).astype(jnp.uint32) + 1
    return jnp.arange(size) - (word % places).astype(jnp.int32)[:, None]


def _inside(offsets: Int[Array, "batch size"], side: Int[Array, "batch"]) -> Bool[Array, "batch size"]:
    return (offsets >= 0) & (offsets < side[:, None])


def _outer(function: Callable[..., Array], rows: Array, columns: Array) -> Array:
    """What `function` makes of each pixel's row and column; shape (batch, 1, height, width)."""
    return function(rows[:, None, :, None], columns[:, None, None, :])


def _signs(words: UInt32[Array, "batch *any"], dtype) -> Float[Array, "batch *any"]:
    return jnp.where(words >> 31 == 1, 1, -1).astype(dtype)


@lru_cache(maxsize=8)
def _bumps(largest: int, norm: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The authors' window of each side s, as three profiles (side, number): along, weight, across.

    The window is two stacked pyramids, the lower one negative, each of length 1 before the whole is scaled to 1. A
    pyramid falls off as f(d) = sum_{k = d}^{s // 2} (k + 1)^-2 ("l1": to the power -4) with the larger of the row's and
    the column's distance d to its middle. Since f falls, that is min(f(row's), f(column's)), so the window is
    weight[row] * min(along[row], across[column]): profiles suffice, and the window itself is never stored.
    """
    order, power = (2, 2) if norm == "l2" else (1, 4)
    along, weight, across = (np.zeros((largest + 1, max(largest, 1))) for _ in range(3))
    for side in range(1, largest + 1):
        levels = 1 / np.arange(1, side // 2 + 2) ** float(power)
        fall = np.append(np.cumsum(levels[::-1])[::-1], np.zeros(side))
        upper = side // 2
        across[side, :side] = fall[np.abs(np.arange(side) - side // 2)]
        for begin, rows, sign in ((0, upper, 1), (upper, side - upper, -1)):
            along[side, begin : begin + rows] = fall[np.abs(np.arange(rows) - rows // 2)]
            pyramid = np.minimum(along[side, begin : begin + rows, None], across[side])
            weight[side, begin : begin + rows] = sign / max(np.linalg.norm(pyramid.ravel(), order), _TINY)
        weight[side] /= 2 ** (1 / order) if upper else 1
    return along, weight, across


def bump(side: int, norm: str) -> np.ndarray:
    """The authors' "l2" or "l1" window of one side, not turned; of length 1."""
    along, weight, across = (profile[side, :side] for profile in _bumps(side, norm))
    return weight[:, None] * np.minimum(along[:, None], across)


def _bump(
    rows: Int[Array, "batch height"],
    columns: Int[Array, "batch width"],
    side: Int[Array, "batch"],
    turned: Bool[Array, "batch"],
    norm: str,
    dtype: jax.typing.DTypeLike,
) -> Float[Array, "batch 1 height width"]:
    """Each sample's window where it lies in the image, 0 around it; `turned`: rows and columns exchanged."""
    largest = min(rows.shape[1], columns.shape[1])
    along, weight, across = (jnp.asarray(profile, dtype) for profile in _bumps(largest, norm))

    def profile(offsets, along, weight):
        number = jnp.clip(offsets, 0, largest - 1)
        inside = _inside(offsets, side)
        return along[side[:, None], number], jnp.where(inside, weight[side[:, None], number], 0)

    def either(offsets, turned):
        with_weight = profile(offsets, along, weight)
        without = profile(offsets, across, jnp.ones_like(weight))
        return tuple(jnp.where(turned[:, None], other, one) for one, other in zip(with_weight, without, strict=True))

    (row_height, row_weight), (column_height, column_weight) = either(rows, turned), either(columns, ~turned)
    return _outer(jnp.minimum, row_height, column_height) * _outer(jnp.multiply, row_weight, column_weight)


def start(
    keys: Key[Array, "batch"],
    images: Float[Array, "batch height width channels"],
    epsilon: Float[Array, "batch"],
    norm: str,
) -> Float[Array, "batch height width channels"]:
    """The first images tried: for "linf" with vertical stripes, else tiled with bumps of random signs."""
    _, height, width, channels = images.shape
    zeros = jnp.zeros_like(epsilon, dtype=jnp.int32)
    if norm == "linf":
        signs = _signs(draws(keys, zeros, width * channels), images.dtype).reshape(-1, 1, width, channels)
        return jnp.clip(images + norms.per_sample(epsilon, images) * signs, 0, 1)
    side = max(min(height, width) // 5, 1)
    tile_rows, tile_columns = height // side, width // side
    words = draws(keys, zeros, tile_rows * tile_columns * (channels + 1)).reshape(
        -1, tile_rows, tile_columns, channels + 1
    )
    work = jnp.promote_types(images.dtype, jnp.float32)
    shape = jnp.asarray(bump(side, norm), work)
    turned = words[:, :, None, :, None, :1] >> 31 == 1
    tiles = jnp.where(turned, shape.T[:, None, :, None], shape[:, None, :, None])
    tiles = tiles * _signs(words[:, :, None, :, None, 1:], work)
    tiled = tiles.reshape(-1, tile_rows * side, tile_columns * side, channels)
    above, left = (height - tile_rows * side) // 2, (width - tile_columns * side) // 2
    below, right = height - tile_rows * side - above, width - tile_columns * side - left
    change = jnp.pad(tiled, ((0, 0), (above, below), (left, right), (0, 0)))
    return _placed(images, change, epsilon, norm)


def _placed(images: Array, change: Array, epsilon: Float[Array, "batch"], norm: str) -> Array:
    """Images with a change that is scaled to the radius ("l2") or brought into the ball ("l1"), in the box."""
    if norm == "l1":
        return norms.project(images, change.astype(images.dtype), epsilon, norm)
    scale = epsilon.astype(change.dtype) / (norms.length(change, norm) + _TINY)
    return jnp.clip(images + norms.per_sample(scale, change) * change, 0, 1).astype(images.dtype)


def changed(
    words: UInt32[Array, "batch count"],
    images: Float[Array, "batch height width channels"],
    held: Float[Array, "batch height width channels"],
    epsilon: Float[Array, "batch"],
    side: Int[Array, "batch"],
    norm: str,
) -> Float[Array, "batch height width channels"]:
    """What is tried next: the held images with one window changed; `words` from `draws(..., num_draws(...))`."""
    if norm == "linf":
        return _painted(words, images, held, epsilon, side)
    return _transferred(words, images, held, epsilon, side, norm)


def _painted(words, images, held, epsilon, side) -> Array:
    """A square in which each channel goes to one end of its range, image +- epsilon."""
    _, height, width, _ = images.shape
    high, wide = jnp.minimum(side, height), jnp.minimum(side, width)
    rows = _inside(_offsets(words[:, 0], high, height), high)
    columns = _inside(_offsets(words[:, 1], wide, width), wide)
    window = jnp.moveaxis(_outer(jnp.logical_and, rows, columns), 1, -1)
    reach = norms.per_sample(epsilon, images) * _signs(words[:, 2:], images.dtype)[:, None, None, :]
    # A window that is as it was would waste the query (half of all windows of one grey pixel would): the other end.
    new = jnp.any(window & (jnp.clip(images + reach, 0, 1) != held), axis=(1, 2, 3), keepdims=True)
    return jnp.where(window, jnp.clip(images + jnp.where(new, reach, -reach), 0, 1), held)


def _transferred(words, images, held, epsilon, side, norm) -> Array:
    """Two windows: the length of the second goes to the first, whose change is mixed with a bump of random sign."""
    _, height, width, channels = images.shape
    work = jnp.promote_types(images.dtype, jnp.float32)
    rows, columns = _offsets(words[:, 0], side, height), _offsets(words[:, 1], side, width)
    first = _outer(jnp.logical_and, _inside(rows, side), _inside(columns, side))
    rows_from, columns_from = _offsets(words[:, 2], side, height), _offsets(words[:, 3], side, width)
    second = _outer(jnp.logical_and, _inside(rows_from, side), _inside(columns_from, side))
    # Channels first: the sums below run along whole rows. The barriers keep XLA from computing the bump and the change
    # anew in each of them. Together they halve the time of a step's own work on a CPU.
    change = jnp.moveaxis(held.astype(work) - images.astype(work), -1, 1)
    change, added = jax.lax.optimization_barrier(
        (change, _bump(rows, columns, side, words[:, 4] >> 31 == 1, norm, work))
    )
    added = added * _signs(words[:, 5:], work)[:, :, None, None]
    radius = norms.per_sample(epsilon.astype(work), change)

    def total(values):
        """The sum over each channel."""
        return jnp.sum(values, axis=(2, 3), keepdims=True)

    if norm == "l2":
        squares = jnp.square(change)
        of_first, of_both = total(jnp.where(first, squares, 0)), total(jnp.where(first | second, squares, 0))
        unused = jnp.maximum(jnp.square(radius) - jnp.sum(total(squares), axis=1, keepdims=True), 0)
        own = jnp.sqrt(of_first) + _TINY
        # The square of |added + change / own|, the bump being of length 1.
        mixed = 1 + 2 * total(added * change) / own + of_first / jnp.square(own)
        available, size = jnp.sqrt(unused / channels + of_both), jnp.sqrt(jnp.maximum(mixed, _CANCELLED))
    else:
        sizes = jnp.abs(change)
        own, of_both = total(jnp.where(first, sizes, 0)) + _TINY, total(jnp.where(first | second, sizes, 0))
        unused = jnp.maximum(radius - jnp.sum(total(sizes), axis=1, keepdims=True), 0)
        mixed = size = total(jnp.where(first, jnp.abs(added + change / own), 0))
        # More than there is where there are colours, as in the authors' code; the projection takes it from all pixels.
        available = unused + channels * of_both
    # A bump on its own negative leaves nothing to scale, in windows of one pixel as a rule: then the bump alone.
    cancelled = mixed < _CANCELLED
    mix = jnp.where(cancelled, available, available / size) * (added + jnp.where(cancelled, 0, change / own))
    new = jnp.where(first, mix, jnp.where(second, 0, change))
    return _placed(images, jnp.moveaxis(jax.lax.optimization_barrier(new), 1, -1), epsilon, norm)
