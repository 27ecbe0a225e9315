"""Folders of the Medical Segmentation Decathlon: real hippocampi, and small tasks made for one test."""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from jax_advtrain import data
from jax_advtrain.data import splits, volumes

SHAPES = [(6, 8, 5), (7, 8, 4), (6, 6, 3), (6, 8, 5), (5, 9, 2)]


def write_nifti(path: Path, voxels: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)


@pytest.fixture
def task(tmp_path):
    """task(shapes, modalities, spacing, **listed) -> a folder TaskNN of random volumes, with labels 0, 1, 2."""

    def make(shapes=SHAPES, modalities=1, spacing=(1.0, 1.0, 1.0), **listed) -> Path:
        root = tmp_path / "Task99_Toy"
        random = np.random.default_rng(0)
        training = []
        for number, shape in enumerate(shapes):
            name = f"toy_{10 - number:03d}.nii.gz"  # the order is dataset.json's, not that of the names
            channels = (modalities,) if modalities > 1 else ()
            write_nifti(root / "imagesTr" / name, random.normal(300, 100, (*shape, *channels)), spacing)
            write_nifti(root / "labelsTr" / name, random.integers(0, 3, shape).astype(np.uint8), spacing)
            training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        content = {
            "name": "Toy",
            "modality": {str(k): f"M{k}" for k in range(modalities)},
            "labels": {"0": "background", "1": "front", "2": "back"},
            "training": training,
            "test": [],
        }
        (root / "dataset.json").write_text(json.dumps(content | listed))
        return root

    return make


def load(root: Path, **config) -> data.Splits:
    whole = {"name": "toy", "source": "decathlon", "data_dir": str(root), "test_size": 1, "validation_size": 1}
    return data.load(whole | config)


def every_sample(found: data.Splits) -> dict[int, tuple[np.ndarray, np.ndarray, int]]:
    return {
        int(sample): (image, label, int(group))
        for part in found
        for sample, image, label, group in zip(part.ids, part.images, part.labels, part.groups, strict=True)
    }


def voxels(root: Path, kind: str, number: int) -> np.ndarray:
    return np.asarray(nibabel.load(root / kind / f"toy_{10 - number:03d}.nii.gz").dataobj)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_those_of_the_files(task, axis):
    root = task([(6, 8, 5)] * 4)
    found = load(root, slices=axis)
    samples = every_sample(found)
    per_case = (6, 8, 5)[axis]
    assert sorted(samples) == list(range(4 * per_case))  # the cases in dataset.json's order, then the slices
    for sample, (image, label, group) in samples.items():
        case, number = divmod(sample, per_case)
        assert group == case
        volume = voxels(root, "imagesTr", case)
        low, high = np.percentile(volume, [0.5, 99.5])
        expected = np.clip((volume.take(number, axis) - low) / (high - low), 0, 1)
        np.testing.assert_allclose(image[..., 0], expected, atol=1e-6)
        np.testing.assert_array_equal(label, voxels(root, "labelsTr", case).take(number, axis))
    assert found.train.class_names == ("background", "front", "back")
    assert found.train.group_names == ("toy_010", "toy_009", "toy_008", "toy_007")
    assert found.train.is_dense and found.train.labels.dtype == np.int32


def test_volumes_of_several_modalities(task):
    root = task([(6, 8, 5)] * 4, modalities=2)
    found = load(root)
    assert found.train.image_shape == (6, 8, 5, 2)
    for case, (image, label, _) in every_sample(found).items():
        volume = voxels(root, "imagesTr", case)
        for modality in range(2):  # each by its own percentiles
            low, high = np.percentile(volume[..., modality], [0.5, 99.5])
            expected = np.clip((volume[..., modality] - low) / (high - low), 0, 1)
            np.testing.assert_allclose(image[..., modality], expected, atol=1e-6)
        np.testing.assert_array_equal(label, voxels(root, "labelsTr", case))


def test_sizes_are_made_equal_from_the_centre(task):
    root = task()
    with pytest.raises(ValueError, match=r"different sizes: set data.image_size.*the largest is \(7, 9, 5\)"):
        load(root)
    found = every_sample(load(root, image_size=(6, 8, 5)))
    for case, shape in enumerate(SHAPES):
        label = voxels(root, "labelsTr", case)
        expected = np.zeros((6, 8, 5), np.int32)
        there, here = [], []
        for count, size in zip(shape, (6, 8, 5), strict=True):
            for one, start in ((there, (size - count) // 2), (here, (count - size) // 2)):
                one.append(slice(max(0, start), max(0, start) + min(count, size)))
        expected[tuple(there)] = label[tuple(here)]
        np.testing.assert_array_equal(found[case][1], expected)
    assert load(root, image_size=4).train.image_shape == (4, 4, 4, 1)
    assert load(root, slices=2, image_size=4).train.image_shape == (4, 4, 1)


def test_resampling(task):
    root = task([(4, 6, 5)] * 3, spacing=(2.0, 1.0, 1.0))
    found = every_sample(load(root, spacing=1.0))
    plain = every_sample(load(root))
    for case, (image, label, _) in found.items():
        assert image.shape == (8, 6, 5, 1) and label.shape == (8, 6, 5)
        np.testing.assert_array_equal(
            label, np.repeat(plain[case][1], 2, axis=0)
        )  # the nearest of half as large voxels
        # Linear between voxel centres: a quarter and three quarters of the way, the rim as it is.
        before = plain[case][0]
        np.testing.assert_allclose(image[1], 0.75 * before[0] + 0.25 * before[1], atol=1e-5)
        np.testing.assert_allclose(image[0], before[0], atol=1e-5)
    # Slices are counted after resampling.
    assert len(every_sample(load(root, spacing=1, slices=0))) == 24
    assert load(root, spacing=(2, 1, 1)).train.image_shape == (4, 6, 5, 1)


@pytest.mark.parametrize("seed", range(3))
def test_a_case_is_never_split(task, seed):
    root = task([(6, 8, 5)] * 10)
    config = {"slices": 0, "test_size": 0.2, "validation_size": 0.25, "seed": seed}
    found = load(root, **config)
    cases = [set(part.groups.tolist()) for part in found]
    assert [len(part) for part in cases] == [6, 2, 2]
    assert set.union(*cases) == set(range(10)) and [len(part) for part in found] == [36, 12, 12]
    again = load(root, **config)
    for one, other in zip(found, again, strict=True):
        assert one.fingerprint() == other.fingerprint()
    assert len({tuple(sorted(set(load(root, **config | {"seed": k}).test.groups))) for k in range(6)}) > 2


def test_counts_and_lists_keep_cases_together(task):
    root = task([(6, 8, 5)] * 10)
    found = load(root, slices=0, num_train=3, validation_from="rest", validation_size=2, test_size=4)
    cases = [set(part.groups.tolist()) for part in found]
    assert [len(part) for part in cases] == [3, 2, 4] and len(set.union(*cases)) == 9
    # Half a case in the list: its other half goes nowhere else.
    lists = {"slices": 0, "train_ids": [0, 1, 2, 6, 7], "test_ids": [12, 13], "test_size": None}
    listed = load(root, **lists, validation_from="train", validation_size=0.5)
    cases = [set(part.groups.tolist()) for part in listed]
    assert cases[0] | cases[1] == {0, 1} and len(cases[0]) == len(cases[1]) == 1 and cases[2] == {2}
    rest = load(root, slices=0, train_ids=[0, 1], test_ids=[12, 13], test_size=None, validation_size=0.999)
    assert set(rest.validation.groups.tolist()) == set(range(10)) - {0, 2}
    with pytest.raises(ValueError, match="have cases in common"):
        load(root, slices=0, train_ids=[0, 1], test_ids=[5], test_size=None)
    with pytest.raises(ValueError, match=r"data.num_train=10, but there are only 9 cases"):
        load(root, slices=0, num_train=10)
    with pytest.raises(ValueError, match=r"data.test_size=11 cannot be taken from 10 cases"):
        load(root, slices=0, test_size=11)


def test_what_was_done_is_in_the_fingerprint(task):
    root = task([(6, 8, 5)] * 4)
    variants = [
        {},
        {"slices": 0},
        {"slices": 1},
        {"spacing": 2},
        {"image_size": 4},
        {"slices": 0, "image_size": (8, 5)},
    ]
    prints = [load(root, **config).train.fingerprint() for config in variants]
    assert len({one["version"] for one in prints}) == len(prints) - 1  # the last is the second: nothing is cut
    assert all("groups_sha256" in one for one in prints)
    labels = voxels(root, "labelsTr", 1)
    labels[:] = (labels + 1) % 3
    write_nifti(root / "labelsTr" / "toy_009.nii.gz", labels)
    after = [load(root, **config).train.fingerprint() for config in variants]
    assert all(one["labels_sha256"] != other["labels_sha256"] for one, other in zip(prints, after, strict=True))


def test_memory_counts_the_labels_too(task):
    root = task([(6, 8, 5)] * 4)
    taken = 4 * 240 * (4 + 4)  # float32 and int32 voxels of all cases
    with pytest.raises(ValueError, match=r"data.max_ram_gb"):
        load(root, max_ram_gb=(taken - 1) / 1e9)
    assert len(load(root, max_ram_gb=(taken + 1) / 1e9).train) == 2


# --- what is refused ---


def spoil(root: Path, kind: str, change) -> None:
    name = "toy_009.nii.gz"
    write_nifti(root / kind / name, change(np.asarray(nibabel.load(root / kind / name).dataobj)))


def with_nan(volume):
    volume[1, 2, 3] = np.nan
    return volume


def with_label_7(volume):
    volume[0, 0, 0] = 7
    return volume


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("labelsTr", lambda v: v[:-1], "the image has (6, 8, 5) voxels, its label (5, 8, 5)"),
        ("labelsTr", lambda v: v[..., None], "the image has (6, 8, 5) voxels, its label (6, 8, 5, 1)"),
        ("labelsTr", with_label_7, "the label 7 is none of dataset.json's, 0..2"),
        ("labelsTr", lambda v: v * 0.5, "the label 0.5 is none of dataset.json's"),
        ("imagesTr", with_nan, "1 voxels of the image are NaN or infinite"),
        ("imagesTr", lambda v: v * 0 + 5, "all voxels of modality 0 are 5"),
        ("imagesTr", lambda v: np.stack([v, v], -1), "dataset.json names 1 modality, so (X, Y, Z) is needed"),
        ("imagesTr", lambda v: v[..., 0], "the image has shape (6, 8)"),
    ],
)
def test_a_bad_case_is_named(task, kind, change, said):
    root = task([(6, 8, 5)] * 4)
    spoil(root, kind, change)
    with pytest.raises(ValueError) as caught:
        load(root, slices=0)
    assert str(caught.value).startswith("Task99_Toy, case toy_009: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_three_dimensions_where_four_are_meant(task):
    root = task([(6, 8, 5)] * 4, modalities=2)
    spoil(root, "imagesTr", lambda volume: volume[..., 0])
    with pytest.raises(ValueError, match=r"case toy_009: .*names 2 modalities, so \(X, Y, Z, 2\) is needed"):
        load(root)


@pytest.mark.parametrize("kind", ["imagesTr", "labelsTr"])
def test_files_that_are_missing_or_damaged(task, kind):
    root = task([(6, 8, 5)] * 4)
    path = root / kind / "toy_009.nii.gz"
    whole = path.read_bytes()
    cut = gzip.compress(gzip.decompress(whole)[:400])
    for content in (b"", b"no nifti", whole[: len(whole) // 2], whole[:60], cut):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^Task99_Toy, case toy_009: toy_009.nii.gz ") as caught:
            load(root, slices=0)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ValueError, match=r"case toy_009: .*toy_009.nii.gz is missing"):
        load(root)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ({"labels": {"0": "background", "2": "back"}}, "labels is {'0': 'background', '2': 'back'}"),
        ({"labels": ["background"]}, "names of the numbers 0, 1, ... are needed"),
        ({"labels": {"0": "a", "1": "b", "2": "a"}}, "two labels have one name"),
        ({"modality": {}}, "modality is {}"),
        ({"training": []}, "names no training cases"),
        ({"training": ["a.nii.gz"]}, "an image and a label are needed"),
        ({"training": [{"image": "../a.nii.gz", "label": "./b.nii.gz"}]}, "leaves the folder"),
        ({"training": [{"image": f"./{k}/a.nii", "label": "./b.nii"} for k in "xy"]}, "the case a is there twice"),
    ],
)
def test_a_bad_dataset_json(task, listed, said):
    root = task(**listed)
    with pytest.raises(ValueError) as caught:
        load(root)
    assert said in str(caught.value) and "dataset.json" in str(caught.value) and "\n" not in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match=r"holds no dataset.json; a TaskNN folder"):
        load(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"slices": 3}, "data.slices must be 0, 1 or 2"),
        ({"slices": True}, "data.slices must be 0, 1 or 2"),
        ({"spacing": 0}, "data.spacing must be a number of millimetres"),
        ({"spacing": (1, 2)}, "data.spacing must be a number of millimetres"),
        ({"image_size": (4, 4)}, "(height, width, depth) of volumes"),
        ({"slices": 0, "image_size": (4, 4, 4)}, "or (height, width), got"),
        ({"classes": "front"}, "where labels are one a pixel there is no such"),
        ({"channels": 1}, "data.channels is for"),
        ({"augment": ("flop",)}, "of images with their labels: did you mean 'flip'"),
        ({"data_dir": None}, "needs data.data_dir"),
        ({"test_size": None}, "has no test split: set data.test_size"),
        ({"source": "digits"}, "data.slices is for decathlon; data.source is 'digits'"),
    ],
)
def test_bad_fields(task, config, said):
    with pytest.raises(ValueError) as caught:
        load(task([(6, 8, 5)] * 4), **({"slices": 0} | config if "source" in config else config))
    assert said in str(caught.value)


def test_centring():
    volume = np.arange(1, 6)
    assert volumes.centred(volume, (3,)).tolist() == [2, 3, 4]
    assert volumes.centred(volume, (2,)).tolist() == [2, 3]
    assert volumes.centred(volume, (8,)).tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert volumes.centred(np.ones((2, 5, 1)), (None, 3)).shape == (2, 3, 1)


# --- real data ---


def test_real_hippocampi(hippocampus_dir):
    config = {"slices": 1, "image_size": 64, "test_size": 0.2, "num_train": 12, "validation_size": 6, "num_test": 10}
    found = load(hippocampus_dir, **config)
    assert found.train.class_names == ("background", "Anterior", "Posterior")
    assert len(found.train.group_names) == 260
    assert [len(set(part.groups.tolist())) for part in found] == [12, 6, 10]
    for part in found:
        assert part.image_shape == (64, 64, 1) and part.labels.shape == (len(part), 64, 64)
        assert 0.01 < part.images.mean() < 0.5 and part.images.max() == 1
        shares = np.bincount(part.labels.ravel(), minlength=3) / part.labels.size
        assert shares[0] > 0.9 and shares[1:].min() > 0.005
    train = found.train
    name = train.group_names[train.groups[0]]
    volume = np.asarray(nibabel.load(hippocampus_dir / "labelsTr" / f"{name}.nii.gz").dataobj)
    # Nothing of a real label is lost by 64 x 64, which all slices fit into.
    assert np.sum(train.labels[train.groups == train.groups[0]] > 0) == np.sum(volume > 0)


def test_classification_on_it_is_refused(refused, task, tmp_path):
    root = task([(6, 8, 5)] * 4)
    config = tmp_path / "config.py"
    config.write_text(
        "from jax_advtrain.config import base\n\ndef get_config():\n    config = base('ima', 'mlp')\n"
        f"    config.data.name, config.data.source, config.data.data_dir = 'toy', 'decathlon', {str(root)!r}\n"
        "    config.data.test_size, config.data.validation_size, config.data.slices = 1, 1, 0\n    return config\n"
    )
    refused([f"--config={config}", f"--workdir={tmp_path / 'run'}"], "a label for each pixel", "set dice_threshold")
    assert not (tmp_path / "run").exists()
    spoil(root, "imagesTr", with_nan)
    refused([f"--config={config}", f"--workdir={tmp_path / 'run'}"], "Task99_Toy, case toy_009: 1 voxels")


def test_carving_by_group_is_even():
    """Over many seeds every group is taken about equally often."""
    import dataclasses

    from jax_advtrain.data.permutation import TEST
    from jax_advtrain.data.source import records_in_memory

    plain = records_in_memory("train", np.zeros((60, 1, 1, 1), np.uint8), np.zeros(60, int))
    records = dataclasses.replace(plain, groups=np.repeat(np.arange(20), 3), group_names=tuple(map(str, range(20))))
    counts = np.zeros(20)
    for seed in range(200):
        taken, left = splits.carve(records, records.ids, 5, seed, TEST)
        assert len(taken) == 15 and not set(records.groups[taken]) & set(records.groups[left])
        counts[np.unique(records.groups[taken])] += 1
    assert counts.sum() == 1000 and counts.min() > 25 and counts.max() < 80  # 50 expected, deviation 6
