"""The command of the README on ImageNet, on a tiny one in its exact layout: prepared, streamed, trained, evaluated."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from imagenet_files import imagenet

from jax_advtrain.data import prepare
from jax_advtrain.training import workdir

CONFIG = Path(__file__).parents[2] / "configs" / "imagenet_ima.py"
SMALL = (
    *("--config.data.validation_size=3", "--config.data.num_test=4", "--config.batch_size=8"),
    *("--config.data.image_size=32", "--config.data.resize=36", "--config.eval.after_training=last"),
    *("--config.defense.num_steps=2", "--config.monitor.attacks=pgd:num_steps=2", "--config.monitor.every=1"),
    *("--config.eval.attacks=pgd:num_steps=2", "--config.eval.epsilons_linf=(0.05,)", "--config.eval.figures=1"),
)
SMALL_NETWORK = f"""
import runpy

def get_config():
    config = runpy.run_path({str(CONFIG)!r})["get_config"]()
    config.model = {{"name": "small_cnn"}}
    return config
"""
SPOILT = "n01440764_7.JPEG"

pytestmark = pytest.mark.slow


def prepared(folder: Path, **more) -> Path:
    imagenet(folder / "downloads", images_per_class=4, **more)
    arguments = ["--name=imagenet2012", f"--data_dir={folder / 'tfds'}", f"--manual_dir={folder / 'downloads'}"]
    assert prepare.main(arguments) == 0
    return folder / "tfds"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def config(tmp_path) -> Path:
    """The shipped config, with a network that compiles in seconds."""
    (tmp_path / "small.py").write_text(SMALL_NETWORK)
    return tmp_path / "small.py"


@pytest.fixture
def train(command, config):
    def run(data_dir: Path, folder: Path, *flags: str):
        return command(
            f"--config={config}", f"--config.data.data_dir={data_dir}", f"--workdir={folder}", *SMALL, *flags
        )

    return run


def state(folder: Path) -> list[np.ndarray]:
    step = workdir.newest_step(folder, "last")
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore((folder / "checkpoints" / "last" / str(step) / "state").absolute())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


def test_a_streamed_run_resumes_bit_for_bit_with_other_workers(train, data_dir, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    answer = train(data_dir, whole, "--config.epochs=3", "--config.data.num_workers=2")
    assert answer.code == 0, answer.err
    assert (whole / "eval" / "last" / "results.json").exists()
    assert train(data_dir, cut, "--config.epochs=2", "--config.data.num_workers=0").code == 0
    assert train(data_dir, cut, "--config.epochs=3", "--config.data.num_workers=3").code == 0
    for one, other in zip(state(whole), state(cut), strict=True):
        np.testing.assert_array_equal(one, other)
    lines = [json.loads(text) for text in (whole / workdir.METRICS_NAME).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3] and not any("unread" in line for line in lines)
    prints = workdir.read_fingerprints(whole)
    assert prints is not None and prints["train"]["count"] == 13 and prints["train"]["name"] == "imagenet2012"


def test_a_bad_record_ends_the_run_with_one_line_or_is_left_out(train, tmp_path, caplog):
    data_dir = prepared(tmp_path, spoilt={SPOILT: b"\xff\xd8 no image"})
    fixed = ("--config.epochs=1", "--config.data.num_workers=1", "--config.data.validation_size=0")
    fatal = train(data_dir, tmp_path / "fatal", *fixed)
    assert fatal.code == 2 and fatal.err.splitlines()[-1].startswith("error: imagenet2012, split 'train': image of id ")
    assert "cannot be decoded" in fatal.err and "data.on_bad_record='skip'" in fatal.err
    assert "Traceback" not in fatal.err
    skipping = train(data_dir, tmp_path / "fatal", *fixed, "--config.data.on_bad_record=skip")  # as the line says
    assert skipping.code == 0, skipping.err
    assert "cannot be decoded" in caplog.text
    (line,) = [json.loads(text) for text in (tmp_path / "fatal" / "metrics.jsonl").read_text().splitlines()]
    assert line["unread"] == 1


def test_training_images_cannot_be_evaluated(refused, config, data_dir, tmp_path):
    flags = (f"--config={config}", f"--config.data.data_dir={data_dir}", f"--workdir={tmp_path / 'run'}", *SMALL)
    refused([*flags, "--config.eval.split=train"], "eval.split is 'train', which is streamed for training only")
    assert not (tmp_path / "run").exists()
