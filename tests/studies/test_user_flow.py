"""What a user does with a run: train, look, start again, train longer, evaluate otherwise, estimate margins."""

import io
import json
import re
import shutil
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from jax_advtrain.evaluation import results
from jax_advtrain.training.display import Display

TRAIN_SAMPLES, VALIDATION_SAMPLES, TEST_SAMPLES, STEPS_PER_EPOCH = 1259, 179, 359, 40


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def copied_run(finished_run, tmp_path) -> Path:
    """A copy of the finished run, to be written into."""
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


# --- What training leaves ---


def test_what_training_leaves(finished_run):
    for name in (
        *("config.json", "data.json", "metrics.jsonl"),
        *("plots/training.png", "plots/margin_histogram.png", "plots/margin_trend.png"),
        *(f"eval/{one}/{file}" for one in ("last", "best") for file in ("results.json", "per_sample.npz")),
        *(f"eval/{one}/{file}" for one in ("last", "best") for file in ("accuracy_vs_radius.png", "images.png")),
    ):
        assert (finished_run / name).stat().st_size > 100, name
    assert not list(finished_run.rglob("*.tmp"))
    lines = metrics(finished_run)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["step"] == 2 * STEPS_PER_EPOCH
    assert sum(lines[-1]["margins"]["histogram"]) == TRAIN_SAMPLES
    assert lines[-1]["train"]["clean_accuracy"] > 0.8


@pytest.mark.parametrize("name", ["last", "best"])
def test_every_sample_is_counted(finished_run, name):
    found = results.read_results(finished_run / "eval" / name)  # checks the schema and that counts add up
    assert {record["n"] for record in found["records"]} == {TEST_SAMPLES}
    assert found["data"]["count"] == TEST_SAMPLES
    attacks = {"pgd-5-ce", "uniform-noise", "worst-of"}
    radii = [("linf", 0.05), ("linf", 0.1), ("l2", 0.5)]
    wanted = {("clean", None, 0.0), *((attack, *radius) for attack in attacks for radius in radii)}
    assert {(record["attack"], record["norm"], record["epsilon"]) for record in found["records"]} == wanted
    arrays = results.read_per_sample(finished_run / "eval" / name)
    assert sorted(arrays["id"]) == list(range(TEST_SAMPLES))
    for record in found["records"]:
        if record["attack"] == "worst-of":
            winner = arrays[results.sample_key("winner", record["norm"], record["epsilon"])]
            assert (winner == -1).sum() == record["correct"]


def read_events(folder: Path) -> list[Event]:
    """Tensorboard's records: length, its checksum, content, its checksum."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_tensorboard_scalars_are_those_of_the_log(finished_run):
    events = read_events(finished_run / "events")
    scalars = {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}
    for line in metrics(finished_run):
        for group, name in (("train", "loss"), ("validation", "robust_accuracy"), ("margins", "mean")):
            assert scalars[f"{group}/{name}", line["step"]] == pytest.approx(line[group][name], rel=1e-6)
        assert scalars["margins/quantile_0.5", line["step"]] == pytest.approx(line["margins"]["quantiles"]["0.5"])


# --- The same command again, and longer ---


def test_the_same_command_again_says_that_all_is_done(command, unchanged, tiny_config, finished_run):
    before = unchanged(finished_run)
    answer = command(f"--config={tiny_config}", f"--workdir={finished_run}")
    assert answer.code == 0 and not answer.err
    assert "this run is complete: 2 epochs are trained and evaluated" in answer.out
    assert f"{finished_run}/eval/last/results.json" in answer.out and f"{finished_run}/plots" in answer.out
    assert "compiling" not in answer.out
    after = unchanged(finished_run)
    assert {name: content for name, content in after.items() if name != ".lock"} == {
        name: content for name, content in before.items() if name != ".lock"
    }


def test_more_epochs_go_on(command, tiny_config, copied_run):
    before, earlier = metrics(copied_run), (copied_run / "eval/last/results.json").read_bytes()
    answer = command(f"--config={tiny_config}", f"--workdir={copied_run}", "--config.epochs=3")
    assert answer.code == 0, answer
    assert "restored last checkpoint of step 80 (2 epochs)" in answer.out and "epoch 3/3" in answer.out
    after = metrics(copied_run)
    assert after[:2] == before and [line["epoch"] for line in after] == [1, 2, 3]
    found = results.read_results(copied_run / "eval/last")
    assert found["model"]["step"] == 3 * STEPS_PER_EPOCH
    assert (copied_run / f"eval/last.step-{2 * STEPS_PER_EPOCH}/results.json").read_bytes() == earlier
    steps = {event.step for event in read_events(copied_run / "events") if event.summary.value}
    assert steps == {40, 80, 120}
    # Plain lines: nothing that only a terminal understands, and no line is drawn over.
    assert "\x1b" not in answer.out and "\r" not in answer.out
    assert f"evaluating the last checkpoint on {TEST_SAMPLES} test samples" in answer.out.splitlines()


def test_pictures_that_a_kill_prevented_are_drawn_by_the_same_command(command, tiny_config, copied_run):
    shutil.rmtree(copied_run / "eval/best")
    (copied_run / "eval/last/images.png").unlink()
    (copied_run / "eval/last/accuracy_vs_radius.png").unlink()
    answer = command(f"--config={tiny_config}", f"--workdir={copied_run}")
    assert answer.code == 0 and "eval/last holds this evaluation already" in answer.out, answer
    for name in ("last", "best"):
        assert (copied_run / f"eval/{name}/images.png").exists()
        assert (copied_run / f"eval/{name}/accuracy_vs_radius.png").exists()


# --- Evaluating again ---


def test_evaluate_with_other_attacks(command, refused, unchanged, copied_run):
    before = unchanged(copied_run)
    asked = ["--mode=evaluate", f"--workdir={copied_run}", "--config.eval.name=strong"]
    attacks = "--config.eval.attacks=pgd:num_steps=5:loss=lm:restarts=2, pgd:num_steps=5:loss=lm"
    radii = ["--config.eval.epsilons_linf=(0.1,)", "--config.eval.epsilons_l2=()"]
    answer = command(*asked, attacks, *radii)
    assert answer.code == 0 and f"{copied_run}/eval/strong/results.json" in answer.out, answer
    found = results.read_results(copied_run / "eval/strong")
    assert [record["attack"] for record in found["records"]] == ["clean", "pgd-5-lm-x2", "pgd-5-lm", "worst-of"]
    assert {record["n"] for record in found["records"]} == {TEST_SAMPLES}
    after = unchanged(copied_run)
    assert {name for name in before if after[name] != before[name]} == {"report.html"}  # which shows it now

    again = command(*asked, attacks, *radii, "--config.eval.batch_size=100")
    assert again.code == 0 and "eval/strong holds this evaluation already" in again.out
    assert unchanged(copied_run) == after
    refused([*asked, attacks, radii[1]], "eval/strong holds another evaluation: epsilons_linf", "eval.name=NAME")
    refused(["--mode=evaluate", f"--workdir={copied_run}", attacks], "eval/best holds another evaluation: attacks")
    assert unchanged(copied_run) == after


def test_evaluate_clean_alone_on_validation(command, tiny_config, copied_run):
    answer = command(
        *("--mode=evaluate", f"--config={tiny_config}", f"--workdir={copied_run}", "--config.eval.name=clean"),
        *("--config.eval.attacks=", "--config.eval.split=validation", "--config.eval.checkpoint=last"),
        *("--config.monitor.attacks=", "--config.epochs=1"),  # fewer than were trained: evaluating does not mind
    )
    assert answer.code == 0, answer
    found = results.read_results(copied_run / "eval/clean")
    assert [(record["attack"], record["split"], record["n"]) for record in found["records"]] == [
        ("clean", "validation", VALIDATION_SAMPLES)
    ]
    assert (
        found["records"][0]["correct"] / VALIDATION_SAMPLES == metrics(copied_run)[-1]["validation"]["clean_accuracy"]
    )


@pytest.mark.slow
def test_a_check_of_the_model_stands_among_the_warnings(command, refused, copied_run):
    asked = ["--mode=evaluate", f"--workdir={copied_run}", "--config.eval.name=checked", "--config.eval.attacks="]
    answer = command(*asked, "--config.eval.check_samples=30")
    assert answer.code == 0 and "checking the model on 30 samples at linf" in answer.out, answer
    found = results.read_results(copied_run / "eval/checked")
    assert all(line.startswith("check_model, ") for line in found["warnings"])
    refused([*asked, "--config.eval.check_samples=20"], "holds another evaluation: check_samples (30 there, 20 here)")


# --- Margins ---


def test_margins(command, refused, unchanged, copied_run):
    asked = ["--mode=margins", f"--workdir={copied_run}", "--config.eval.checkpoint=last"]
    answer = command(*asked)
    assert answer.code == 0, answer
    target = copied_run / "eval/margins-last-test-linf"
    assert (target / "margins.png").stat().st_size > 1000
    found = dict(np.load(target / "margins.npz"))
    assert sorted(found["id"]) == list(range(TEST_SAMPLES))
    margin, censored, right = found["margin"], found["censored"], found["clean_right"]
    assert (margin[~right] == 0).all() and not (censored & ~right).any()
    assert censored.any() and (margin[censored] == np.float32(0.2)).all()
    assert ((margin[right & ~censored] > 0) & (margin[right & ~censored] <= 0.2 + 1e-6)).all()
    # The same samples are right as in the evaluation, and its attack at a radius never does better than the survey's,
    # which is stronger (more steps): what PGD-5 breaks at 0.1 has no larger margin than 0.1, give or take what chance
    # decides.
    per_sample = results.read_per_sample(copied_run / "eval/last")
    assert (right == (per_sample["clean_prediction"] == per_sample["label"])).all()
    broken = per_sample[results.sample_key("winner", "linf", 0.1)] > 0
    assert (margin[broken] <= 0.1 + 1e-6).mean() > 0.97
    assert f"{right.mean():.1%} right" in answer.out and f"{censored.mean():.1%} censored" in answer.out

    before = unchanged(copied_run)
    again = command(*asked)
    assert again.code == 0 and "holds this survey already" in again.out and "compiling" not in again.out
    # The summary is said again, word for word.
    assert answer.out.splitlines()[-2:] == again.out.splitlines()[-2:]
    refused([*asked, "--config.margins.num_steps=7"], "holds another survey: num_steps (20 there, 7 here)")
    assert unchanged(copied_run) == before


# --- What is seen ---


def screen(is_terminal: bool) -> tuple[Display, io.StringIO]:
    drawn = io.StringIO()
    return Display(Console(file=drawn, force_terminal=is_terminal, width=80, soft_wrap=True, highlight=False)), drawn


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines():
    drawings = []
    for is_terminal in (True, False):
        display, drawn = screen(is_terminal)
        with display.working("evaluating") as tell:
            tell("pgd linf 0.1", 0.5)
        display.table("last", [["attacked in", "right"], ["clean", "97.0%"]])
        drawings.append(drawn.getvalue())
    terminal, pipe = drawings
    assert "\x1b" in terminal and "50%" in terminal and "pgd linf 0.1" in terminal and "━" in terminal
    assert pipe == "evaluating\nlast\n  attacked in  right\n  clean        97.0%\n"


class Length(NamedTuple):
    """What a display must know of an experiment."""

    epochs: int
    total_steps: int


def test_the_bar_of_training_fits_a_narrow_terminal(finished_run, tmp_path):
    display, drawn = screen(is_terminal=True)
    line = metrics(finished_run)[-1]
    with display.training(Length(40, 800), [line], tmp_path, 400) as shown:  # pyright: ignore[reportArgumentType]
        shown.step(20, 0.1234)
    frames = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.getvalue()))
    last = [frame.rstrip() for frame in frames if "loss" in frame][-1]
    found = line["validation"]
    for text in (
        *("epoch 21/40", "━", "50%", "loss 0.123", f"clean {found['clean_accuracy']:.0%}"),
        *(f"robust {found['robust_accuracy']:.0%}", f"margin {line['margins']['mean']:.3f}"),
    ):
        assert text in last, last
    assert re.search(r"\d:\d\d:\d\d|-:--:--", last), last  # the time that is left
    assert len(last) <= 80
