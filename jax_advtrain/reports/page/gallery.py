"""The gallery: a few samples clean, attacked, and their difference, as PNG in the page; what the model says of each."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from jax_advtrain.reports.images import amplification
from jax_advtrain.reports.page.verdict import radius

GALLERY_NAME = "gallery.npz"
MOST_KEPT = 24  # samples
MOST_BYTES = 4_500_000  # of all pictures together, as text in the page
_SHOWN_WIDTH = 112  # pixels; smaller pictures are drawn larger, their pixels as squares
# From ColorBrewer's RdBu, as in reports/images.py: blue = darker, white = unchanged, red = brighter.
_LOW, _MIDDLE, _HIGH = (np.array(colour, float) for colour in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))


def arrays(clean: np.ndarray, attacked: np.ndarray, **kept: Any) -> dict[str, np.ndarray]:
    """What gallery.npz holds of the first samples: images as float16 (of 8 bits nothing is lost), all else as given.

    Args:
      clean, attacked: float (N, H, W, C) in [0, 1].
      kept: the other arrays of `section`.
    """
    told = {name: np.asarray(value) for name, value in kept.items()}
    per_sample = [name for name, value in told.items() if len(value.shape) and name != "class_names"]
    few = {**told, **{name: told[name][:MOST_KEPT] for name in per_sample}}
    images = {"clean": clean, "attacked": attacked}
    return {**{name: value[:MOST_KEPT].astype(np.float16) for name, value in images.items()}, **few}


def section(kept: Mapping[str, np.ndarray], name: str) -> dict[str, Any] | None:
    """The pictures of a gallery.npz; None where it holds none that can be shown (one channel or three).

    Args:
      kept: clean, attacked float (N, H, W, C) in [0, 1]; id, label, clean_prediction, attacked_prediction,
        clean_confidence, attacked_confidence, distance (N,); class_names; attack, norm, epsilon.
      name: of the evaluation.
    """
    clean, attacked = (np.asarray(kept[what], np.float32) for what in ("clean", "attacked"))
    if clean.ndim != 4 or clean.shape[-1] not in (1, 3) or not len(clean):
        return None
    difference = attacked - clean
    factor = amplification(difference)
    samples, size = [], 0
    for i in range(len(clean)):
        images = (clean[i], attacked[i], _coloured(difference[i], factor))
        pictures = dict(zip(("clean", "attacked", "difference"), map(picture, images), strict=True))
        size += sum(map(len, pictures.values()))
        if size > MOST_BYTES:
            break
        samples.append({"pictures": pictures, **_told(kept, i)})
    height, width = clean.shape[1:3]
    return {
        "samples": samples,
        "left_out": len(clean) - len(samples),
        "factor": f"{factor:g}",
        "grey": clean.shape[-1] == 1,
        "attack": str(kept["attack"]),
        "radius": radius(str(kept["norm"]), float(kept["epsilon"])),
        "name": name,
        "width": _SHOWN_WIDTH,
        "height": round(_SHOWN_WIDTH * height / width),
        "pixelated": width < 2 * _SHOWN_WIDTH,
    }


def _told(kept: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
    """What there is to say of a sample."""
    names, label = kept["class_names"], int(kept["label"][i])

    def name(k: int) -> str:
        return "NaN" if k < 0 else str(names[k]) if k < len(names) else str(k)

    def answer(when: str) -> dict[str, Any]:
        found = int(kept[f"{when}_prediction"][i])
        return {"name": name(found), "confidence": float(kept[f"{when}_confidence"][i]), "right": found == label}

    told = {"id": int(kept["id"][i]), "label": name(label), "distance": float(kept["distance"][i])}
    return {**told, "before": answer("clean"), "after": answer("attacked")}


def _coloured(difference: np.ndarray, factor: float) -> np.ndarray:
    """(H, W, 3) in [0, 1]: of grey images blue to red through white, of colour ones around mid-grey."""
    stretched = np.clip(factor * difference, -1, 1)
    if difference.shape[-1] == 3:
        return 0.5 + 0.5 * stretched
    share, towards = np.abs(stretched), np.where(stretched < 0, _LOW, _HIGH)
    return (_MIDDLE + share * (towards - _MIDDLE)) / 255


def picture(image: np.ndarray) -> str:
    """A PNG as data URI of float (H, W, 1 or 3) in [0, 1]."""
    pixels = (255 * np.clip(image, 0, 1)).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG", optimize=True)
    return as_uri(file.getvalue())


def as_uri(png: bytes) -> str:
    """The bytes of a PNG file as data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
