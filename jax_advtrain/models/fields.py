"""Checks of the fields of a network's config: each answers bad input with one line."""

import math
from collections.abc import Iterable, Sequence

import jax.numpy as jnp

from jax_advtrain.models.convolution import LOWERINGS


def widths(field: str, value) -> tuple[int, ...]:
    """A sequence of layer widths, each an int >= 1 (empty allowed), as a tuple."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(_is_width(width) for width in value):
        raise ValueError(f"model.{field} = {value!r}: expected a list of whole numbers >= 1")
    return tuple(int(width) for width in value)


def count(field: str, value, least: int = 1) -> int:
    """A whole number >= least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"model.{field} = {value!r}: expected a whole number >= {least}")
    return value


def choice(field: str, value, valid: Iterable):
    """One of a few values."""
    if isinstance(value, bool) or value not in tuple(valid):
        raise ValueError(f"model.{field} = {value!r}: expected one of {', '.join(map(str, valid))}")
    return value


def image_sizes(network: str, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(height, width, channels) of the images of a network that takes nothing else."""
    if len(image_shape) != 3:
        raise ValueError(f"{network} takes images of shape (height, width, channels), not {tuple(image_shape)}")
    height, width, channels = image_shape
    return height, width, channels


def flag(field: str, value) -> bool:
    """True or False, nothing that merely looks like it."""
    if not isinstance(value, bool):
        raise ValueError(f"model.{field} = {value!r}: expected True or False")
    return value


def normalisation(mean, std, num_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation in [0, 1] pixel units, each one number or one a channel, as tuples."""
    checked = []
    for field, value in (("mean", mean), ("std", std)):
        numbers = (value,) if isinstance(value, int | float) else value
        if isinstance(numbers, str) or not isinstance(numbers, Sequence) or len(numbers) not in (1, num_channels):
            raise ValueError(f"model.{field} = {value!r}: expected one number or {num_channels}, one a channel")
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"model.{field} = {value!r}: expected finite numbers")
        checked.append(tuple(float(number) for number in numbers))
    if min(checked[1]) <= 0:
        raise ValueError(f"model.std = {std!r}: expected numbers > 0")
    return checked[0], checked[1]


def compute_dtype(value) -> str | None:
    """None (the dtype of the images and weights) or the name of a float dtype to compute in."""
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"model.dtype = {value!r}: expected None, 'float32', 'bfloat16', 'float16' or 'float64'")
    return dtype.name


def lowering(value) -> str:
    """The name of a convolution lowering, `"auto"` included."""
    return choice("lowering", value, ("auto", *LOWERINGS))


def _is_width(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
