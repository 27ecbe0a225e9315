"""Medical volumes: NIfTI files to intensities in [0,1] and dense labels of one size."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Between these percentiles of a volume (each modality by itself) intensities become [0,1], linearly; beyond, 0 and 1.
PERCENTILES = (0.5, 99.5)
_UNREADABLE = (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error)  # and nibabel's own, which are OSErrors
# or ValueErrors, but for this one: nibabel.filebasedimages.ImageFileError is a plain Exception.


class Header(NamedTuple):
    """What a file says of its volume: voxels along each axis, and millimetres of a voxel along the first three."""

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]


def read_header(path: Path, where: str) -> Header:
    """The header of a NIfTI file, without its voxels.

    Raises:
      ValueError: one line, beginning with `where`: missing, or no readable NIfTI.
    """
    found = _open(path, where)
    sizes = [float(size) for size in found.header.get_zooms()[:3]]
    if not all(0 < size < float("inf") for size in sizes):
        raise ValueError(f"{where}: {path.name} has voxels of {sizes} mm; sizes above 0 are needed")
    x, y, z = [*sizes, 1.0, 1.0, 1.0][:3]
    return Header(tuple(map(int, found.shape)), (x, y, z))


def read_voxels(path: Path, where: str) -> np.ndarray:
    """The voxels of a NIfTI file, scaled as it says.

    Raises:
      ValueError: as `read_header`; voxels that are cut short.
    """
    found = _open(path, where)
    try:
        return np.asarray(found.dataobj)
    except _UNREADABLE as error:
        raise ValueError(f"{where}: {path.name} cannot be read ({_first_line(error)}); it may be cut short") from error


def as_unit(image: np.ndarray, where: str) -> np.ndarray:
    """Intensities in [0,1], float32: per modality, `PERCENTILES` of the volume become 0 and 1, the others are clipped.

    So a radius r in [0,1] units is r times the distance of these two percentiles in the file's own units.

    Args:
      image: (X, Y, Z, modalities).
      where: the case, for messages.

    Raises:
      ValueError: NaN or infinite voxels; a modality whose voxels all have one value.
    """
    bad = int(np.sum(~np.isfinite(image)))
    if bad:
        raise ValueError(f"{where}: {bad} voxels of the image are NaN or infinite")
    scaled = np.empty(image.shape, np.float32)
    for modality in range(image.shape[-1]):
        values = image[..., modality].astype(np.float64)
        low, high = np.percentile(values, PERCENTILES)
        if low == high:  # a few bright voxels in the dark
            low, high = values.min(), values.max()
        if low == high:
            raise ValueError(f"{where}: all voxels of modality {modality} are {low:g}")
        scaled[..., modality] = np.clip((values - low) / (high - low), 0, 1)
    return scaled


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> np.ndarray:
    """Labels as int32.

    Raises:
      ValueError: values that are no whole numbers, or outside 0..num_classes-1.
    """
    values = np.unique(labels)
    strange = [value for value in values if not (np.isfinite(value) and value in range(num_classes))]
    if strange:
        raise ValueError(f"{where}: the label {strange[0]:g} is none of dataset.json's, 0..{num_classes - 1}")
    return labels.astype(np.int32)


def resampled_shape(header: Header, spacing: Sequence[float] | None) -> tuple[int, int, int]:
    """Voxels along each axis once a voxel has `spacing` millimetres; None: as they are."""
    counts = header.shape[:3]
    if spacing is not None:
        lengths = zip(counts, header.spacing, spacing, strict=True)
        counts = tuple(max(1, round(count * before / after)) for count, before, after in lengths)
    return counts[0], counts[1], counts[2]


def resample(image: np.ndarray, labels: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with other voxels: intensities linearly between neighbours, labels from the nearest.

    Args:
      image: float32 (X, Y, Z, modalities); labels: int32 (X, Y, Z).
      shape: voxels along each axis.
    """
    if tuple(shape) == labels.shape:
        return image, labels
    from scipy import ndimage

    factors = [after / before for after, before in zip(shape, labels.shape, strict=True)]

    def zoom(volume: np.ndarray, order: int) -> np.ndarray:
        return np.asarray(ndimage.zoom(volume, factors, order=order, mode="nearest", grid_mode=True))

    channels = [zoom(image[..., modality], 1) for modality in range(image.shape[-1])]
    return np.stack(channels, axis=-1), zoom(labels, 0)


def centred(volume: np.ndarray, sizes: Sequence[int | None]) -> np.ndarray:
    """Cuts or pads with zeros, equally on both sides (one more at the end), to these sizes of the first axes.

    None leaves an axis as it is.
    """
    cut, padding = [], []
    for count, size in zip(volume.shape, (*sizes, *[None] * (volume.ndim - len(sizes))), strict=True):
        wanted = count if size is None else size
        start = max(0, (count - wanted) // 2)
        cut.append(slice(start, start + min(count, wanted)))
        before = max(0, (wanted - count) // 2)
        padding.append((before, max(0, wanted - count) - before))
    return np.pad(volume[tuple(cut)], padding)


def _open(path: Path, where: str) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    if not path.is_file():
        raise ValueError(f"{where}: {path} is missing")
    try:
        return nibabel.load(path)
    except (*_UNREADABLE, ImageFileError) as error:
        raise ValueError(f"{where}: {path.name} is no readable NIfTI file ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
