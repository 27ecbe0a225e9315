"""Training that starts from another run: from its workdir, one of its checkpoints, or its averaged weights."""

import json
import shutil

import jax
import numpy as np
import pytest

import jax_advtrain
from jax_advtrain import config as configs
from jax_advtrain import devices
from jax_advtrain.models.weights_flat import flat
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training.checkpoints import read_weights

QUICK = ("--config.eval.attacks=noise", "--config.eval.epsilons_l2=()", "--config.eval.num_samples=20")


@pytest.fixture
def run_folder(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def start(run_folder):
    """start(place) -> the experiment of a run with another seed that starts there."""

    def build(place):
        config = configs.from_plain(json.loads((run_folder / "config.json").read_text()))
        config.init_from, config.seed = str(place), 7
        return experiments.build(config, devices.make_mesh())

    return build


def assert_same_weights(experiment, checkpoint):
    _, weights = read_weights(checkpoint)
    found, expected = flat(experiment.template.params), flat(weights["params"])
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def checkpoint_of(folder, which):
    return max((folder / "checkpoints" / which).iterdir(), key=lambda path: int(path.name))


@pytest.mark.slow
def test_what_a_place_stands_for(run_folder, start):
    best, last = checkpoint_of(run_folder, "best"), checkpoint_of(run_folder, "last")
    for place, expected in (
        (run_folder, best),
        (run_folder / "checkpoints", best),
        (best.parent, best),
        (last.parent, last),
        (last, last),
    ):
        experiment = start(place)
        assert experiment.started_from == expected
        assert_same_weights(experiment, expected)
    assert int(experiment.template.step) == 0
    assert jax.tree.leaves(experiment.template.opt_state)[0] == 0
    margins = np.asarray(experiment.template.sample_state["margin"])
    np.testing.assert_array_equal(margins, np.full_like(margins, experiment.recipe.defense.delta))
    shutil.rmtree(best.parent)
    assert start(run_folder).started_from == last


@pytest.mark.slow
def test_a_checkpoint_is_what_its_export_is(run_folder, start, command):
    asked = ("--mode=export", f"--workdir={run_folder}", "--config.eval.checkpoint=last", "--config.eval.name=out")
    assert command(*asked).code == 0
    images = np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype(np.float32)
    expected = jax_advtrain.load(run_folder / "export/out")(images)
    for place in (run_folder / "checkpoints/last", run_folder / "export/out"):
        experiment = start(place)
        np.testing.assert_array_equal(experiment.logits_fn(experiment.template)(images), expected)


@pytest.mark.slow
def test_averaged_weights_are_taken(command, tiny_config, tmp_path, start):
    asked = [f"--config={tiny_config}", f"--workdir={tmp_path / 'averaged'}", "--config.ema_decay=0.9"]
    assert command(*asked, *QUICK, "--config.epochs=1").code == 0
    checkpoint = checkpoint_of(tmp_path / "averaged", "last")
    experiment = start(tmp_path / "averaged" / "checkpoints" / "last")
    assert_same_weights(experiment, checkpoint)
    import orbax.checkpoint as ocp

    whole = ocp.StandardCheckpointer().restore(checkpoint / "state")
    found = flat(experiment.template.params)
    for name, leaf in flat(whole["averaged"]).items():
        np.testing.assert_array_equal(found[name], leaf)
    assert any(not np.array_equal(found[name], leaf) for name, leaf in flat(whole["params"]).items())


@pytest.mark.slow
def test_resuming_does_not_look_there(command, refused, run_folder, tiny_config, tmp_path):
    asked = [f"--config={tiny_config}", f"--workdir={tmp_path / 'new'}", f"--config.init_from={run_folder}"]
    asked += QUICK
    answer = command(*asked, "--config.epochs=1")
    assert answer.code == 0 and f"starts from the weights of {checkpoint_of(run_folder, 'best')}" in answer.out
    shutil.rmtree(run_folder)
    answer = command(*asked, "--config.epochs=2")
    assert answer.code == 0 and "starts from" not in answer.out
    # Without a whole checkpoint it would begin at random weights, which is not what the run is.
    for step in (tmp_path / "new" / "checkpoints" / "last").iterdir():
        shutil.rmtree(step / "state")
    refused([*asked, "--config.epochs=3"], "no checkpoint in", "can be read", "init_from")


@pytest.mark.slow
def test_what_is_refused(refused, run_folder, finished_run, tiny_config, tmp_path, unchanged):
    asked = [f"--config={tiny_config}", f"--workdir={tmp_path / 'new'}"]
    there = f"--config.init_from={run_folder}"
    refused([*asked, there, "--config.model.hidden=(8,)"], "of another model.hidden: (32,) there, (8,) here")
    other = tmp_path / "other.py"
    other.write_text(tiny_config.read_text().replace("return", "config.model.mean = 0.5\n    return"))
    refused([f"--config={other}", *asked[1:], there], "of another model.mean: 0.0 there, 0.5 here")
    other.write_text(tiny_config.read_text().replace('"mlp"', '"small_cnn"'))
    refused([f"--config={other}", *asked[1:], there], "of another network: 'mlp' there, 'small_cnn' here")
    refused([*asked, there, "--config.data.exclude_classes=3"], "of another number of outputs: 10 there, 9 here")
    refused([*asked, there, "--config.data.image_size=9"], "of another image shape: (8, 8, 1) there, (9, 9, 1) here")
    refused([*asked, f"--config.init_from={tmp_path}"], "holds no weights", "a workdir, a checkpoint")
    refused([*asked, f"--config.init_from={run_folder / 'checkpoints/broken'}"], "has no checkpoint yet")
    refused([*asked, f"--config.init_from={run_folder / 'checkpoints/last/9999'}"], "is no folder")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    refused([*asked, f"--config.init_from={tmp_path / 'empty'}"], "has no checkpoint yet")

    best = checkpoint_of(run_folder, "best")
    metadata = best / "saved" / "metadata"
    whole = json.loads(metadata.read_text())
    whole["network"]["class_names"][0] = "nought"
    metadata.write_text(json.dumps(whole))
    refused([*asked, there], "of another list of class names: ('nought', ")
    del whole["network"]
    metadata.write_text(json.dumps(whole))
    refused([*asked, there], "is of an earlier version", "--mode=export")
    shutil.rmtree(best / "state")
    before = unchanged(run_folder)
    refused([*asked, there], f"checkpoint {best} cannot be read")
    assert unchanged(run_folder) == before and not (tmp_path / "new").exists()
