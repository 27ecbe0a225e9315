"""Segmentation by the command line: trains, resumes, evaluates case by case, draws; what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from medical_files import write_nifti, write_task

import jax_advtrain
from jax_advtrain.defenses.registry import DEFENSES, OF_SEGMENTATION
from jax_advtrain.evaluation import results
from jax_advtrain.training import workdir
from jax_advtrain.training.checkpoints import LAST

CONFIG = """
from jax_advtrain.config import base

def get_config():
    config = base({method!r}, "unet")
    config.data.name, config.data.source, config.data.data_dir = "boxes", "decathlon", {data_dir!r}
    config.data.slices, config.data.test_size, config.data.validation_size = 1, 2, 1
    config.data.augment = ("flip", "rotate:10", "gamma:0.2")
    config.model.width, config.model.levels = 4, 2
    config.dice_threshold = 0.6
    config.defense.update({fields!r})
    config.batch_size, config.num_shards, config.epochs = 8, 8, 2
    config.optimizer.learning_rate = 1e-2
    config.monitor.num_samples, config.monitor.attacks = 1, "pgd:num_steps=2"
    config.monitor.norm, config.monitor.epsilon = "l2", 0.5
    config.eval.after_training = "best"
    config.eval.attacks = "fgsm, pgd:num_steps=3"
    config.eval.epsilons_linf, config.eval.epsilons_l2 = (), (0.5, 2.0)
    config.eval.figures = 2
    config.margins.norm, config.margins.radii, config.margins.num_steps = "l2", (0.5, 2.0), 3
    return config
"""
ATTACKED = {"norm": "l2", "num_steps": 2}
FIELDS = {
    "standard": {},
    "pgd_at": {**ATTACKED, "epsilon": 0.5, "attack_loss": "task"},
    "trades": {**ATTACKED, "epsilon": 0.5},
    "ima": {**ATTACKED, "eps_max": 1.0, "delta": 0.1, "refine_steps": 2, "attack_loss": "task", "compact": False,
            "inside_is_clean": False, "outside_is_final": False, "only_hit": False},
    "ame": {**ATTACKED, "delta": 0.1, "refine_steps": 2, "attack_loss": "task", "compact": False},
    "fast_at": {"norm": "l2", "epsilon": 0.5},
    "n_fgsm": {"norm": "linf", "epsilon": 0.05},
}  # fmt: skip


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("boxes") / "Task98_Boxes")


@pytest.fixture
def config_of(tmp_path, boxes):
    """config_of(method) -> a config file."""

    def write(method: str = "ima", data_dir: Path = boxes) -> Path:
        file = tmp_path / f"{method}.py"
        file.write_text(CONFIG.format(method=method, data_dir=str(data_dir), fields=FIELDS[method]))
        return file

    return write


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_and_margins(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint."""
    import orbax.checkpoint as ocp

    step = workdir.newest_step(folder, LAST)
    place = (folder / "checkpoints" / LAST / str(step) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(place).item_metadata.tree
        # The devices that wrote it are not those of this process.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = reader.restore(place, restore_args=as_numpy)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


@pytest.fixture(scope="module")
def finished(boxes, run_main, tmp_path_factory) -> Path:
    """The workdir of IMA, trained and evaluated; not to be written into (copy it)."""
    folder = tmp_path_factory.mktemp("segmented")
    file = folder / "ima.py"
    file.write_text(CONFIG.format(method="ima", data_dir=str(boxes), fields=FIELDS["ima"]))
    assert run_main(f"--config={file}", f"--workdir={folder / 'run'}") == 0
    return folder / "run"


@pytest.mark.slow
def test_a_whole_run(finished):
    lines = log(finished)
    assert len(lines) == 2
    validation = lines[-1]["validation"]
    assert set(validation["dice_per_class"]) == {"clean", "robust"} and "per_class" not in validation
    assert 0 <= validation["robust_dice"] <= validation["clean_dice"] + 1e-6
    # 3 cases of 4 slices, one of which has no foreground and keeps its margin; the last batch of 8 is ragged.
    assert sum(lines[-1]["margins"]["histogram"]) == 12
    assert lines[-1]["margins"]["unchanged"] >= 0.25
    folder = finished / "eval" / "best"
    found = results.read_results(folder)
    names = [(record["attack"], record["epsilon"]) for record in found["records"]]
    assert names == [
        ("clean", 0),
        *((name, radius) for radius in (0.5, 2.0) for name in ("fgsm-task", "pgd-3-task")),
        ("worst-of", 0.5),
        ("worst-of", 2.0),
    ]
    assert {file.name for file in folder.iterdir()} >= {
        *("results.json", "per_sample.npz", "per_case.npz"),
        *("accuracy_vs_radius.png", "dice_vs_radius.png", "images.png"),
    }


@pytest.mark.slow
def test_the_report_speaks_of_dice(finished):
    page = (finished / "report.html").read_text()
    worst = results.read_results(finished / "eval" / "best")["records"][-2]
    assert worst["attack"] == "worst-of" and worst["epsilon"] == 0.5
    dice = worst["segmentation"]["dice"]
    assert f"and {dice['mean']['value']:.3f} under the worst of 2 attacks at L2 0.5" in page
    least = min(dice["per_class"], key=lambda one: one["value"])
    assert f"The weakest class there is {least['class']}, Dice {least['value']:.3f}" in page
    assert "Dice over epochs" in page and "Dice against radius" in page


@pytest.mark.slow
def test_results_are_what_per_case_and_per_sample_hold(finished):
    """Dice by case, its means, and the worst case, computed a second time from the files."""
    folder = finished / "eval" / "best"
    found, samples, kept = (
        read(folder) for read in (results.read_results, results.read_per_sample, results.read_per_case)
    )
    assert kept["case"].tolist() == ["case_" + name for name in sorted(name[5:] for name in kept["case"])]
    assert len(samples["id"]) == 8 and len(set(samples["case"])) == 2
    for record in found["records"]:
        at = "clean" if record["norm"] is None else f"{record['attack']}/{record['norm']}/{record['epsilon']!r}"
        means = np.nanmean(kept[f"dice/{at}"], axis=0)
        told = record["segmentation"]["dice"]
        np.testing.assert_allclose([one["value"] for one in told["per_class"]], means, rtol=1e-5)
        assert told["mean"]["value"] == pytest.approx(np.nanmean(kept[f"dice/{at}"], axis=1).mean(), rel=1e-5)
        assert record["per_class"] == [] and record["segmentation"]["hausdorff95"]["unit"] == "mm"
    for radius in (0.5, 2.0):
        assert np.all(samples[f"dice/l2/{radius}"] <= samples["clean_dice"] + 1e-6)
        right = samples[f"right/l2/{radius}"]
        worst = next(r for r in found["records"] if (r["attack"], r["epsilon"]) == ("worst-of", radius))
        assert worst["correct"] == right.sum()
        assert np.all(right == ((samples[f"dice/l2/{radius}"] >= 0.6) | ~samples["has_foreground"]))
        assert np.all(samples[f"distance/l2/{radius}"] <= radius + 1e-4)
    assert np.all(samples["winner/l2/2.0"] < len(samples["attack_names"]))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(command, config_of, finished, tmp_path):
    folder, file = tmp_path / "run", config_of()
    flags = (f"--config={file}", f"--workdir={folder}", "--config.eval.after_training=")
    assert command(*flags, "--config.epochs=1").code == 0
    assert command(*flags).code == 0
    ours, theirs = weights_and_margins(folder), weights_and_margins(finished)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)
    left_out = ("seconds", "samples_per_second", "input_wait", "monitor_seconds")
    for one, other in zip(log(folder), log(finished), strict=True):
        assert {**one, **dict.fromkeys(left_out)} == {**other, **dict.fromkeys(left_out)}


@pytest.mark.slow
def test_eight_devices_train_alike(config_of, finished, tmp_path):
    """In a process of its own: the same batches, margins and, but for rounding, weights."""
    folder = tmp_path / "run"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    arguments = [f"--config={config_of()}", f"--workdir={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "jax_advtrain.main", *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "for 8 device(s)" in done.stdout
    ours, theirs = weights_and_margins(folder), weights_and_margins(finished)
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, atol=2e-3, err_msg=name)
    first, second = (results.read_results(one / "eval" / "best")["records"] for one in (folder, finished))
    for one, other in zip(first, second, strict=True):
        assert one["segmentation"]["dice"]["mean"]["value"] == pytest.approx(
            other["segmentation"]["dice"]["mean"]["value"], abs=0.03
        )


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in FIELDS if name != "ima"])
def test_each_method_trains(command, config_of, tmp_path, method):
    answer = command(
        f"--config={config_of(method)}", f"--workdir={tmp_path / method}", "--config.epochs=1",
        "--config.eval.after_training=",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    line = log(tmp_path / method)[-1]
    assert np.isfinite(line["train"]["loss"])
    if method == "ame":  # slices without foreground keep their margin, the others move
        assert 0.25 <= line["margins"]["unchanged"] < 1


@pytest.mark.slow
def test_whole_volumes_of_two_modalities(command, config_of, tmp_path):
    root, folder = write_task(tmp_path / "Task96_Two", modalities=2), tmp_path / "run"
    flags = (
        "--config.data.slices=None",
        "--config.data.image_size=None",
        "--config.epochs=1",
        "--config.eval.figures=1",
    )
    answer = command(f"--config={config_of('standard', root)}", f"--workdir={folder}", *flags)
    assert answer.code == 0, answer.err
    found, kept = results.read_results(folder / "eval" / "best"), results.read_per_case(folder / "eval" / "best")
    assert found["records"][0]["n"] == found["records"][0]["segmentation"]["cases"] == 2 == len(kept["case"])
    assert (folder / "eval" / "best" / "images.png").exists()


@pytest.mark.slow
def test_margins_and_export_of_a_run(command, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert command(f"--workdir={folder}", "--mode=margins").code == 0
    found = np.load(folder / "eval" / "margins-best-test-l2" / "margins.npz")
    assert found["margin"].shape == (8,) and set(found["case"]) == set(
        results.read_per_sample(folder / "eval/best")["case"]
    )
    assert not found["clean_right"][~results.read_per_sample(folder / "eval" / "best")["has_foreground"]].any()
    assert command(f"--workdir={folder}", "--mode=export", "--config.eval.name=out").code == 0
    logits_fn = jax_advtrain.load(folder / "export" / "out")
    assert logits_fn(jax.numpy.zeros((2, 12, 12, 1))).shape == (2, 12, 12, 3)


def spoil(root: Path, kind: str, change) -> None:
    """Rewrites the image or the label of case_02."""
    import nibabel

    path = root / kind / "case_02.nii.gz"
    write_nifti(path, change(np.array(nibabel.load(path).dataobj)))  # pyright: ignore[reportAttributeAccessIssue]


def with_nan(voxels):
    voxels[1, 1, 1] = np.nan
    return voxels


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("imagesTr", with_nan, "1 voxels of the image are NaN"),
        ("imagesTr", lambda voxels: voxels[:-1], "the image has (11, 4, 12) voxels, its label (12, 4, 12)"),
        ("labelsTr", lambda voxels: 3 * voxels, "the label 3 is none of dataset.json's, 0..2"),
        ("imagesTr", lambda voxels: np.stack([voxels] * 2, axis=-1), "so (X, Y, Z) is needed"),
        ("labelsTr", None, "case_02.nii.gz is missing"),
    ],
)
def test_bad_volumes_are_named_by_case(refused, config_of, tmp_path, kind, change, said):
    root = write_task(tmp_path / "Task97_Broken")
    if change is None:
        (root / kind / "case_02.nii.gz").unlink()
    else:
        spoil(root, kind, change)
    folder = tmp_path / "run"
    refused([f"--config={config_of('ima', root)}", f"--workdir={folder}"], "Task97_Broken, case case_02", said)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("method", "flags", "said"),
    [
        ("ima", ["--config.dice_threshold=1.5"], "dice_threshold is 1.5; give a mean foreground Dice"),
        ("ima", ["--config.dice_threshold=None"], "set dice_threshold"),
        ("ima", ["--config.defense.attack_loss=slm"], "defense.attack_loss is 'slm'; of segmentation give 'task'"),
        ("standard", ["--config.label_smoothing=0.1"], "label_smoothing is of classification"),
        ("standard", ["--config.one_logit=True"], "one_logit is of classification"),
        ("standard", ["--config.eval.attacks=fab"], "fab is of classifiers"),
        ("standard", ["--config.monitor.attacks=pgd:loss=lm"], "the loss is 'task'"),
        ("standard", ["--config.data.augment=('reflect_pad_crop:4',)"], "of images with their labels"),
        ("standard", ["--config.data.slices=None"], "data.image_size must be"),
        ("standard", ["--config.model.levels=4"], "multiples of 8"),
        ("standard", ["--mode=diagnose"], "--mode=diagnose looks at one class an image"),
    ],
)
def test_what_segmentation_refuses(refused, config_of, tmp_path, method, flags, said):
    if "slices" in flags[0]:
        flags = [*flags, "--config.data.image_size=(12,12)"]
    refused([f"--config={config_of(method)}", f"--workdir={tmp_path / 'run'}", *flags], said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", sorted(set(DEFENSES) - set(OF_SEGMENTATION)))
def test_defenses_of_classification_are_named(refused, tmp_path, boxes, method):
    file = tmp_path / "other.py"
    file.write_text(CONFIG.format(method=method, data_dir=str(boxes), fields={}))
    said = f"defense {method!r} is one of classification; of segmentation (dice_threshold is set) there are standard"
    refused([f"--config={file}", f"--workdir={tmp_path / 'run'}"], said)


def test_a_network_of_images_is_refused_for_pixels(refused, config_of, tmp_path):
    file = config_of("standard")
    text = (
        file.read_text()
        .replace("'standard', \"unet\"", "'standard', \"mlp\"")
        .replace("config.model.width, config.model.levels = 4, 2", "pass")
    )
    file.write_text(text)
    refused([f"--config={file}", f"--workdir={tmp_path / 'run'}"], "model 'mlp' gives no class scores for each pixel")


def test_a_network_of_pixels_is_refused_for_images(refused, tiny_config, tmp_path):
    file = tmp_path / "wrong.py"
    text = (
        tiny_config.read_text()
        .replace('"mlp"', '"unet"')
        .replace("config.model.hidden = (32,)", "config.model.levels = 2")
    )
    file.write_text(text)
    refused([f"--config={file}", f"--workdir={tmp_path / 'run'}"], "model 'unet' gives class scores for each pixel")
    file.write_text(text.replace("config.epochs = 2", "config.dice_threshold = 0.6"))
    refused([f"--config={file}", f"--workdir={tmp_path / 'run'}"], "attack_loss is 'slm'")
