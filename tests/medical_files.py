"""Small folders as those of the Medical Segmentation Decathlon, in which there is something to be learnt."""

import json
from pathlib import Path

import nibabel
import numpy as np


def write_task(root: Path, cases: int = 6, shape: tuple[int, int, int] = (12, 4, 12), modalities: int = 1) -> Path:
    """Volumes with a grey and a bright box side by side (classes 1 and 2) on dark noise; the last slice along axis 1 is
    empty."""
    random = np.random.default_rng(0)
    training = []
    for number in range(cases):
        name = f"case_{number:02d}.nii.gz"
        label = np.zeros(shape, np.uint8)
        x, z = random.integers(1, shape[0] // 2 - 1), random.integers(1, shape[2] // 2 - 1)
        label[x : x + shape[0] // 3, :-1, z : z + shape[2] // 3] = 1
        label[x + shape[0] // 3 : x + shape[0] // 2, :-1, z : z + shape[2] // 3] = 2
        image = 100 * label + random.normal(0, 10, shape)
        image = np.stack([image] * modalities, axis=-1) if modalities > 1 else image
        for kind, voxels in (("imagesTr", image), ("labelsTr", label)):
            write_nifti(root / kind / name, voxels)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "modality": {str(k): f"M{k}" for k in range(modalities)},
        "labels": {"0": "background", "1": "front", "2": "back"},
        "training": training,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def write_nifti(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 1.0, 1.0])), path)
