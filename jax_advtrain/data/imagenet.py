"""ImageNet (ILSVRC 2012) from its two original archives, as the TFDS set imagenet2012; without TensorFlow.

    ILSVRC2012_img_train.tar    a tar of one n01440764.tar a class, of n01440764_10026.JPEG, ...
    ILSVRC2012_img_val.tar      ILSVRC2012_val_00000001.JPEG, ...; the labels come with TFDS, by the number in the name

Nothing is extracted: the archives are read where they lie, at the places that a first pass over their headers finds.
As in TFDS's own preparation, the images of CMYK colours (22 of train) and the PNG that is called a JPEG become RGB
JPEGs; all others keep their bytes. Those are told by their content here, by their names there.
"""

import io
import posixpath
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jax_advtrain.data.source_files import check_member
from jax_advtrain.data.tfds_writer import Content

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_JPEG = b"\xff\xd8"
_JPEG_QUALITY = 100  # TFDS's, for the few that are encoded anew


class _Entry(NamedTuple):
    """An image in an archive: its name, and where its bytes are."""

    name: str
    start: int
    size: int


def imagenet(files: dict[str, Path]) -> tuple[Any, Mapping[str, Content]]:
    """Features and records; the arguments are those of `original_layouts`.

    Raises:
      ValueError: an archive is damaged, has a member that leaves its folder, a class that is none of the 1,000, or a
        validation image that is not called by its number.
    """
    import tensorflow_datasets as tfds

    names = _lines("labels.txt")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=names),
            "file_name": tfds.features.Text(),
        }
    )
    train, validation = _train_entries(files[TRAIN], names), _validation_entries(files[VALIDATION])
    labels = _validation_labels(files[VALIDATION], [entry.name for entry in validation])
    return features, {
        "train": _content(files[TRAIN], train, {entry.name: entry.name.split("_")[0] for entry in train}),
        "validation": _content(files[VALIDATION], validation, labels),
    }


def _validation_labels(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The class of each validation image: TFDS lists them by the number in the name, from 1."""
    listed = _lines("validation_labels.txt")
    labels = {}
    for name in names:
        match = _VALIDATION_NAME.fullmatch(name)
        if match is None or not 1 <= int(match[1]) <= len(listed):
            raise ValueError(f"{path} has a member {name!r}; its images are called ILSVRC2012_val_00000001.JPEG, ...")
        labels[name] = listed[int(match[1]) - 1]
    return labels


def _content(path: Path, entries: Sequence[_Entry], labels: Mapping[str, str]) -> Content:
    file = path.open("rb")

    def example(k: int) -> dict[str, Any]:
        entry = entries[k]
        file.seek(entry.start)
        content = file.read(entry.size)
        if len(content) < entry.size:
            raise ValueError(f"{path} is cut short at {entry.name}; download it anew")
        image = io.BytesIO(_as_rgb_jpeg(f"{path}: {entry.name}", content))
        return {"image": image, "label": labels[entry.name], "file_name": entry.name}

    keys = [entry.name for entry in entries]
    return Content(len(entries), example, keys=keys, num_bytes=sum(entry.size for entry in entries))


def _as_rgb_jpeg(where: str, content: bytes) -> bytes:
    """The same bytes where they are a grey or RGB JPEG already."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if content[:2] == _JPEG and image.mode in ("L", "RGB"):
                return content
            encoded = io.BytesIO()
            image.convert("RGB").save(encoded, "JPEG", quality=_JPEG_QUALITY)
            return encoded.getvalue()
    except (OSError, SyntaxError, ValueError) as error:
        # A damaged image stays what it is: whoever reads the set is told of it by name (data.on_bad_record).
        if content[:2] == _JPEG:
            return content
        raise ValueError(f"{where} is neither JPEG nor PNG ({error})") from error


def _train_entries(path: Path, names: Sequence[str]) -> list[_Entry]:
    """The images of all classes; places count in the outer archive."""
    found: list[_Entry] = []
    classes = set(names)
    with path.open("rb") as file:
        for entry in _members(str(path), file):
            synset, suffix = posixpath.splitext(entry.name)
            if suffix != ".tar" or synset not in classes:
                raise ValueError(
                    f"{path} has a member {entry.name!r}; each must be called after a class, n01440764.tar"
                )
            inside = _members(f"{path}: {entry.name}", _Part(file, entry.start, entry.size))
            other = next((one.name for one in inside if not one.name.startswith(f"{synset}_")), None)
            if other is not None:
                raise ValueError(f"{path}: {entry.name} has a member {other!r}; its images must be called {synset}_...")
            found += [one._replace(start=entry.start + one.start) for one in inside]
    return found


def _validation_entries(path: Path) -> list[_Entry]:
    with path.open("rb") as file:
        return _members(str(path), file)


def _members(where: str, file: Any) -> list[_Entry]:
    """The files of an archive, in its order; only headers are read."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            members = archive.getmembers()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{where} is no whole .tar ({error}); download it anew") from error
    for member in members:
        check_member(where, member)
    found = [_Entry(posixpath.basename(one.name), one.offset_data, one.size) for one in members if one.isfile()]
    if len({entry.name for entry in found}) < len(found):
        raise ValueError(f"{where} has a file twice")
    return found


class _Part(io.RawIOBase):
    """A stretch of an open file, as a file of its own: an archive inside an archive."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._start + self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content


def _lines(file: str) -> list[str]:
    """Of a text that TFDS ships for ImageNet."""
    import tensorflow_datasets as tfds

    return tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text().split()
