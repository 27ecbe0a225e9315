"""Augmentation on the device: vectorised over the batch, reproducible sample by sample.

An augmentation is made from a spec, a tuple of names with an argument after a colon, e.g. `("reflect_pad_crop:4",
"flip")`. Each sample has its own key (fold_in of seed, epoch and sample id), so what happens to it depends neither on
the batch it is in nor on the devices. Only "random_resized_crop" happens elsewhere: where images are decoded
(`data.random_crop`).
"""

import difflib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jax_advtrain.data.random_crop import LEAST_AREA

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def build(spec: Sequence[str]) -> Augment:
    """Makes one function of several augmentations, applied in the order given.

    Args:
      spec: names. `"flip"`: left-right with probability 1/2. `"reflect_pad_crop:P"`: pads P pixels on every side by
        reflection and cuts the old size out at a random place. Empty: nothing is done. `"random_resized_crop"` is
        passed over here (see `crop_area`).

    Returns:
      `f(keys, images)`: keys (B,) one PRNG key a sample (typed, or raw uint32 (B, 2)), images (B, H, W, C) uint8 or
      float -> images of the same shape and dtype. jit-able.

    Raises:
      ValueError: unknown name (the nearest valid one is named), missing or wrong argument; on the call: images that are
        not (B, H, W, C), or too small to be padded by reflection.
    """
    if isinstance(spec, str):
        raise ValueError(f'data.augment must be a tuple of names, got the string {spec!r}; write ("{spec}",)')
    crop_area(spec)
    parts = tuple(_part(item) for item in spec if not _is_crop(item))

    def augment(keys: jax.Array, images: jax.Array) -> jax.Array:
        if images.ndim != 4 and parts:
            raise ValueError(f"augmentation {tuple(spec)} takes images (B, H, W, C), got shape {images.shape}")
        for number, part in enumerate(parts):
            images = part(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number), images)
        return images

    return augment


def crop_area(spec: Sequence[str]) -> float | None:
    """The smallest share of an image's area that `"random_resized_crop"` (0.08) or `"random_resized_crop:A"` takes.

    Returns:
      None where the spec has none.

    Raises:
      ValueError: it is not the first, or A is no number in (0, 1].
    """
    crops = [item for item in spec if _is_crop(item)]
    if not crops:
        return None
    if crops != [spec[0]]:
        raise ValueError(f"augmentation {crops[-1]!r} happens while an image is decoded: name it once, and first")
    argument = crops[0].partition(":")[2]
    try:
        area = float(argument) if ":" in crops[0] else LEAST_AREA
    except ValueError:
        area = 0.0
    if not 0 < area <= 1:
        raise ValueError(
            f"augmentation {_CROP!r} takes the smallest share of the area, in (0, 1], e.g. '{_CROP}:0.08'; got "
            f"{crops[0]!r}"
        )
    return area


def _is_crop(item: str) -> bool:
    return str(item).partition(":")[0] == _CROP


def _part(item: str) -> Augment:
    name, _, argument = str(item).partition(":")
    if name not in _PARTS:
        valid = sorted((*_PARTS, _CROP))
        nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown augmentation {item!r}: did you mean {nearest!r}? Valid: {', '.join(valid)}")
    return _PARTS[name](argument)


def _flip(argument: str) -> Augment:
    if argument:
        raise ValueError(f"augmentation 'flip' takes no argument, got 'flip:{argument}'")

    def flip(keys: jax.Array, images: jax.Array) -> jax.Array:
        flipped = jax.vmap(jax.random.bernoulli)(keys)
        return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)

    return flip


def _reflect_pad_crop(argument: str) -> Augment:
    if not argument.isdecimal() or int(argument) < 1:
        got = f"reflect_pad_crop:{argument}"
        raise ValueError(
            f"augmentation 'reflect_pad_crop' takes the pixels to pad, e.g. 'reflect_pad_crop:4'; got {got!r}"
        )
    pad = int(argument)

    def reflect_pad_crop(keys: jax.Array, images: jax.Array) -> jax.Array:
        height, width = images.shape[1:3]
        if pad >= min(height, width):
            raise ValueError(f"'reflect_pad_crop:{pad}' needs images larger than {pad} pixels, got {height}x{width}")
        # Reading each row and column where it comes from is one gather and no padded copy.
        shifts = jax.vmap(lambda key: jax.random.randint(key, (2,), -pad, pad + 1))(keys)
        rows = _reflect(shifts[:, :1] + jnp.arange(height), height)
        columns = _reflect(shifts[:, 1:] + jnp.arange(width), width)
        return jax.vmap(lambda image, row, column: image[row[:, None], column[None, :]])(images, rows, columns)

    return reflect_pad_crop


def _reflect(index: jax.Array, size: int) -> jax.Array:
    """Index in [-size+1, 2*size-2] folded back into [0, size) without repeating the edge: -1 -> 1, size -> size-2."""
    index = jnp.abs(index)
    return jnp.where(index >= size, 2 * (size - 1) - index, index)


_CROP = "random_resized_crop"
_PARTS: dict[str, Callable[[str], Augment]] = {"flip": _flip, "reflect_pad_crop": _reflect_pad_crop}
