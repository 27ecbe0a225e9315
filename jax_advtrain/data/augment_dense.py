"""Augmentation of images together with the labels of their pixels, on the device, reproducible sample by sample.

As `data.augment`, a spec of names with an argument after a colon, e.g. `("flip", "rotate:15", "scale:0.2",
"gamma:0.3")`, and a key a sample. Flip, rotation and scale of a sample are one linear map about the centre: it is
interpolated once (`jax.scipy.ndimage.map_coordinates`): intensities linearly, labels from the nearest. What comes from
outside the image is 0, which is the background.
"""

import difflib
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.scipy import ndimage
from jaxtyping import Array, Float, Int

DenseAugment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
_Map = Callable[[jax.Array, int], Float[Array, "axes axes"]]


def build(spec: Sequence[str]) -> DenseAugment:
    """Makes one function of several augmentations.

    Args:
      spec: names. `"flip"`: along the second axis (left-right of images) with probability 1/2; `"flip:A"`: along axis
        A. `"rotate:D"`: by an angle from -D to D degrees, in three dimensions about each axis. `"scale:S"`: larger or
        smaller by a factor from 1-S to 1+S. `"gamma:G"`: intensities to the power of exp(u), u uniform from -log(1+G)
        to log(1+G).

    Returns:
      `f(keys, images, labels)`: keys (B,) one PRNG key a sample, images float (B, *space, C) in [0, 1], labels int
      (B, *space) -> the same of both, same shapes and dtypes. jit-able.

    Raises:
      ValueError: unknown name (the nearest valid one is named), missing or wrong argument; on the call: labels that are
        not one a pixel, an axis that the images do not have.
    """
    if isinstance(spec, str):
        raise ValueError(f'data.augment must be a tuple of names, got the string {spec!r}; write ("{spec}",)')
    parts = [_part(str(item)) for item in spec]

    def augment(keys: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        if labels.shape != images.shape[:-1]:
            raise ValueError(f"augmentation {tuple(spec)}: labels {labels.shape} are not one a pixel of {images.shape}")
        return jax.vmap(one)(keys, images, labels)

    def one(key: jax.Array, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        matrix, power = jnp.eye(label.ndim), None
        for number, (is_map, draw) in enumerate(parts):
            drawn = draw(jax.random.fold_in(key, number), label.ndim)
            if is_map:
                matrix = matrix @ drawn
            else:
                power = drawn if power is None else power * drawn
        if any(is_map for is_map, _ in parts):
            image, label = _moved(image, label, matrix)
        return image if power is None else jnp.power(image, power), label

    return augment


def _moved(
    image: Float[Array, "*space channels"], label: Int[Array, "*space"], matrix: Float[Array, "axes axes"]
) -> tuple[jax.Array, jax.Array]:
    """Each place p shows what was at centre + matrix (p - centre)."""
    sides = label.shape
    centre = (jnp.array(sides, jnp.float32) - 1) / 2
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, sides), indexing="ij"), axis=-1) - centre
    sources = list(jnp.moveaxis(jnp.einsum("...i,ji->...j", places, matrix) + centre, -1, 0))

    def interpolated(channel):
        return ndimage.map_coordinates(channel, sources, order=1, mode="constant", cval=0.0)

    moved = jax.vmap(interpolated, in_axes=-1, out_axes=-1)(image).astype(image.dtype)
    return moved, ndimage.map_coordinates(label, sources, order=0, mode="constant", cval=0).astype(label.dtype)


def _part(item: str) -> tuple[bool, Callable[[jax.Array, int], jax.Array]]:
    """(whether it is a linear map, how it is drawn)."""
    name, colon, argument = item.partition(":")
    if name not in _PARTS:
        nearest = difflib.get_close_matches(name, sorted(_PARTS), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown augmentation {item!r} of images with their labels: did you mean {nearest!r}? Valid: "
            f"{', '.join(sorted(_PARTS))}"
        )
    make, default, what, least, most = _PARTS[name]
    try:
        value = float(argument) if colon else default
    except ValueError:
        value = None
    if value is None or not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"augmentation {name!r} takes {what}, e.g. {name + ':' + _EXAMPLES[name]!r}; got {item!r}")
    return name != "gamma", make(value)


def _flip(axis: float) -> _Map:
    def draw(key: jax.Array, axes: int) -> jax.Array:
        if axis != int(axis) or axis >= axes:
            raise ValueError(
                f"augmentation 'flip:{axis:g}': the images have the axes {', '.join(map(str, range(axes)))}"
            )
        signs = jnp.ones(axes).at[int(axis)].set(jnp.where(jax.random.bernoulli(key), -1.0, 1.0))
        return jnp.diag(signs)

    return draw


def _rotate(degrees: float) -> _Map:
    def draw(key: jax.Array, axes: int) -> jax.Array:
        planes = [(0, 1)] if axes == 2 else [(0, 1), (0, 2), (1, 2)]
        angles = jax.random.uniform(key, (len(planes),), minval=-degrees, maxval=degrees) * (math.pi / 180)
        matrix = jnp.eye(axes)
        for angle, (i, j) in zip(angles, planes, strict=True):
            turn = jnp.eye(axes).at[i, i].set(jnp.cos(angle)).at[j, j].set(jnp.cos(angle))
            matrix = matrix @ turn.at[i, j].set(-jnp.sin(angle)).at[j, i].set(jnp.sin(angle))
        return matrix

    return draw


def _scale(share: float) -> _Map:
    def draw(key: jax.Array, axes: int) -> jax.Array:
        return jnp.eye(axes) / jax.random.uniform(key, minval=1 - share, maxval=1 + share)

    return draw


def _gamma(share: float) -> Callable[[jax.Array, int], jax.Array]:
    def draw(key: jax.Array, axes: int) -> jax.Array:
        return jnp.exp(jax.random.uniform(key, minval=-1.0, maxval=1.0) * math.log1p(share))

    return draw


# Name: how it is made, the value without an argument (None: one is needed), what the argument is, its range.
_PARTS = {
    "flip": (_flip, 1.0, "the axis to flip along", 0, 2),
    "rotate": (_rotate, None, "the largest angle in degrees, above 0", 1e-6, 180),
    "scale": (_scale, None, "the largest change of size, above 0 and below 1", 1e-6, 0.99),
    "gamma": (_gamma, None, "the largest change of the exponent, above 0", 1e-6, 10),
}
_EXAMPLES = {"flip": "1", "rotate": "15", "scale": "0.2", "gamma": "0.3"}
