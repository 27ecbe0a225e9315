"""Homing without training: the config of a run without a class, and what becomes of an earlier answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jax_advtrain import command_line
from jax_advtrain.config import base
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation.classwise import files, home
from jax_advtrain.studies import homing, opening
from jax_advtrain.training.display import Display


@pytest.mark.parametrize(
    ("field", "given", "left"),
    [
        ("exclude_classes", None, "0123456789"),
        ("exclude_classes", "", "0123456789"),
        ("exclude_classes", 3, "012456789"),
        ("exclude_classes", 0, "123456789"),
        ("exclude_classes", (0, "3"), "12456789"),
        ("exclude_classes", "3, 5", "01246789"),
        ("classes", (0, 7, "8"), "078"),
    ],
)
def test_a_class_is_left_out_beside_those_that_the_run_leaves_out(tiny_config, tmp_path, field, given, left):
    config: Any = command_line.read_config(str(tiny_config))
    with config.unlocked(), config.ignore_type():
        config.data[field] = given
    experiment = opening.set_up(config, tmp_path, is_training=False)
    data = opening.samples(experiment, "analysis", config)
    assert data.class_names == tuple(left)
    reduced = homing._reduced(config, experiment, data, "8")
    without = opening.set_up(reduced, tmp_path / "without")
    assert without.splits.train.class_names == tuple(name for name in left if name != "8")


def test_other_first_samples_without_the_class_are_refused(tmp_path):
    """Classes a and b by turns, then c: in class order as a whole only without a."""
    labels = np.concatenate([np.arange(80) % 2, np.full(40, 2)])
    images = np.arange(120, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    arrays = {f"{part}_{of}": got for part in ("train", "test") for of, got in (("images", images), ("labels", labels))}
    np.savez(tmp_path / "partly.npz", **arrays, class_names=list("abc"))
    config: Any = base("standard", "mlp")
    config.data.name, config.data.path, config.data.validation_size = "partly", str(tmp_path / "partly.npz"), 0
    config.analysis.num_samples = 60
    experiment = opening.set_up(config, tmp_path, is_training=False)
    data = opening.samples(experiment, "analysis", config)
    for name, field in (("a", "analysis.num_samples"), ("c", "")):
        reduced = opening.set_up(homing._reduced(config, experiment, data, name), tmp_path / name, is_training=False)
        if not field:
            homing._refuse_other_samples(experiment, reduced, data, config, name)
            continue
        with pytest.raises(ConfigError, match=field):
            homing._refuse_other_samples(experiment, reduced, data, config, name)


def answer(folder: Path, name: str, *, step: int = 90, checkpoint: str = "best", epsilon: float = 0.1) -> list[str]:
    """Writes the answer for a class; returns the classes that the file then holds."""
    one = home.Home(name, 50, 10, 4, 0.4, 0.17, 0.69, 20, 10, 0.5, {0: (10, 4)}, {2: 4})
    model = {"checkpoint": checkpoint, "step": step}
    content = home.content([one], tuple("abc"), attack="worst-of", norm="linf", epsilon=epsilon, split="test", **model)
    written = homing._write(folder / "homing", content, Display())
    assert files.read(folder / "homing") == written
    return [one["left_out"] for one in written["classes"]]


@pytest.mark.parametrize("other", [{"step": 120}, {"checkpoint": "last"}, {"epsilon": 0.2}], ids=str)
def test_classes_of_another_model_are_moved_aside(tmp_path, capsys, other):
    aside = "homing.step-90"
    (tmp_path / "homing/b").mkdir(parents=True)  # where the run without b lies
    assert answer(tmp_path, "b") == ["b"]
    assert answer(tmp_path, "a") == ["a", "b"]  # of the same model
    assert not list(tmp_path.glob("*.step-*"))
    assert answer(tmp_path, "c", **other) == ["c"]
    assert [one["left_out"] for one in files.read(tmp_path / aside)["classes"]] == ["a", "b"]
    assert (tmp_path / aside / "homing.png").exists() and (tmp_path / "homing/homing.png").exists()
    assert (tmp_path / "homing/b").is_dir()
    assert aside in capsys.readouterr().out.replace("\n", "")
    assert answer(tmp_path, "a", **other) == ["a", "c"]
    assert answer(tmp_path, "a") == ["a"] and len(list(tmp_path.glob("*.step-*"))) == 2


def test_an_older_answer_is_read_and_is_of_an_unknown_step(tmp_path):
    answer(tmp_path, "b")
    content = files.read(tmp_path / "homing")
    del content["step"], content["checkpoint"]
    (tmp_path / "homing/classwise.json").write_text(json.dumps(content))
    assert files.read(tmp_path / "homing") == content
    assert answer(tmp_path, "a") == ["a"]
    assert files.read(tmp_path / "homing.step-unknown") == content
