"""The files of an image folder: which splits and classes it has, and the record that each file is.

    DIR/<class>/*.png                  all is train
    DIR/<split>/<class>/*.jpg          split: train, validation or val, test

Folders below a class are searched too. Hidden files and other kinds of files are no records.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


class Entry(NamedTuple):
    """One record.

    Attributes:
      path: relative to the folder of its split, "/" between parts: "cat/a.png".
      label: number of its class.
      size: bytes.
      problem: why it may not be opened, "" where it may.
    """

    path: str
    label: int
    size: int
    problem: str


class Tree(NamedTuple):
    """An image folder.

    Attributes:
      class_names: sorted.
      splits: {split: its entries, in the order of their paths}: the position is the record's id.
      folders: {split: its folder}.
      others: {suffix: how many files of other kinds lie in the class folders}.
      version: a hash of all paths and sizes.
    """

    class_names: tuple[str, ...]
    splits: dict[str, list[Entry]]
    folders: dict[str, Path]
    others: dict[str, int]
    version: str


def find(root: Path) -> Tree:
    """Looks through an image folder without opening a file.

    Raises:
      ValueError: no folder; splits that are not clear; no classes, a class without images, a class that only a later
        split has; a class folder that is a link.
    """
    if not root.is_dir():
        raise ValueError(f"data.data_dir={str(root)!r} is no folder (one with a subfolder of images a class is needed)")
    try:
        folders = _split_folders(root)
        names = _subfolders(folders["train"])
        others: Counter[str] = Counter()
        found = {split: _entries(root.resolve(), folder, names, others) for split, folder in folders.items()}
    except OSError as error:
        raise ValueError(f"{error.filename or root} cannot be read: {error.strerror or error}") from error
    if not names:
        raise ValueError(f"{folders['train']} has no subfolders: images must lie in one subfolder a class")
    empty = set(range(len(names))) - {entry.label for entry in found["train"]}
    if empty:
        where, kinds = folders["train"] / names[min(empty)], ", ".join(SUFFIXES)
        raise ValueError(f"{where} has no images ({kinds}); see what lies there, or take it away")
    digest = hashlib.sha256()
    for split in sorted(found):
        for entry in found[split]:
            digest.update(os.fsencode(f"{split}/{entry.path}\0{entry.size}\n"))
    return Tree(tuple(names), found, folders, dict(others), digest.hexdigest()[:16])


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split: the root itself as train, where it has no split folders."""
    names = _subfolders(root)
    splits = [name for name in names if name in _SPLITS]
    others = [name for name in names if name not in _SPLITS]
    # A class may be called "train" (as in COCO): then it holds images, and other classes lie beside it.
    if not any(_subfolders(root / name) for name in splits):
        if splits and not others:
            raise ValueError(f"{root / splits[0]} has no subfolders: images must lie in one subfolder a class")
        return {"train": root}
    if others:
        raise ValueError(
            f"{root} has splits ({', '.join(splits)}) and other folders ({', '.join(others[:5])}) side by side; move "
            "either away"
        )
    if "train" not in splits:
        raise ValueError(f"{root} has {', '.join(splits)} but no train")
    if "val" in splits and "validation" in splits:
        raise ValueError(f"{root} has val and validation; one of them must go")
    return {_SPLITS[name]: root / name for name in splits}


def _subfolders(folder: Path) -> list[str]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            if entry.is_symlink():
                raise ValueError(f"{folder / entry.name} is a link to a folder; only links to files are followed")
            found.append(entry.name)
    return sorted(found)


def _entries(root: Path, folder: Path, names: list[str], others: Counter[str]) -> list[Entry]:
    """The images of a split; files of other kinds are counted in `others`."""
    unknown = [name for name in _subfolders(folder) if name not in names]
    if unknown:
        raise ValueError(f"{folder / unknown[0]} is a class that train has not; its classes: {', '.join(names)}")
    here = [
        Entry(path, label, size, problem)
        for label, name in enumerate(names)
        if (folder / name).is_dir()
        for path, size, problem in _files(root, folder / name, name, others)
    ]
    return sorted(here)  # by path: file systems give any order


def _files(root: Path, folder: Path, prefix: str, others: Counter[str]) -> Iterator[tuple[str, int, str]]:
    """(path, size, problem) of each image below a class folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(root, folder / entry.name, path, others)
            elif entry.is_symlink() and entry.is_dir():
                yield path, 0, "is a link to a folder, which is not followed"
            elif not entry.name.lower().endswith(SUFFIXES):
                others[Path(entry.name).suffix or entry.name] += 1
            elif entry.is_symlink():
                yield path, *_linked(root, folder / entry.name)
            else:
                yield path, entry.stat().st_size, ""


def _linked(root: Path, link: Path) -> tuple[int, str]:
    """Size and problem of a link to a file."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return 0, "is a link to nothing"
    if not target.is_relative_to(root):
        return 0, "is a link that leaves the folder"
    return target.stat().st_size, ""
