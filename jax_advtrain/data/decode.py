"""From the bytes of a PNG or JPEG image to pixels of the wanted channels and size, and of many images to one array."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_advtrain.data.source import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = 2048  # records whose bytes are in memory at a time
THREADED_PIXELS = 64 * 64  # below this, threads lose more to the interpreter lock than decoding in parallel wins
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class BadRecord(ValueError):
    """A record that cannot be read; the text says where it is and why."""


def undecodable(what: str, error: Exception) -> BadRecord:
    """The error for an image of this name, of what its decoder raised."""
    return BadRecord(f"{what} cannot be decoded ({reason(error)})")


def is_grey(image: "Image") -> bool:
    """Whether an opened image has grey levels only; a palette counts as colour."""
    return image.mode in ("L", "1", "LA")


def reason(error: Exception) -> str:
    """Why an image cannot be read, in one line, of what Pillow raises."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its own text shows the address of the bytes
        return "no image that Pillow knows"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def decode_image(
    file: Any, channels: int | None, size: tuple[int, int] | None, resize: int | None = None, *, nearest: bool = False
) -> np.ndarray:
    """Pixels of an encoded image.

    Args:
      file: a path, or a file of bytes.
      channels: 1 (grey), 3 (RGB), 4 (RGBA); None: 1 where the image is grey, else 3. Transparency is dropped.
      size: (H, W) to which the image is resized: the shorter side to the size (so that it covers H x W), then the
        centre is cut out. Both are one bilinear, antialiased pass. None: as it is.
      resize: what the shorter side is resized to instead, so that the centre cut out is less of the image.
      nearest: each pixel is that of one place of the image, as a mask needs; else bilinear.

    Returns:
      uint8 (H, W, C).

    Raises:
      Exception: whatever Pillow says of damaged images (a dozen kinds); ValueError: more than 8 bits a pixel.
    """
    with opened(file, channels) as image:
        if size is None or (resize is None and (image.height, image.width) == size):
            return _pixels(image)
        height, width = size
        if resize is None:
            scale = min(image.height / height, image.width / width)
        else:
            scale = min(image.height, image.width) / resize
        cut_height, cut_width = scale * height, scale * width
        left, top = max(0.0, (image.width - cut_width) / 2), max(0.0, (image.height - cut_height) / 2)
        right, bottom = min(left + cut_width, image.width), min(top + cut_height, image.height)
        return resized(image, size, (left, top, right, bottom), nearest=nearest)


@contextlib.contextmanager
def opened(file: Any, channels: int | None) -> Iterator["Image"]:
    """An encoded image as a decoded Pillow one; the arguments and what is raised are those of `decode_image`."""
    from PIL import Image

    with Image.open(file) as image:
        if image.mode[0] in "IF":  # Pillow would cut every level above 255 off
            raise ValueError(f"it has more than 8 bits a pixel (mode {image.mode}); store 8-bit grey or colour")
        mode = MODES[channels] if channels else "L" if is_grey(image) else "RGB"
        yield image if image.mode == mode else image.convert(mode)


def resized(
    image: "Image", size: tuple[int, int], box: tuple[float, float, float, float], *, nearest: bool = False
) -> np.ndarray:
    """A rectangle (left, top, right, bottom) of an image as uint8 (*size, C): one bilinear, antialiased pass, or the
    nearest pixels."""
    from PIL import Image

    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return _pixels(image.resize((size[1], size[0]), how, box))


def _pixels(image: "Image") -> np.ndarray:
    # tobytes is twice as fast as np.asarray, which goes through a dictionary and a copy
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def read_images(
    where: str,
    ids: np.ndarray,
    image_shape: Sequence[int],
    fetch: Callable[[np.ndarray], Sequence[Any]],
    image_of: Callable[[int, Any], np.ndarray],
    label_of: Callable[[int, Any], int | np.ndarray],
    *,
    threaded: bool,
    skip: bool,
    label_shape: Sequence[int] = (),
) -> Samples:
    """Reads many images into one array.

    Args:
      where: set and split, for messages.
      ids: int64 (n,).
      image_shape: (H, W, C) that all have.
      fetch: ids of a chunk -> its records.
      image_of: (id, record) -> uint8 (H, W, C); raises BadRecord.
      label_of: (id, record) -> label, or int32 (H, W) one a pixel; raises as `image_of`.
      threaded: whether images are decoded on all cores.
      skip: bad records are left out and reported, instead of raised.
      label_shape: () or (H, W).

    Raises:
      BadRecord: the first that was met; ValueError: an image of another shape.
    """
    images = np.empty((len(ids), *image_shape), np.uint8)
    labels = np.empty((len(ids), *label_shape), np.int32 if label_shape else np.int64)
    problems: dict[int, str] = {}

    def fill(at: int, record: Any) -> None:
        try:
            image, label = image_of(int(ids[at]), record), label_of(int(ids[at]), record)
        except BadRecord as error:
            if not skip:
                raise
            problems[at] = str(error)
            return
        if image.shape != tuple(image_shape):
            raise ValueError(
                f"{where}: images differ in size ({image.shape} at id {ids[at]}, {tuple(image_shape)}): set "
                "data.image_size to the (height, width) that all are to be resized to, and data.channels where grey "
                "and colour are mixed"
            )
        if np.shape(label) != tuple(label_shape):
            raise ValueError(
                f"{where}: the image of id {ids[at]} has {image.shape[:2]} pixels, its mask {np.shape(label)}"
            )
        images[at], labels[at] = image, label

    for_each(ids, fetch, fill, threaded=threaded)
    if not problems:
        return Samples(ids, images, labels)
    good = np.setdiff1d(np.arange(len(ids)), list(problems))
    return Samples(ids[good], images[good], labels[good], tuple(problems[at] for at in sorted(problems)))


def for_each(
    ids: np.ndarray, fetch: Callable[[np.ndarray], Sequence[Any]], fill: Callable[[int, Any], None], *, threaded: bool
) -> None:
    """Calls fill(k, record of ids[k]) for each k; the bytes of CHUNK records are held at a time."""
    with ThreadPoolExecutor(os.cpu_count() if threaded else 1) as pool:
        for start in range(0, len(ids), CHUNK):
            found = fetch(ids[start : start + CHUNK])
            places = range(start, start + len(found))
            # list: an exception in a thread is raised here
            list((pool.map if threaded else map)(fill, places, found))
