"""Bad input that only the workdir can tell: one line, exit code 2, nothing written into it and nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_advtrain.training import workdir


@pytest.fixture
def run_folder(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.seed=1"], ["holds a run of another config: seed (0 there, 1 here). Give another --workdir"]),
        (["--config.defense.delta=0.01"], ["another config: defense.delta (0.02 there, 0.01 here)"]),
        (["--config.model.hidden=(8,)"], ["another config: model.hidden ([32] there, [8] here)"]),
        (["--config.optimizer.schedule=cosine"], ["another config: epochs (None there, 2 here)"]),
        (
            ["--config.data.validation_size=9", "--config.batch_size=64"],
            ["batch_size (32", "data.validation_size (None"],
        ),
        (["--config.epochs=1"], ["has trained 2 epochs, epochs is 1; it may only grow"]),
        (["--config.eval.epsilons_l2=(1.0,)"], ["holds another evaluation: epsilons_l2", "--mode=evaluate"]),
        (["--mode=evaluate", "--config.seed=1"], ["another config: seed"]),
        (["--mode=evaluate", "--config.eval.attacks=fgsm"], ["holds another evaluation: attacks", "eval.name=NAME"]),
        (["--mode=margins", "--config.margins.radii=(0.2, 0.1)"], ["margins.radii are (0.2, 0.1)"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_another_run(refused, unchanged, tiny_config, run_folder, arguments, expected):
    before = unchanged(run_folder)
    refused([f"--config={tiny_config}", f"--workdir={run_folder}", *arguments], *expected)
    after = unchanged(run_folder)
    assert {name for name in before if before[name] != after.get(name)} <= {".lock"}
    assert set(after) == set(before)


def test_results_whose_checkpoints_are_gone(refused, unchanged, tiny_config, run_folder):
    shutil.rmtree(run_folder / "checkpoints")
    before = unchanged(run_folder)
    refused(
        [f"--config={tiny_config}", f"--workdir={run_folder}"], "holds results (eval/best) of a run whose checkpoints"
    )
    after = unchanged(run_folder)
    assert {name for name in before if before[name] != after.get(name)} <= {".lock"}


STANDARD_CONFIG = """
from jax_advtrain.config import base

def get_config():
    config = base("standard", "mlp")
    config.data.name = "mine"
    config.data.path = {path!r}
    config.model.hidden = (8,)
    config.epochs = 1
    config.batch_size = 16
    config.monitor.attacks = ""
    config.eval.attacks = ""
    return config
"""


def test_a_training_set_that_changed(refused, unchanged, tmp_path, command):
    random = np.random.default_rng(0)
    arrays = {
        f"{split}_{name}": values
        for split, count in (("train", 48), ("validation", 16), ("test", 16))
        for name, values in (
            ("images", random.integers(0, 256, (count, 8, 8), np.uint8)),
            ("labels", np.arange(count) % 4),
        )
    }
    file = tmp_path / "mine.npz"
    np.savez(file, **arrays)
    config = tmp_path / "plain.py"
    config.write_text(STANDARD_CONFIG.format(path=str(file)))
    asked = [f"--config={config}", f"--workdir={tmp_path}/run"]
    assert command(*asked).code == 0
    arrays["train_labels"] = arrays["train_labels"][::-1]
    np.savez(file, **arrays)
    before = unchanged(tmp_path)
    for more in ([], ["--config.epochs=2"], ["--mode=evaluate"], ["--mode=margins"]):
        refused([*asked, *more], "holds a run on other data: ", "train.labels_sha256", "give the same data")
    after = unchanged(tmp_path)
    assert {name for name in before if before[name] != after.get(name)} <= {"run/.lock"} and set(after) == set(before)
    # A workdir that keeps no fingerprints of its own: the checkpoint's is as good.
    (tmp_path / "run/data.json").unlink()
    for more in (["--config.epochs=2"], ["--mode=evaluate"]):
        refused([*asked, *more], "was trained on other data (", "labels_sha256", "give the same data")


@pytest.mark.parametrize("mode", ["train", "evaluate", "margins"])
@pytest.mark.parametrize(
    ("hurt", "expected"),
    [
        (lambda folder: (folder / "config.json").write_text('{"seed": '), "config.json is not whole"),
        (lambda folder: (folder / "config.json").write_bytes(b"\x80\xff"), "config.json is not whole"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is not of this program"),
        (lambda folder: (folder / "config.json").write_text('{"seed": 3}'), "no config of this program"),
        (lambda folder: (folder / "data.json").write_text("{"), "data.json is not whole"),
    ],
)
def test_a_broken_workdir(refused, unchanged, tiny_config, run_folder, hurt, expected, mode):
    hurt(run_folder)
    before = unchanged(run_folder)
    refused(
        [f"--config={tiny_config}", f"--workdir={run_folder}", f"--mode={mode}"], expected, "give another --workdir"
    )
    assert unchanged(run_folder) == before


def test_checkpoints_without_a_config(refused, unchanged, tiny_config, run_folder):
    (run_folder / "config.json").unlink()
    before = unchanged(run_folder)
    asked = [f"--config={tiny_config}", f"--workdir={run_folder}"]
    refused(asked, "holds checkpoints and no config.json; give another --workdir")
    refused([*asked, "--mode=evaluate"], "holds no run")
    assert unchanged(run_folder) == before


def test_a_config_that_is_older_than_a_field_is_no_other_run(command, tiny_config, run_folder):
    kept = json.loads((run_folder / "config.json").read_text())
    del kept["ema_decay"], kept["one_logit"]
    (run_folder / "config.json").write_text(json.dumps(kept))
    assert command(f"--config={tiny_config}", f"--workdir={run_folder}").code == 0


@pytest.mark.parametrize("mode", ["evaluate", "margins"])
def test_nothing_to_evaluate(refused, unchanged, tiny_config, run_folder, tmp_path, mode):
    asked = [f"--config={tiny_config}", f"--mode={mode}"]
    refused([*asked, f"--workdir={tmp_path}/none"], "none holds no run; train one with --mode=train")
    assert not (tmp_path / "none").exists()
    shutil.rmtree(run_folder / "checkpoints/best")
    before = unchanged(run_folder)
    refused([*asked, f"--workdir={run_folder}"], "has no whole best checkpoint yet")
    shutil.rmtree(run_folder / "checkpoints")
    refused([*asked, f"--workdir={run_folder}", "--config.eval.checkpoint=last"], "has no whole last checkpoint yet")
    assert unchanged(run_folder) == {name: one for name, one in before.items() if not name.startswith("checkpoints")}


def test_evaluating_passes_over_a_broken_checkpoint_and_leaves_it(command, refused, unchanged, run_folder):
    """Evaluating never moves anything: the workdir may be that of a run at work."""
    asked = ["--mode=evaluate", f"--workdir={run_folder}", "--config.eval.name=clean", "--config.eval.attacks="]
    for file in (run_folder / "checkpoints/last/80").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    before = unchanged(run_folder / "checkpoints")
    answer = command(*asked, "--config.eval.checkpoint=last")
    assert answer.code == 0 and "checkpoints/last/80 cannot be read" in answer.out, answer
    assert "restored last checkpoint of step 40" in answer.out
    assert json.loads((run_folder / "eval/clean/results.json").read_text())["model"]["step"] == 40
    assert unchanged(run_folder / "checkpoints") == before
    for file in (run_folder / "checkpoints/best/80").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    before = unchanged(run_folder)
    refused([*asked, "--config.eval.checkpoint=best"], "has no whole best checkpoint yet")
    assert unchanged(run_folder) == before


# --- Two at once ---


def test_two_runs_in_one_workdir(refused, unchanged, tiny_config, run_folder):
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, pathlib; from jax_advtrain.training import workdir\n"
            "with workdir.locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()",
            str(run_folder),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before = unchanged(run_folder)
        asked = [f"--config={tiny_config}", f"--workdir={run_folder}", "--config.epochs=3"]
        refused(asked, f"{run_folder}: another run (process {holder.pid}) is at work there")
        assert unchanged(run_folder) == before
    finally:
        holder.communicate("")
    assert holder.returncode == 0
    with workdir.locked(run_folder):  # it fell with its holder
        pass


def test_a_lock_of_a_killed_process_is_no_obstacle(run_folder):
    (run_folder / ".lock").write_text("999999")
    with workdir.locked(run_folder):
        assert (run_folder / ".lock").read_text() == str(os.getpid())


def test_a_lock_leaves_no_empty_folder(tmp_path):
    with pytest.raises(RuntimeError), workdir.locked(tmp_path / "deep/new"):
        raise RuntimeError
    assert not (tmp_path / "deep/new").exists()
    with workdir.locked(tmp_path / "new"):
        (tmp_path / "new/file").touch()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {".lock", "file"}
