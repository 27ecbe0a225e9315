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


def random_resized_crop(content: bytes, out: np.ndarray, least_area: float, seed: int, epoch: int, sample: int) -> None:
    """Writes a random rectangle of an encoded image, resized.

    Args:
      content: of a PNG or JPEG file.
      out: uint8 (H, W, C), contiguous; C is 1 (grey) or 3 (RGB).
      least_area, seed, epoch, sample: of `draw_box`.

    Raises:
      Exception: whatever Pillow says of damaged images.
    """
    draw = partial(draw_box, least_area=least_area, seed=seed, epoch=epoch, sample=sample)
    if content[:2] == _JPEG:
        try:
            if _from_jpeg(content, out, draw):
                return
        except ValueError:  # warnings are errors there: Pillow decides what is an image, as for sets in memory
            pass
    height, width, channels = out.shape
    with decode.opened(io.BytesIO(content), channels) as image:
        box = draw((image.height, image.width))
        place = (box.left, box.top, box.left + box.width, box.top + box.height)
        out[:] = decode.resized(image, (height, width), place)


def _from_jpeg(content: bytes, out: np.ndarray, draw: Callable[[tuple[int, int]], Box]) -> bool:
    """Whether the rectangle was written: not where libjpeg does not convert the colours.

    Raises ValueError for damaged images.
    """
    import cv2
    import simplejpeg

    *sides, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    height, width = map(int, sides)
    if colorspace in ("CMYK", "YCCK"):
        return False
    box = draw((height, width))
    wanted_height, wanted_width, channels = out.shape
    least = math.ceil(wanted_height * height / box.height), math.ceil(wanted_width * width / box.width)
    # Between whole and half the decoder has no fast way (min_factor). Colour is stored at half the resolution and here
    # repeated, not interpolated (fastupsample): one grey level apart in the mean, 4% faster.
    pixels = simplejpeg.decode_jpeg(
        content, _COLORSPACES[channels], fastupsample=True, min_height=least[0], min_width=least[1], min_factor=2
    )
    box = _scaled(box, (height, width), pixels.shape[:2])
    cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    # OpenCV writes where it is told if the shape is its own, which has no axis for a single channel.
    place = out if channels > 1 else out[..., 0]
    cv2.resize(cut, (wanted_width, wanted_height), dst=place, interpolation=cv2.INTER_LINEAR)
    return True


def _scaled(box: Box, whole: tuple[int, int], smaller: tuple[int, int]) -> Box:
    """The rectangle in the same image of smaller size."""
    if whole == smaller:
        return box
    top, bottom = (round(y * smaller[0] / whole[0]) for y in (box.top, box.top + box.height))
    left, right = (round(x * smaller[1] / whole[1]) for x in (box.left, box.left + box.width))
    return Box(top, left, max(1, bottom - top), max(1, right - left))
