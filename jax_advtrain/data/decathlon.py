"""Medical segmentation: folders of the Medical Segmentation Decathlon, NIfTI volumes with a dataset.json.

    TaskNN/dataset.json           modality, labels, training: [{image, label}, ...]
    TaskNN/imagesTr/*.nii.gz      (X, Y, Z), or (X, Y, Z, modalities)
    TaskNN/labelsTr/*.nii.gz      (X, Y, Z), numbers of dataset.json's labels

A sample is a slice (data.slices = its axis, 0, 1 or 2 of the file's own) or a whole volume. Its id counts the cases in
dataset.json's order, and the slices in each. All samples of a case (a patient) are one group, which is never split
between training, validation and test.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.data import volumes
from jax_advtrain.data.source import Records, Samples, Source


class Case(NamedTuple):
    """A patient: `shape` counts the voxels after resampling, `where` names the case in messages."""

    name: str
    image: Path
    label: Path
    shape: tuple[int, int, int]
    where: str


def open_decathlon(config: dict[str, Any]) -> Source:
    """Opens a folder; reads the headers of all its cases, and voxels only when they are asked for.

    Uses of `config`: data_dir, slices (0, 1, 2 or None), spacing (millimetres of a voxel, one number or three; None: as
    it is), image_size (2 numbers for slices, 3 for volumes; None: all cases have one size).

    Images are float32 (H, W, modalities) or (H, W, D, modalities) in [0,1] (`volumes.as_unit`), labels int32 (H, W) or
    (H, W, D). What is smaller than image_size is padded with zeros (background), what is larger loses its rim.

    Raises:
      ValueError: one line that names the case: missing files, shapes of image and label that differ, 4D where
        dataset.json names one modality and the other way round; sizes that differ without image_size. When cases are
        read: NaN voxels, labels that dataset.json does not name.
    """
    root = Path(config["data_dir"]).expanduser()
    listed = _read_json(root)
    class_names = _class_names(listed, root)
    modalities = len(_section(listed, "modality", root))
    opened = [_case(root, entry, modalities, config["spacing"]) for entry in _training(listed, root)]
    cases = [case for case, _ in opened]
    axis, size = config["slices"], config["image_size"]
    sizes = _sizes(cases, axis, size)
    counts = [1 if axis is None else case.shape[axis] for case in cases]
    starts = np.cumsum([0, *counts])

    def read(ids: np.ndarray) -> Samples:
        images = np.empty((len(ids), *sizes, modalities), np.float32)
        labels = np.empty((len(ids), *sizes), np.int32)
        owners = np.searchsorted(starts, ids, side="right") - 1
        for owner in np.unique(owners):
            here = np.flatnonzero(owners == owner)
            image, label = _load(cases[owner], modalities, len(class_names), axis, sizes)
            rows = ids[here] - starts[owner]
            images[here], labels[here] = image[rows], label[rows]
        return Samples(ids, images, labels)

    records = Records(
        split="train",
        count=int(starts[-1]),
        image_shape=(*sizes, modalities),
        image_dtype=np.dtype(np.float32),
        read=read,
        read_labels=lambda ids: read(ids).labels,
        label_shape=sizes,
        groups=np.repeat(np.arange(len(cases), dtype=np.int64), counts),
        group_names=tuple(case.name for case in cases),
        spacing=np.array([_spacing(header, config["spacing"], axis) for _, header in opened]),
    )
    version = _version(root, cases, [header for _, header in opened], config, sizes)
    return Source(config["name"], version, class_names, records, None, None)


def _read_json(root: Path) -> Mapping[str, Any]:
    path = root / "dataset.json"
    if not path.is_file():
        raise ValueError(
            f"data.data_dir={str(root)!r} holds no dataset.json; a TaskNN folder of the Decathlon is needed"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no object with modality, labels and training")
    return found


def _section(listed: Mapping[str, Any], name: str, root: Path) -> dict[int, str]:
    """dataset.json's {"0": text, "1": text, ...}, by number; the numbers are 0..k-1."""
    found = listed.get(name)
    try:
        by_number = {int(key): str(value) for key, value in found.items()}  # pyright: ignore[reportOptionalMemberAccess]
    except (AttributeError, ValueError):
        by_number = {}
    if not by_number or sorted(by_number) != list(range(len(by_number))):
        raise ValueError(f"{root / 'dataset.json'}: {name} is {found!r}; names of the numbers 0, 1, ... are needed")
    return by_number


def _class_names(listed: Mapping[str, Any], root: Path) -> tuple[str, ...]:
    by_number = _section(listed, "labels", root)
    names = tuple(by_number[number] for number in range(len(by_number)))
    if len(set(names)) < len(names):
        raise ValueError(f"{root / 'dataset.json'}: two labels have one name ({', '.join(names)})")
    return names


def _training(listed: Mapping[str, Any], root: Path) -> list[tuple[str, Path, Path]]:
    """(name, image, label) of each case, in order."""
    found, where = listed.get("training"), root / "dataset.json"
    if not isinstance(found, list) or not found:
        raise ValueError(f"{where} names no training cases")
    cases: list[tuple[str, Path, Path]] = []
    for entry in found:
        if not (
            isinstance(entry, dict) and isinstance(entry.get("image"), str) and isinstance(entry.get("label"), str)
        ):
            raise ValueError(f"{where}: training has {entry!r}; an image and a label are needed")
        paths = [root / entry[kind] for kind in ("image", "label")]
        for path in paths:
            if not path.resolve().is_relative_to(root.resolve()):
                raise ValueError(f"{where}: {str(path)!r} leaves the folder; it is not opened")
        cases.append((paths[0].name.split(".nii")[0], paths[0], paths[1]))
    names = [name for name, _, _ in cases]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise ValueError(f"{where}: the case {doubled} is there twice")
    return cases


def _case(
    root: Path, entry: tuple[str, Path, Path], modalities: int, spacing: tuple[float, ...] | None
) -> tuple[Case, volumes.Header]:
    name, image, label = entry
    where = f"{root.name}, case {name}"
    header, of_label = (volumes.read_header(path, where) for path in (image, label))
    wanted = (*header.shape[:3], modalities) if modalities > 1 else header.shape[:3]
    if header.shape != wanted or len(header.shape) < 3:
        expected = f"(X, Y, Z, {modalities})" if modalities > 1 else "(X, Y, Z)"
        raise ValueError(
            f"{where}: the image has shape {header.shape}; dataset.json names {modalities} "
            f"modalit{'y' if modalities == 1 else 'ies'}, so {expected} is needed"
        )
    if of_label.shape != header.shape[:3]:
        raise ValueError(f"{where}: the image has {header.shape[:3]} voxels, its label {of_label.shape}")
    return Case(name, image, label, volumes.resampled_shape(header, spacing), where), header


def _sizes(cases: list[Case], axis: int | None, image_size: tuple[int, ...] | None) -> tuple[int, ...]:
    """Height and width, or height, width and depth, of all samples."""
    if image_size is not None:
        return image_size
    shapes = {tuple(np.delete(case.shape, [] if axis is None else [axis]).tolist()) for case in cases}
    if len(shapes) > 1:
        largest = tuple(int(side) for side in np.max(list(shapes), axis=0))
        raise ValueError(
            f"the cases have {len(shapes)} different sizes: set data.image_size, to which each is padded or cut; the "
            f"largest is {largest}"
        )
    return shapes.pop()


def _spacing(header: volumes.Header, asked: tuple[float, ...] | None, axis: int | None) -> tuple[float, ...]:
    """Millimetres of a voxel, the axis of slices first."""
    sizes = header.spacing if asked is None else asked
    order = (0, 1, 2) if axis is None else (axis, *(other for other in range(3) if other != axis))
    return tuple(float(sizes[k]) for k in order)


def _load(
    case: Case, modalities: int, num_classes: int, axis: int | None, sizes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (n, *sizes, modalities) and labels int32 (n, *sizes) of a case's samples."""
    voxels = volumes.read_voxels(case.image, case.where)
    image = volumes.as_unit(voxels if modalities > 1 else voxels[..., None], case.where)
    label = volumes.check_labels(volumes.read_voxels(case.label, case.where), num_classes, case.where)
    image, label = volumes.resample(image, label, case.shape)
    if axis is None:
        image, label = image[None], label[None]
    else:
        image, label = np.moveaxis(image, axis, 0), np.moveaxis(label, axis, 0)
    return volumes.centred(image, (None, *sizes)), volumes.centred(label, (None, *sizes))


def _version(
    root: Path, cases: list[Case], headers: list[volumes.Header], config: dict[str, Any], sizes: tuple[int, ...]
) -> str:
    """A hash of dataset.json, the headers and the sizes of the files; behind it, how the samples were made of them."""
    digest = hashlib.sha256((root / "dataset.json").read_bytes())
    for case, header in zip(cases, headers, strict=True):
        bytes_ = [path.stat().st_size for path in (case.image, case.label)]
        digest.update(f"{case.name}\0{header}\0{bytes_}\n".encode())
    made = [digest.hexdigest()[:16], "x".join(map(str, sizes))]
    if config["slices"] is not None:
        made.append(f"axis{config['slices']}")
    if config["spacing"] is not None:
        made.append("x".join(f"{size:g}" for size in config["spacing"]) + "mm")
    return "-".join(made)
