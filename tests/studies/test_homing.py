"""Homing without training: the config of a run without a class."""

from typing import Any

import pytest

from jax_advtrain import command_line
from jax_advtrain.studies import homing, opening


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
