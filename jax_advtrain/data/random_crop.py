"""RandomResizedCrop (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015) of an encoded image.

The rectangle is torchvision's: its area a uniform share of the image, its shape log-uniform from 3:4 to 4:3, in ten
tries. A JPEG is decoded by libjpeg-turbo (simplejpeg), at an eighth, a quarter or half of its size where the rectangle
still has as many pixels as are wanted, then resized bilinearly (OpenCV), so by less than two. What libjpeg does not
turn into grey or RGB (CMYK), what is no JPEG, and what is damaged, is left to Pillow.
"""

import io
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from jax_advtrain.data import decode
from jax_advtrain.data.permutation import CROP, uniforms

LEAST_AREA = 0.08
_SHAPES = (3 / 4, 4 / 3)
_TRIES = 10
_JPEG = b"\xff\xd8"
_COLORSPACES = {1: "GRAY", 3: "RGB"}


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_box(image_size: tuple[int, int], least_area: float, seed: int, epoch: int, sample: int) -> Box:
    """The rectangle of a sample at an epoch: a pure function of its arguments.

    Args:
      image_size: (H, W).
      least_area: the smallest share of the image's area, in (0, 1].
      seed, epoch, sample: in [0, 2**32).
    """
    height, width = image_size
    for area, shape, row, column in uniforms(4 * _TRIES, CROP, seed, epoch, sample).reshape(_TRIES, 4):
        wanted = height * width * (least_area + (1 - least_area) * area)
        low, high = map(math.log, _SHAPES)
        ratio = math.exp(low + (high - low) * shape)
        box_width, box_height = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(row * (height - box_height + 1)), int(column * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    # Very long images: the centre, as much of it as has an allowed shape.
    box_width = min(width, round(height * _SHAPES[1]))
    box_height = min(height, round(width / _SHAPES[0]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def random_resized_crop(
    content: bytes, size: tuple[int, int], channels: int, least_area: float, seed: int, epoch: int, sample: int
) -> np.ndarray:
    """A random rectangle of an encoded image, resized.

    Args:
      content: of a PNG or JPEG file.
      size: (H, W) wanted.
      channels: 1 (grey) or 3 (RGB).
      least_area, seed, epoch, sample: of `draw_box`.

    Returns:
      uint8 (H, W, C).

    Raises:
      Exception: whatever Pillow says of damaged images.
    """
    draw = partial(draw_box, least_area=least_area, seed=seed, epoch=epoch, sample=sample)
    if content[:2] == _JPEG:
        try:
            found = _of_jpeg(content, size, channels, draw)
        except ValueError:  # warnings are errors there: Pillow decides what is an image, as for sets in memory
            found = None
        if found is not None:
            return found
    with decode.opened(io.BytesIO(content), channels) as image:
        box = draw((image.height, image.width))
        return decode.resized(image, size, (box.left, box.top, box.left + box.width, box.top + box.height))


def _of_jpeg(
    content: bytes, size: tuple[int, int], channels: int, draw: Callable[[tuple[int, int]], Box]
) -> np.ndarray | None:
    """The resized rectangle; None for colours that libjpeg does not convert. Raises ValueError for damaged images."""
    import cv2
    import simplejpeg

    *sides, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    height, width = map(int, sides)
    if colorspace in ("CMYK", "YCCK"):
        return None
    box = draw((height, width))
    least = math.ceil(size[0] * height / box.height), math.ceil(size[1] * width / box.width)
    # Between whole and half the decoder has no fast way (min_factor). Colour is stored at half the resolution and here
    # repeated, not interpolated (fastupsample): one grey level apart in the mean, 4% faster.
    pixels = simplejpeg.decode_jpeg(
        content, _COLORSPACES[channels], fastupsample=True, min_height=least[0], min_width=least[1], min_factor=2
    )
    box = _scaled(box, (height, width), pixels.shape[:2])
    cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    # OpenCV drops the axis of a single channel.
    return cv2.resize(cut, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, channels)


def _scaled(box: Box, whole: tuple[int, int], smaller: tuple[int, int]) -> Box:
    """The rectangle in the same image of smaller size."""
    if whole == smaller:
        return box
    top, bottom = (round(y * smaller[0] / whole[0]) for y in (box.top, box.top + box.height))
    left, right = (round(x * smaller[1] / whole[1]) for x in (box.left, box.left + box.width))
    return Box(top, left, max(1, bottom - top), max(1, right - left))
