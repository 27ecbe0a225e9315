"""A grid of methods from the command line: refused before any work, trained, interrupted, found again."""

import csv
import json
from functools import partial
from pathlib import Path

import pytest

from jax_advtrain import command_line
from jax_advtrain import config as configs
from jax_advtrain.studies import compared as studies
from jax_advtrain.studies import grid
from jax_advtrain.training import workdir

GRID = """
from jax_advtrain.config import base
from jax_advtrain.studies.grid import grid

def get_config():
    config = base("standard", "mlp")
    config.data.name = "digits"
    config.data.data_dir = {data_dir!r}
    config.model.hidden = (16,)
    config.epochs = 1
    config.batch_size = 64
    config.monitor.num_samples = 20
    config.monitor.attacks = "fgsm"
    config.eval.attacks = "fgsm, pgd:num_steps=3"
    config.eval.epsilons_linf = (0.05, 0.1)
    config.eval.epsilons_l2 = ()
    config.eval.num_samples = 100
    config.eval.figures = 0
    asked = grid(
        config,
        {{
            "standard": {{}},
            "ima": {{"defense": {{"eps_max": 0.1, "delta": 0.02, "num_steps": 2}}, "seeds": (0, 1)}},
        }},
    )
    asked.reference = "ima"
    return asked
"""


@pytest.fixture
def grid_file(tiny_config, tmp_path) -> Path:
    path = tmp_path / "compare_tiny.py"
    path.write_text(GRID.format(data_dir=str(tiny_config.parent / "tfds")))
    return path


@pytest.fixture
def compare(compare_command, grid_file, tmp_path):
    """compare("--config....") -> Answer, of the tiny grid in <tmp_path>/runs."""
    return partial(compare_command, f"--config={grid_file}", f"--workdir={tmp_path / 'runs'}")


def test_bad_input_is_one_line(compare, grid_file, tmp_path):
    def refused(*arguments: str, says: str) -> None:
        code, _, err = compare(*arguments)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and says in err, err
        assert not list((tmp_path / "runs").rglob("config.json"))

    text = grid_file.read_text()

    def changed(old: str, new: str, says: str) -> None:
        assert old in text
        grid_file.write_text(text.replace(old, new))
        refused(says=says)
        grid_file.write_text(text)

    refused("--mode=table", says="3 of 3 runs in")
    refused("--config.names=()", says="the grid holds no runs")
    refused("--config.names=('imaa',)", says="did you mean 'ima'?")
    refused("--config.reference=pgd", says="reference 'pgd' is not known")
    refused("--config.methods.ima.seeds=(0,0)", says="holds a run twice")
    refused("--config.methods.ima.seeds=(0.5,)", says="methods.ima.seeds holds 0.5; give whole numbers from 0")
    refused("--config.base.eval.attacks=pgdd", says="method standard: eval.attacks: 'pgdd'")
    refused("--config.base.epochz=2", says="did you mean")
    refused("--mode=tables", says="mode")
    changed('"standard": {', '"standart": {', "did you mean 'standard'?")
    changed('"eps_max": 0.1', '"eps_maxx": 0.1', "did you mean 'eps_max'?")
    changed('"standard": {}', '"standard": {"data": {"num_train": 5}}', "methods.standard sets data; all runs")
    changed('"standard": {}', '"standard": {"seed": 5}', "methods.standard sets seed; give seeds")
    changed('"standard": {}', '"standard": {"epoch": 5}', "did you mean 'epochs'?")
    changed('"standard": {}', '"standard": {"radii": (0.1,)}', "has no radius")
    changed('"standard": {}', '"standard": {"config": "mnist_imaa.py"}', "no such file; did you mean")
    changed("return asked", "return config", "grid field")
    # A run of another config lies where one of the grid's would.
    other = configs.plain(command_line.read_config(str(grid_file), grids=True).base) | {"seed": 7}
    workdir.write_json(tmp_path / "runs/standard/seed-0/config.json", other)
    code, _, err = compare()
    assert code == 2 and err.count("\n") == 1 and "holds a run of another config: seed (7 there, 0 here)" in err


def test_radii_make_runs(grid_file, tmp_path):
    asked = command_line.read_config(str(grid_file), grids=True)
    asked.radii, asked.reference = (0.1, 0.2), "ima-0.1"
    runs = grid.runs(asked, tmp_path)
    told = [
        (run.method, run.seed, run.config.defense.get("eps_max"), str(run.folder.relative_to(tmp_path))) for run in runs
    ]
    assert told == [
        ("standard", 0, None, "standard/seed-0"),
        ("ima-0.1", 0, 0.1, "ima-0.1/seed-0"),
        ("ima-0.1", 1, 0.1, "ima-0.1/seed-1"),
        ("ima-0.2", 0, 0.2, "ima-0.2/seed-0"),
        ("ima-0.2", 1, 0.2, "ima-0.2/seed-1"),
    ]
    assert [run.config.seed for run in runs] == [0, 0, 1, 0, 1] and asked.base.seed == 0


@pytest.fixture
def half_done(grid_file, tmp_path):
    """half_done(epochs, change): the grid's first run with a log of so many epochs, its kept config changed."""

    def make(epochs, change=lambda kept: None):
        first = grid.runs(command_line.read_config(str(grid_file), grids=True), tmp_path / "runs")[0]
        kept = configs.plain(first.config)
        change(kept)
        workdir.write_json(first.folder / "config.json", kept)
        lines = [{"epoch": epoch, "step": 19 * epoch, "seconds": 1.0} for epoch in range(1, epochs + 1)]
        (first.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return first.folder

    return make


def test_a_run_that_trained_longer_than_the_grid_asks_is_refused(compare, half_done, unchanged):
    folder = half_done(3)
    before = unchanged(folder)
    for mode in ((), ("--mode=table",)):
        code, _, err = compare(*mode)
        assert code == 2 and err.count("\n") == 1, err
        assert f"method standard: {folder} has trained 3 epochs, the grid asks for 1; it may only grow" in err
        assert "--config.base.epochs=3 or more" in err and "another --workdir" in err
    assert unchanged(folder) == before
    assert "3 of 3 runs" in compare("--mode=table", "--config.base.epochs=3")[2]


@pytest.mark.parametrize(
    ("section", "field", "value", "says"),
    [
        (None, "patience", 5, "patience (5 there, None here)"),
        ("checkpoint", "best_by", "worst", "checkpoint.best_by ('worst' there, 'mean' here)"),
        ("monitor", "num_samples", 10, "monitor.num_samples (10 there, 20 here)"),
        ("monitor", "epsilon", 0.3, "monitor.epsilon (0.3 there, None here)"),
    ],
)
def test_a_run_whose_epochs_were_chosen_otherwise_is_refused(compare, half_done, section, field, value, says):
    half_done(1, lambda kept: (kept[section] if section else kept).update({field: value}))
    code, _, err = compare("--mode=table")
    assert code == 2 and err.count("\n") == 1 and f"otherwise than the grid asks: {says}" in err, err


def test_older_configs_and_the_same_radius_in_other_words_are_taken(compare, half_done):
    def older(kept):
        del kept["patience"], kept["checkpoint"]["best_by"], kept["monitor"]["every"]
        kept["monitor"].update(norm="linf", epsilon=0.1)  # the middle radius of the evaluation, which None stands for

    half_done(1, older)
    assert "3 of 3 runs" in compare("--mode=table")[2]


@pytest.mark.slow
def test_interrupted_then_found(compare, tmp_path, monkeypatch, unchanged):
    """Stopped before the second run's evaluation, started again, and asked once more: nothing is done twice."""
    folder = tmp_path / "runs"
    original, calls = studies.evaluations.evaluate_run, []

    def interrupted(config, place, display):
        calls.append(place)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(config, place, display)

    monkeypatch.setattr(studies.evaluations, "evaluate_run", interrupted)
    code, _, err = compare()
    assert code == 130 and "the same command goes on" in err
    assert not (folder / "comparison.json").exists()
    first = unchanged(folder / "standard/seed-0")
    code, _, err = compare("--mode=table")
    assert code == 2 and "2 of 3 runs" in err and "ima seed 0, ima seed 1" in err
    monkeypatch.undo()
    code, out, err = compare()
    assert code == 0, err
    assert "3 runs, 1 of them finished" in out and "this run is complete" in out
    assert unchanged(folder / "standard/seed-0") == first

    compared = json.loads((folder / "comparison.json").read_text())
    assert set(compared["methods"]) == {"standard", "ima"}
    assert compared["methods"]["ima"]["seeds"] == [0, 1] and compared["samples"] == [100]
    whats = {(row["what"], row["attack"]) for row in compared["rows"]}
    assert {("accuracy", "fgsm-ce"), ("accuracy", "worst-of"), ("area", "worst-of"), ("worst class", "clean")} <= whats
    for row in compared["rows"]:
        if row["what"] == "training seconds":
            assert row["values"]["ima"]["mean"] > 0
    with open(folder / "comparison.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(compared["rows"]) and {line["method"] for line in lines} == {"standard", "ima"}
    markdown = (folder / "comparison.md").read_text()
    assert "## Difference from ima" in markdown and "| L-inf 0.1, worst-of |" in markdown and "±" in markdown
    latex = (folder / "comparison.tex").read_text()
    assert latex.startswith("\\begin{tabular}{lrr}") and latex.count("\\textbf") >= 5 and "±" not in latex
    assert (folder / "comparison.png").stat().st_size > 20_000

    # Other modes on one of the runs write elsewhere than into the grid's evaluation.
    assert workdir.read_config(folder / "ima/seed-0")["eval"]["name"] == ""

    before = unchanged(folder)
    code, out, _ = compare()
    assert code == 0 and "3 runs, 3 of them finished" in out and "compil" not in out
    assert unchanged(folder) == before
    assert compare("--mode=table")[0] == 0 and unchanged(folder) == before
    # Other attacks would stand beside these: refused, with the way out.
    code, _, err = compare("--config.base.eval.attacks=fgsm")
    assert code == 2 and "holds another evaluation" in err and "--config.base.eval.name=NAME" in err
    assert unchanged(folder) == before
