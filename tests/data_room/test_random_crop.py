"""RandomResizedCrop: where its rectangles lie, and what becomes of the pixels."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jax_advtrain import data
from jax_advtrain.data import random_crop
from jax_advtrain.data.random_crop import draw_box


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.integers(0, 2**32 - 1), st.integers(0, 99))
def test_boxes_lie_in_the_image_and_are_a_function_of_seed_epoch_and_sample(height, width, area, seed, epoch):
    box = draw_box((height, width), area, seed, epoch, 7)
    assert box == draw_box((height, width), area, seed, epoch, 7)
    assert box.height >= 1 and box.width >= 1 and box.top >= 0 and box.left >= 0
    assert box.top + box.height <= height and box.left + box.width <= width


def test_areas_shapes_and_places_are_those_of_the_definition():
    """On a large square image nearly all first tries fit; area and log shape are uniform, the place is anywhere."""
    size = 10_000
    boxes = np.array([draw_box((size, size), 0.08, 0, 0, sample) for sample in range(4000)], float)
    top, left, height, width = boxes.T
    area, shape = height * width / size**2, np.log(width / height)
    assert area.min() > 0.0799 and np.abs(shape).max() < math.log(4 / 3) + 1e-3
    fits = area < 0.75  # larger ones may be too wide or too high for the image
    for values, low, high in ((area[fits], 0.08, 0.75), (shape[fits], -math.log(4 / 3), math.log(4 / 3))):
        share = np.sort((values - low) / (high - low))
        distance = np.abs(share - np.linspace(0, 1, len(share))).max()  # Kolmogorov-Smirnov
        assert distance < 1.95 / math.sqrt(len(share))
    for at, length in ((top, height), (left, width)):
        share = np.sort(at / np.maximum(size - length, 1))
        assert np.abs(share - np.linspace(0, 1, len(share))).max() < 1.95 / math.sqrt(len(share)) + 1e-3


def test_long_images_give_their_centre():
    assert draw_box((10, 1000), 0.5, 0, 0, 0) == ((0, (1000 - 13) // 2, 10, 13))


def random_resized_crop(content, size, channels, *more) -> np.ndarray:
    """In a place that holds something else before."""
    out = np.full((*size, channels), 77, np.uint8)
    random_crop.random_resized_crop(content, out, *more)
    return out


def stored(image: Image.Image, kind: str = "JPEG", **more) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **more)
    return content.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [("RGB", "JPEG", 3), ("RGB", "PNG", 3), ("L", "JPEG", 3), ("RGB", "JPEG", 1), ("CMYK", "JPEG", 3), ("L", "PNG", 1)],
)
def test_pixels_are_those_of_the_rectangle(photographs, mode, kind, channels):
    """Against Pillow's own crop and resize; small differences are those of its antialiasing."""
    image = Image.fromarray(photographs[0]).convert(mode)
    content = stored(image, kind)
    whole = Image.open(io.BytesIO(content)).convert("RGB" if channels == 3 else "L")
    for sample in range(5):
        found = random_resized_crop(content, (48, 64), channels, 0.08, 3, 1, sample)
        assert found.shape == (48, 64, channels) and found.dtype == np.uint8
        box = draw_box((whole.height, whole.width), 0.08, 3, 1, sample)
        cut = (box.left, box.top, box.left + box.width, box.top + box.height)
        wanted = np.asarray(whole.resize((64, 48), Image.Resampling.BILINEAR, cut)).reshape(48, 64, channels)
        assert np.abs(found.astype(float) - wanted).mean() < 9
        assert np.corrcoef(found.ravel().astype(float), wanted.ravel())[0, 1] > 0.97


def test_large_images_are_decoded_smaller(photographs, monkeypatch):
    """Four times as large in each direction: the same picture, decoded with about as many pixels."""
    import simplejpeg

    large = Image.fromarray(photographs[1]).resize((2560, 1708), Image.Resampling.BICUBIC)
    shapes, decode = [], simplejpeg.decode_jpeg

    def watched(*arguments, **more):
        found = decode(*arguments, **more)
        shapes.append(found.shape)
        return found

    monkeypatch.setattr(simplejpeg, "decode_jpeg", watched)
    content = stored(large, quality=95)
    for sample in range(10):
        found = random_resized_crop(content, (96, 96), 3, 0.5, 0, 0, sample)
        box = draw_box((1708, 2560), 0.5, 0, 0, sample)
        cut = (box.left, box.top, box.left + box.width, box.top + box.height)
        wanted = np.asarray(large.resize((96, 96), Image.Resampling.BILINEAR, cut))
        assert np.abs(found.astype(float) - wanted).mean() < 6
        scale = shapes[-1][0] / 1708
        assert scale < 0.3 and box.height * scale >= 95 and box.width * scale >= 95
    assert len(shapes) == 10


def test_damaged_images_are_pillows_to_judge(photographs):
    content = stored(Image.fromarray(photographs[0]))
    for spoilt in (content[: len(content) // 2], content[:1], b"", b"\xff\xd8 no image"):
        with pytest.raises(Exception, match=r"truncated|cannot identify|not enough|broken"):
            random_resized_crop(spoilt, (32, 32), 3, 0.08, 0, 0, 0)
    trailing, plain = (
        random_resized_crop(one, (32, 32), 3, 0.08, 0, 0, 0) for one in (content + b"extra bytes", content)
    )
    np.testing.assert_array_equal(trailing, plain)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (("flip", "random_resized_crop"), "name it once, and first"),
        (("random_resized_crop", "random_resized_crop:0.5"), "name it once, and first"),
        (("random_resized_crop:0",), "in (0, 1]"),
        (("random_resized_crop:small",), "in (0, 1]"),
        (("random_resized_crop:1.5",), "in (0, 1]"),
        (("random_resized_crp",), "did you mean 'random_resized_crop'"),
    ],
)
def test_bad_specs_are_refused_before_anything(spec, expected, tmp_path):
    with pytest.raises(ValueError) as caught:
        data.load({"name": "digits", "augment": spec, "data_dir": str(tmp_path / "sets")})
    assert expected in str(caught.value)
    assert not (tmp_path / "sets").exists()
