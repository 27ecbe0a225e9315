"""--mode=correct on a real small run: what is fitted is kept, and is what evaluation and diagnosis then attack."""

import html
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jax_advtrain import config as configs
from jax_advtrain.evaluation import results
from jax_advtrain.evaluation.classwise import files
from jax_advtrain.studies import correcting, opening
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display

ATTACKED = ["--config.correction.attack=pgd:num_steps=5", "--config.correction.epsilon=0.1"]
EVALUATED = [
    "--config.eval.attacks=pgd:num_steps=5",
    "--config.eval.epsilons_linf=(0.1,)",
    "--config.eval.epsilons_l2=()",
]


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.mark.slow
def test_a_correction_is_fitted_once_and_then_part_of_the_predictor(
    copied_run, command, refused, unchanged, tiny_config
):
    run = [f"--workdir={copied_run}"]
    before = unchanged(copied_run)
    refused(["--mode=correct", *run, "--config.correction.attack=pgdd"], "did you mean 'pgd'?")
    refused(["--mode=correct", *run, "--config.correction.attack=pgd, fgsm"], "correction.attack names 2 attacks")
    refused(["--mode=correct", *run, "--config.correction.most_loss=2"], "correction.most_loss is 2")
    refused(["--mode=correct", *run, "--config.correction.name=a/b"], "give one file name")
    refused(["--mode=correct", *run, "--config.correction.norm=l2"], "give correction.epsilon too")
    refused(["--mode=evaluate", *run, "--config.eval.correction=none"], "no such correction (it has none)")
    refused([f"--config={tiny_config}", *run, "--config.eval.correction=none"], "eval.correction is 'none'; it is for")
    assert unchanged(copied_run) == before

    answer = command("--mode=correct", *run, *ATTACKED, "--config.correction.most_loss=0.5")
    assert answer.code == 0, answer
    kept = json.loads((copied_run / "corrections/correction.json").read_text())
    first, chosen = kept["tried"][0], max(kept["tried"], key=lambda one: (one["worst"], one["mean"]))
    assert first["correction"] == [0] * 10 and len(kept["tried"]) == 4
    assert chosen["correction"] == kept["correction"] and chosen["worst"] > first["worst"]
    assert f"worst class {first['worst']:.3f} -> {chosen['worst']:.3f}" in answer.out

    before = unchanged(copied_run)
    assert (
        "holds this correction already"
        in command("--mode=correct", *run, *ATTACKED, "--config.correction.most_loss=0.5").out
    )
    refused(["--mode=correct", *run, *ATTACKED], "holds another correction: most_loss (0.5 there")
    refused(["--mode=evaluate", *run, "--config.eval.correction=corection"], "it has correction")
    assert unchanged(copied_run) == before

    for more in ("--config.eval.name=plain", "--config.eval.correction=correction"):
        assert command("--mode=evaluate", *run, *EVALUATED, more).code == 0
    plain, corrected = (results.read_results(copied_run / "eval" / name) for name in ("plain", "best-correction"))
    assert corrected["model"]["correction"] == "correction" and "correction" not in plain["model"]
    before, after = (
        results.read_per_sample(copied_run / "eval" / name)["clean_prediction"] for name in ("plain", "best-correction")
    )
    assert (before != after).any()


@pytest.mark.slow
def test_a_correction_is_called_flattered_on_the_split_that_it_was_fitted_on(copied_run, command):
    run = [f"--workdir={copied_run}"]
    few = ["num_samples=50", "rounds=1", "name=leak", "split=test"]
    fit = ["--mode=correct", *run, *ATTACKED, *(f"--config.correction.{one}" for one in few)]
    assert command(*fit).code == 0
    warning = "correction 'leak' was fitted on this split, test, which flatters it"
    diagnosed = [
        "--config.analysis.attacks=fgsm",
        "--config.analysis.temperatures=()",
        "--config.analysis.resamples=20",
    ]
    corrected = "--config.eval.correction=leak"
    for split, leaks in (("test", True), ("validation", False)):
        where = [f"--config.eval.split={split}", f"--config.eval.name={split}"]
        answer = command("--mode=evaluate", *run, *EVALUATED, corrected, *where)
        assert answer.code == 0 and (f"warning: {warning}" in " ".join(answer.out.split())) == leaks, answer
        told = results.read_results(copied_run / f"eval/{split}")["warnings"]
        assert sum(line.startswith(warning) for line in told) == leaks
        where = [f"--config.analysis.split={split}", f"--config.analysis.name={split}"]
        answer = command("--mode=diagnose", *run, *diagnosed, corrected, *where)
        verdict = files.read(copied_run / f"diagnosis-{split}")["verdict"]
        assert answer.code == 0 and any(line.startswith(f"warning: {warning}") for line in verdict) == leaks, answer
        assert all(f"- {line}" in answer.out.splitlines() for line in verdict)
    assert warning in html.unescape((copied_run / "report.html").read_text("utf-8"))


def test_the_predictor_adds_the_kept_numbers_and_refuses_those_of_another_step(copied_run):
    kept_config = workdir.read_config(copied_run)
    assert kept_config is not None
    config: Any = configs.from_plain(kept_config)
    experiment, state = opening.load_run(config, copied_run, "best", Display())
    images = jax.numpy.asarray(experiment.splits.test.images[:4]) / 255
    numbers = np.arange(10, dtype=np.float32)
    kept = {"settings": {"checkpoint": "best", "step": int(state.step)}, "correction": numbers.tolist()}
    workdir.write_json(copied_run / "corrections/mine.json", kept)
    with config.unlocked():
        config.eval.correction = "mine"
    found = correcting.predictor(config, copied_run, experiment, state)(images)
    np.testing.assert_allclose(found, experiment.logits_fn(state)(images) + numbers, rtol=1e-6)
    kept["settings"]["step"] += 1
    workdir.write_json(copied_run / "corrections/mine.json", kept)
    with pytest.raises(Exception, match="was fitted to the best checkpoint of step"):
        correcting.predictor(config, copied_run, experiment, state)
