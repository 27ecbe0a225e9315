"""Tiny files in the exact layouts in which CIFAR-100, SVHN and STL-10 are given away."""

import io
import tarfile
from pathlib import Path

import numpy as np

FINE = [f"fine_{k:02d}" for k in range(100)]
COARSE = [f"coarse_{k:02d}" for k in range(20)]
STL_NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


def patches(photographs: list[np.ndarray], count: int, side: int) -> np.ndarray:
    """Cut-outs of real photographs, uint8 (count, side, side, 3)."""
    return np.stack([photographs[k % 2][5 * k : 5 * k + side, 7 * k : 7 * k + side] for k in range(count)])


def cifar100(folder: Path, photographs, count: int = 12) -> dict[str, np.ndarray]:
    """cifar-100-binary/{train,test}.bin and the names; returns the images."""
    folder.mkdir(parents=True)
    images = {}
    for split, number in (("train", count), ("test", 5)):
        images[split] = patches(photographs, number, 32)
        labels = np.stack([np.arange(number) % 20, np.arange(number) * 7 % 100], axis=1).astype(np.uint8)
        rows = np.concatenate([labels, images[split].transpose(0, 3, 1, 2).reshape(number, -1)], axis=1)
        (folder / f"{split}.bin").write_bytes(rows.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    return images


def svhn(folder: Path, photographs, splits=("train", "test")) -> dict[str, np.ndarray]:
    """train_32x32.mat, ...: X (32, 32, 3, N), y (N, 1) in 1..10; returns the images."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    images = {}
    for number, split in enumerate(splits):
        count = 13 + number
        images[split] = patches(photographs, count, 32)
        labels = (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None]
        savemat(
            folder / f"{split}_32x32.mat", {"X": images[split].transpose(1, 2, 3, 0), "y": labels}, do_compression=True
        )
    return images


def stl10(folder: Path, photographs, unlabelled: int = 4) -> dict[str, np.ndarray]:
    """stl10_binary/{train,test}_{X,y}.bin, unlabeled_X.bin and the names; returns the images."""
    folder.mkdir(parents=True)
    images = {}
    for split, count in (("train", 11), ("test", 6), ("unlabeled", unlabelled)):
        if not count:
            continue
        images[split] = patches(photographs, count, 96)
        (folder / f"{split}_X.bin").write_bytes(images[split].transpose(0, 3, 2, 1).tobytes())  # column by column
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes((np.arange(count) % 10 + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(STL_NAMES) + "\n")
    return images


def pack(archive: Path, folder: Path, *extra: tarfile.TarInfo) -> None:
    """folder as a .tar.gz, and further (evil) members."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
        for member in extra:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
