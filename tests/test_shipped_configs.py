"""Every config in configs/ is valid, and its network takes the images of its data set; nothing is computed."""

import importlib.util
from pathlib import Path

import pytest

from jax_advtrain.config_check import validate
from jax_advtrain.defenses import DEFENSES
from jax_advtrain.studies import grid

ALL = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
GRIDS = [file for file in ALL if file.name.startswith("compare_")]
FILES = [file for file in ALL if file not in GRIDS]


def load(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_valid_and_says_what_it_is(file):
    module = load(file)
    config = module.get_config()
    validate(config, 1)
    assert module.__doc__ and config.data.name in ("digits", "moons", *_names_of(file))
    assert config.defense.name in DEFENSES


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_every_run_of_a_grid_is_valid(file):
    module = load(file)
    asked = module.get_config()
    runs = grid.runs(asked, Path("nowhere"))
    for run in runs:
        for config in grid.evaluations(run, asked):
            validate(config, 1)
    assert module.__doc__ and {run.method for run in runs} == set(asked.names)
    seeds = [sum(run.method == name for run in runs) for name in asked.names]
    several = {
        "cifar10": [1] * 4,
        "digits": [1, 1, 1, 3],
        "mnist": [3] * 5 + [1] * 8,
        "mnist_worst_class": [3] * 8,
        "pneumonia": [3] * 5 + [1] * 8,
    }
    assert seeds == several[file.stem.partition("_")[2]]


def _names_of(file: Path) -> tuple[str, ...]:
    """TFDS names that start as the file does: svhn_ima.py trains on svhn_cropped."""
    first = file.stem.split("_")[0]
    return (first, f"{first}_cropped", f"{first}2012")


def test_each_set_has_both_methods():
    stems = {file.stem for file in FILES}
    assert {f"mnist_{method}" for method in DEFENSES} <= stems
    for name in ("mnist", "cifar10", "cifar100", "svhn", "stl10", "imagenet"):
        assert {f"{name}_ima", f"{name}_pgd_at"} <= stems
