"""Diagnosis, comparison and homing of real runs on digits; and what is refused before any attack."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jax_advtrain import config as configs
from jax_advtrain.evaluation import results
from jax_advtrain.evaluation.classwise import files
from jax_advtrain.studies import comparing

QUICK = (
    "--config.analysis.attacks=fgsm, pgd:num_steps=3",
    "--config.analysis.temperatures=(0.2,)",
    "--config.analysis.temperature_steps=3",
    "--config.analysis.resamples=50",
    "--config.analysis.num_samples=200",
    "--config.analysis.homing_attacks=pgd:num_steps=3",
)
FIGURES = ("accuracy", "flow", "gains", "consistency", "confidence", "temperature", "weight_norm")


@pytest.fixture
def run_folder(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def log_classes(folder: Path) -> None:
    """Per-class counts in the log of epochs, as the monitor writes them."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        counts = {"clean": [17] * 10, "robust": [*range(3, 13)]}
        line["validation"]["per_class"] = {what: {"n": [18] * 10, "correct": right} for what, right in counts.items()}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def keep_correction(folder: Path, split: str = "validation") -> None:
    """A correction of the last checkpoint, called mine: class 3 for nearly everything."""
    step = max(int(path.name) for path in (folder / "checkpoints/last").iterdir() if path.name.isdigit())
    settings = {"checkpoint": "last", "step": step, "split": split}
    correction = [30.0 * (number == 3) for number in range(10)]
    (folder / "corrections").mkdir()
    (folder / "corrections/mine.json").write_text(json.dumps({"settings": settings, "correction": correction}))


@pytest.mark.slow
def test_diagnose(command, refused, unchanged, run_folder):
    log_classes(run_folder)
    asked = ["--mode=diagnose", f"--workdir={run_folder}", *QUICK]
    answer = command(*asked)
    assert answer.code == 0, answer
    target = run_folder / "diagnosis"
    found = files.read(target)
    assert found["data"]["name"] == "digits" and [one["attack"] for one in found["attacks"]] == ["fgsm-ce", "pgd-3-ce"]
    assert found["accuracy"][0]["n"] == 200 and found["weight_norm"]["why_not"] is None
    assert found["epochs"]["epochs"] == [1, 2] and found["epochs"]["why_not"] is None
    for name in (*FIGURES, "epochs"):
        assert (target / f"{name}.png").stat().st_size > 1000, name
    for line in found["verdict"]:
        assert f"- {line}" in answer.out.splitlines()
    # The same samples are right as in the run's own evaluation of that checkpoint, which took all of the split.
    per_sample = results.read_per_sample(run_folder / "eval/best")
    arrays = files.read_arrays(target)
    assert arrays["id"].tolist() == per_sample["id"][:200].tolist()
    assert (arrays["clean_prediction"] == per_sample["clean_prediction"][:200]).all()

    before = unchanged(run_folder)
    again = command(*asked)
    assert again.code == 0 and "diagnosis holds this diagnosis already" in again.out
    assert unchanged(run_folder) == before
    refused([*asked, "--config.analysis.split=validation"], "diagnosis holds another diagnosis: split", "NAME")
    assert unchanged(run_folder) == before
    # A figure that is missing is drawn again, and a diagnosis of another name goes beside.
    (target / "flow.png").unlink()
    (target / "flow.csv").unlink()
    assert command(*asked).code == 0 and (target / "flow.png").exists()
    named = command(*asked[:2], *QUICK[1:], "--config.analysis.attacks=fgsm", "--config.analysis.name=short")
    assert named.code == 0 and files.read(run_folder / "diagnosis-short")["gains"] == []


@pytest.mark.slow
def test_compare(command, refused, unchanged, tiny_config, run_folder, tmp_path):
    other = tmp_path / "other"
    assert command(f"--config={tiny_config}", f"--workdir={other}", "--config.seed=1").code == 0
    asked = ["--mode=diagnose", f"--workdirs={run_folder},{other}", *QUICK]
    # The seeds carve the same test set; another class is left out of neither.
    answer = command(*asked)
    assert answer.code == 0, answer
    found = files.read(tmp_path / "comparison")
    assert [(one["name"], one["runs"]) for one in found["groups"]] == [("ima", ["run", "other"])]
    assert found["pairs"] == [] and np.array(found["consistency"]["spearman"]).shape == (2, 2)
    assert (tmp_path / "comparison/accuracy.png").exists() and (other / "diagnosis/classwise.json").exists()
    before = unchanged(tmp_path)
    again = command(*asked)
    assert again.code == 0 and "comparison holds this comparison already" in again.out
    assert unchanged(tmp_path) == before
    refused([*asked, "--config.analysis.epsilon=0.01"], "comparison holds another comparison: epsilon")
    refused([*asked, f"--workdir={other}"], "is the workdir of a run")
    # A correction is a part of the predictor, of each run its own, and of what the comparison is called the same by.
    for folder in (run_folder, other):
        keep_correction(folder, "test")
    asked = [*asked, "--config.eval.correction=mine", "--config.eval.checkpoint=last"]
    refused([*asked, "--config.analysis.name=mine"], "comparison holds another comparison: checkpoint")
    asked = [*asked, "--config.analysis.name=mine", f"--workdir={tmp_path / 'corrected'}"]
    assert command(*asked).code == 0
    assert json.loads((tmp_path / "corrected/settings.json").read_text())["settings"]["correction"] == "mine"
    for folder in (run_folder, other):
        assert json.loads((folder / "diagnosis-mine/settings.json").read_text())["correction"] == "mine"
        predicted = files.read_arrays(folder / "diagnosis-mine")["clean_prediction"]
        assert np.mean(predicted == 3) > 0.9 > np.mean(files.read_arrays(folder / "diagnosis")["clean_prediction"] == 3)
    warned = [line for line in files.read(tmp_path / "corrected")["verdict"] if line.startswith("warning: ")]
    assert [line.partition(" was fitted on this split, test")[0] for line in warned] == [
        f"warning: {name}: correction 'mine'" for name in ("run", "other")
    ]
    refused([*asked, "--config.eval.correction="], "correction ('mine' there, '' here)")


@pytest.mark.slow
def test_homing(command, refused, run_folder):
    asked = ["--mode=homing", f"--workdir={run_folder}", *QUICK]
    answer = command(*asked, "--config.analysis.leave_out=8")
    assert answer.code == 0, answer
    found = files.read(run_folder / "homing")
    (eight,) = found["classes"]
    model = results.read_results(run_folder / "eval/homing")["model"]
    assert (found["checkpoint"], found["step"]) == (model["checkpoint"], model["step"])
    full = results.read_per_sample(run_folder / "eval/homing")
    without = results.read_per_sample(run_folder / "homing/8/eval/homing")
    assert set(without["id"]) == set(full["id"][full["label"] != 8])
    key = next(name for name in full if name.startswith("prediction/"))
    right = full["clean_prediction"] == full["label"]
    into = right & (full["label"] != 8) & (full[key] == 8)
    assert eight["attacked_into"] == into.sum()
    kept = np.array([*range(8), 9])
    fell = {
        one
        for one, label, clean, attacked in zip(
            without["id"], kept[without["label"]], kept[without["clean_prediction"]], kept[without[key]], strict=True
        )
        if clean != label or attacked != label
    }
    assert eight["still"] == len(fell & set(full["id"][into]))
    assert any(line.startswith("- 8: ") for line in answer.out.splitlines())
    again = command(*asked, "--config.analysis.leave_out=8")
    assert again.code == 0 and "this run is complete" in again.out
    # Another class adds its part.
    assert command(*asked, "--config.analysis.leave_out=3").code == 0
    found = files.read(run_folder / "homing")
    assert [one["left_out"] for one in found["classes"]] == ["3", "8"] and found["classes"][1] == eight
    refused(
        [*asked, "--config.analysis.leave_out=8", "--config.analysis.homing_attacks=fgsm"],
        "holds another homing: attacks",
        "--config.analysis.name=NAME",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--mode=diagnose", "--config.analysis.attacks=fgsm, pgdd"], ["analysis.attacks", "did you mean 'pgd'"]),
        (["--mode=diagnose", "--config.analysis.attacks="], ["analysis.attacks is empty"]),
        (["--mode=diagnose", "--config.analysis.norm=l2"], ["give analysis.epsilon too"]),
        (["--mode=diagnose", "--config.analysis.epsilon=-1.0"], ["analysis.epsilon holds -1.0"]),
        (["--mode=diagnose", "--config.analysis.temperatures=(0.0,)"], ["analysis.temperatures holds 0.0"]),
        (["--mode=diagnose", "--config.analysis.name=a/b"], ["analysis.name is 'a/b'"]),
        (["--mode=diagnose", "--config.analysis.superclasses=none.json"], ["none.json", "No such file"]),
        (["--mode=diagnose", "--config.analysis.split=tset"], ["analysis.split", "did you mean 'test'"]),
        (["--mode=homing"], ["needs --config.analysis.leave_out=CLASS, or all"]),
        (["--mode=homing", "--config.analysis.leave_out=88"], ["class '88' is not known (did you mean '8'?)"]),
        (["--mode=homing", "--workdirs=a,b"], ["--workdirs compares runs in --mode=diagnose"]),
    ],
    ids=lambda value: " ".join(value)[:70],
)
def test_bad_input(refused, unchanged, finished_run, arguments, expected):
    before = unchanged(finished_run)
    refused([*arguments, f"--workdir={finished_run}"], *expected)
    assert unchanged(finished_run) == before


def test_comparisons_that_cannot_be(refused, run_folder, tmp_path):
    refused(["--mode=diagnose", f"--workdirs={run_folder}"], "needs two folders or more")
    refused(["--mode=diagnose", f"--workdirs={run_folder},{run_folder}/"], "each once")
    refused(["--mode=diagnose", f"--workdirs={run_folder},{tmp_path / 'none'}"], "none holds no run")

    def changed(change) -> Path:
        folder = Path(shutil.copytree(run_folder, tmp_path / "changed", dirs_exist_ok=True))
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "data.json").unlink(missing_ok=True)
        return folder

    for change, expected in (
        (lambda config: config["data"].update(exclude_classes=["8"]), "has 10 classes"),
        (lambda config: config["data"].update(num_test=30), "compare runs on the same samples"),
        (lambda config: config["monitor"].update(epsilon=0.01), "the runs' radii differ"),
    ):
        refused(["--mode=diagnose", f"--workdirs={run_folder},{changed(change)}"], expected)
        shutil.rmtree(tmp_path / "changed")
    both = ["--mode=diagnose", f"--workdirs={run_folder},{changed(lambda config: None)}"]
    refused(both, f"{run_folder} and {tmp_path / 'changed'} are both seed 0 of ima; give each seed once")
    changed(lambda config: config.update(seed=1))
    keep_correction(run_folder)
    refused([*both, "--config.eval.correction=mine"], f"{tmp_path / 'changed'} has no such correction (it has none)")
    assert not (run_folder / "diagnosis").exists()


def test_what_makes_runs_seeds_of_one_method(run_folder):
    kept = json.loads((run_folder / "config.json").read_text())

    def called(**changes) -> list[str]:
        return comparing._methods([configs.from_plain(kept), configs.from_plain({**kept, "seed": 1, **changes})])

    assert called() == ["ima", "ima"]
    assert called(epochs=8) == ["ima (epochs=2)", "ima (epochs=8)"]
    assert called(patience=3) == ["ima (patience=None)", "ima (patience=3)"]
    assert called(checkpoint={"best_by": "sum"}) == ["ima (checkpoint.best_by=mean)", "ima (checkpoint.best_by=sum)"]
    assert called(checkpoint={"keep": 5}) == ["ima", "ima"]
    assert called(monitor={**kept["monitor"], "every": 2}) == ["ima (monitor.every=1)", "ima (monitor.every=2)"]
    assert called(monitor={**kept["monitor"], "norm": "linf"}) == ["ima", "ima"]  # which None stands for


def test_no_checkpoint(refused, run_folder):
    shutil.rmtree(run_folder / "checkpoints")
    (run_folder / "checkpoints").mkdir()
    refused(["--mode=diagnose", f"--workdir={run_folder}"], "has no whole best checkpoint yet")
    refused(["--mode=homing", f"--workdir={run_folder}", "--config.analysis.leave_out=8"], "no whole best checkpoint")
