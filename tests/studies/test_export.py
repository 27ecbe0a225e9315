"""A checkpoint for others, and training that starts from one."""

import json
import shutil

import jax
import numpy as np
import pytest

import jax_advtrain
from jax_advtrain import config as configs
from jax_advtrain import data, devices
from jax_advtrain.evaluation import results
from jax_advtrain.training import experiment as experiments

ASKED = ("--mode=export", "--config.eval.checkpoint=last", "--config.eval.name=out")


@pytest.fixture
def run_folder(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def exported(command, run_folder):
    answer = command(*ASKED, f"--workdir={run_folder}")
    assert answer.code == 0 and "jax_advtrain.load(" in answer.out, answer
    return run_folder / "export/out"


def test_the_loaded_network_predicts_as_the_run_did(run_folder, exported, command):
    kept = configs.from_plain(json.loads((run_folder / "config.json").read_text()))
    test = data.load(kept.data).test
    predicted = np.asarray(jax_advtrain.load(exported)(np.asarray(data.to_unit(test.images)))).argmax(1)
    per_sample = results.read_per_sample(run_folder / "eval/last")
    np.testing.assert_array_equal(per_sample["id"], test.ids)
    right = np.mean(predicted == test.labels)
    clean = results.read_results(run_folder / "eval/last")["records"][0]
    assert right == clean["correct"] / clean["n"]
    # Once more into the same folder is refused, and changes nothing.
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    again = command(*ASKED, f"--workdir={run_folder}")
    assert again.code == 2 and "is there already" in again.err
    assert before == {path.name: path.read_bytes() for path in exported.iterdir()}


def test_training_starts_from_the_exported_weights(run_folder, exported, refused, tiny_config, tmp_path):
    config = configs.from_plain(json.loads((run_folder / "config.json").read_text()))
    config.init_from, config.seed = str(exported), 7
    fresh = experiments.build(config, devices.make_mesh())
    images = np.asarray(data.to_unit(fresh.splits.test.images[:16]))
    started = fresh.logits_fn(fresh.template)(images)
    np.testing.assert_array_equal(started, jax_advtrain.load(exported)(images))
    assert int(fresh.template.step) == 0
    # The margins begin anew.
    margins = np.asarray(jax.device_get(fresh.template.sample_state["margin"]))
    assert np.all(margins == margins.flat[0])

    # Where a checkpoint is there, the folder is not needed any more.
    shutil.move(exported, tmp_path / "away")
    experiments.build(config, devices.make_mesh(), is_start=False)
    shutil.move(tmp_path / "away", exported)

    asked = [f"--config={tiny_config}", f"--workdir={tmp_path / 'new'}"]
    refused([*asked, f"--config.init_from={tmp_path / 'nothing'}"], "is no folder; give a workdir")
    refused([*asked, f"--config.init_from={exported}", "--config.model.hidden=(8,)"], "of another model.hidden")
    # Where a run started from is part of what it is.
    asked = [f"--config={tiny_config}", f"--workdir={run_folder}", f"--config.init_from={exported}"]
    refused(asked, "holds a run of another config: init_from")
    assert not (tmp_path / "new").exists()
