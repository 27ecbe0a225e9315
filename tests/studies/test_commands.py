"""The commands on the report page, read back by the command line: they make again what the workdir holds."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from jax_advtrain import command_line
from jax_advtrain import config as configs
from jax_advtrain.studies import commands, reporting
from jax_advtrain.training import workdir

FITTED = {
    **{"attack": "pgd:num_steps=3", "norm": "linf", "epsilon": 0.2, "split": "test", "num_samples": 50, "rounds": 2},
    **{"most_loss": 0.05, "checkpoint": "last", "seed": 0, "step": 90},
}


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy of the finished run; what is made again is read beside it."""
    shutil.copytree(finished_run, tmp_path / "run-again")
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def evaluated(run: Path, name: str, correction: str) -> None:
    """An evaluation of that name, as if it were of the corrected model."""
    place = run / "eval" / name
    shutil.copytree(run / "eval/last", place)
    settings = json.loads((place / "settings.json").read_text()) | {"correction": correction}
    (place / "settings.json").write_text(json.dumps(settings))


def told(run: Path) -> list[Any]:
    """The page's command lines after the one that trains, read."""
    held = reporting.holdings(configs.from_plain(workdir.read_config(run) or {}), run)
    assert not held.unread
    return [command_line.read(shlex.split(text.replace("\\\n", " "))[2:]) for _, text in held.commands][1:]


def test_a_correction_is_made_again_before_what_uses_it(run):
    for name in ("mine-a", "mine-b"):
        evaluated(run, name, "mine")
    evaluated(run, "gone", "none")  # its correction was removed since
    workdir.write_json(run / "corrections/mine.json", {"settings": FITTED})
    workdir.write_json(run / "corrections/unused.json", {"settings": FITTED})
    read = told(run)
    assert [(one.mode, one.config.eval.correction) for one in read] == [
        *(("evaluate", "none"), ("correct", ""), ("evaluate", "mine"), ("evaluate", "mine")),
    ]
    fit = read[1].config
    asked = configs.plain(fit)["correction"]
    assert asked["name"] == "mine" and fit.eval.checkpoint == "last"
    assert asked == {**{field: FITTED[field] for field in asked if field != "name"}, "name": "mine"}
    (run / "corrections/mine.json").write_text("{")  # damaged: the page is drawn without its line
    assert [one.mode for one in told(run)] == ["evaluate"] * 3


@pytest.mark.slow
def test_a_diagnosis_of_a_corrected_model_is_made_again(command, run):
    few = [f"--config.correction.{one}" for one in ("attack=fgsm", "num_samples=50", "rounds=1", "name=mine")]
    assert command("--mode=correct", f"--workdir={run}", *few).code == 0
    few = [f"--config.analysis.{one}" for one in ("attacks=fgsm", "temperatures=()", "resamples=20", "num_samples=50")]
    assert command("--mode=diagnose", f"--workdir={run}", *few, "--config.eval.correction=mine").code == 0
    fit, diagnose = told(run)
    assert (fit.mode, fit.config.correction.name, fit.config.correction.num_samples) == ("correct", "mine", 50)
    assert (diagnose.mode, diagnose.config.eval.correction) == ("diagnose", "mine")
    assert diagnose.config.analysis.num_samples == 50


def test_a_comparison_of_corrected_runs_is_made_again(run, tmp_path):
    settings = {
        **{"name": "", "attacks": "fgsm", "split": "test", "num_samples": 50, "resamples": 20, "norm": "linf"},
        **{"epsilon": 0.2, "checkpoint": "last", "correction": "mine"},
    }

    def read() -> Any:
        [(_, text)] = commands.of_comparison([run, run], tmp_path / "comparison", {"settings": settings})
        return command_line.read(shlex.split(text.replace("\\\n", " "))[2:])

    assert read().config.eval.correction == "mine"
    del settings["correction"]  # of an older one
    assert read().config.eval.correction == ""
