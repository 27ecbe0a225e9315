"""Runs that are stopped in every way, and go on to the same end: bit for bit what an uninterrupted run gives."""

import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jax_advtrain.training import checkpoints, loop, workdir
from jax_advtrain.training.checkpoints import BEST, LAST
from jax_advtrain.training.display import TrainingDisplay

# 40 steps an epoch, an average of the weights, no evaluation at the end: only training is looked at here.
EPOCHS, PER_EPOCH = 6, 40
FLAGS = (f"--config.epochs={EPOCHS}", "--config.ema_decay=0.9", "--config.eval.after_training=")
CLOCK = ("seconds", "samples_per_second", "input_wait", "monitor_seconds")

# Orbax leaves reads of broken arrays unawaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def collected():
    """What is left of such reads goes now, not in the midst of another test."""
    yield
    gc.collect()


def arrays(folder: Path, which: str) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint of a kind, by its path in the state."""
    return arrays_of(folder / "checkpoints" / which / str(workdir.newest_step(folder, which)))


def arrays_of(checkpoint: Path) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore((checkpoint / "state").absolute())
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(found)}


def log(folder: Path) -> list[dict]:
    """The epochs' lines without what the clock says; every line of the file must be whole."""
    lines = [json.loads(text) for text in (folder / workdir.METRICS_NAME).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def assert_same_run(folder: Path, reference: Path) -> None:
    """Weights, average, optimizer, margins of last and best bit for bit; the same log, no epoch missing or doubled."""
    assert [line["epoch"] for line in log(folder)] == list(range(1, len(log(reference)) + 1))
    assert log(folder) == log(reference)
    for which in (LAST, BEST):
        ours, theirs = arrays(folder, which), arrays(reference, which)
        assert ours.keys() == theirs.keys()
        assert any("margin" in name for name in ours) and any("averaged" in name for name in ours)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{which} {name}")
            assert ours[name].dtype == theirs[name].dtype


@pytest.fixture(scope="module")
def train(tiny_config, compiled_programs):
    """train(folder, *flags): the command line in a process of its own, started; programs are compiled once."""
    started = []
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled_programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONUNBUFFERED": "1",
    }

    def run(folder: Path, *flags: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "jax_advtrain.main", f"--config={tiny_config}", f"--workdir={folder}"]
        process = subprocess.Popen(
            [*command, *FLAGS, *flags],
            env=environment,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Where the runs below are kept for all tests of this file."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def finished(command, tiny_config, kept) -> Path:
    """The workdir of the uninterrupted run."""
    folder = kept / "finished"
    if not folder.exists():
        assert command(f"--config={tiny_config}", f"--workdir={folder}", *FLAGS).code == 0
        assert len(log(folder)) == EPOCHS and workdir.newest_step(folder, LAST) == EPOCHS * PER_EPOCH
    return folder


@pytest.fixture
def partial_run(command, tiny_config, kept) -> Path:
    """The workdir of the run asked for 4 epochs; it may be asked for more."""
    folder = kept / "partial"
    if not folder.exists():
        assert command(f"--config={tiny_config}", f"--workdir={folder}", *FLAGS, "--config.epochs=4").code == 0
    return folder


def wait_until(happened: Callable[[], bool], process: subprocess.Popen) -> bool:
    """Whether the process is still at work when it has happened."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if happened():
            return process.poll() is None
        time.sleep(0.002)
    return False


def kill(train, folder: Path, moments: list[tuple[int, float]]) -> int:
    """Starts the run and kills it once it has so many epochs and so many seconds more, each time; how often."""
    killed = 0
    for epochs, seconds in moments:
        process = train(folder)
        if wait_until(lambda epochs=epochs: len(workdir.read_metrics(folder)) >= epochs, process):
            time.sleep(seconds)
            killed += process.poll() is None
        process.kill()
        output, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), output
    return killed


def moments(seed: int, count: int) -> list[tuple[int, float]]:
    draw = random.Random(seed)
    return [(draw.randint(0, 1) + number * (EPOCHS - 2) // count, draw.uniform(0, 0.2)) for number in range(count)]


@pytest.mark.slow
def test_killed_and_started_again(train, command, tiny_config, finished, tmp_path):
    folder = tmp_path / "run"
    assert kill(train, folder, moments(seed=0, count=2)) >= 1
    assert command(f"--config={tiny_config}", f"--workdir={folder}", *FLAGS).code == 0
    assert_same_run(folder, finished)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_many_times(train, command, tiny_config, finished, tmp_path, seed):
    folder = tmp_path / "run"
    assert kill(train, folder, moments(seed, count=5)) >= 3
    assert command(f"--config={tiny_config}", f"--workdir={folder}", *FLAGS).code == 0
    assert_same_run(folder, finished)


def test_terminated_and_started_again(train, command, tiny_config, finished, tmp_path):
    folder = tmp_path / "run"
    process = train(folder)
    assert wait_until(lambda: workdir.newest_step(folder, LAST) > 0, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert re.search(r"stopped .+ and saved; the same command resumes", output) and "Traceback" not in output
    step = workdir.newest_step(folder, LAST)
    assert [line["epoch"] for line in log(folder)] == list(range(1, step // PER_EPOCH + 1))
    answer = command(f"--config={tiny_config}", f"--workdir={folder}", *FLAGS)
    assert answer.code == 0 and f"restored last checkpoint of step {step}" in answer.out, answer
    assert_same_run(folder, finished)


def test_a_signal_in_the_middle_of_an_epoch(command, tiny_config, finished, tmp_path, monkeypatch):
    """An epoch here takes less time than a signal from outside can be aimed at, so this process signals itself."""
    steps, step = [], TrainingDisplay.step

    def signalled(self, epoch, loss):
        steps.append(loss)
        if len(steps) == PER_EPOCH + 17:
            signal.raise_signal(signal.SIGTERM)
        step(self, epoch, loss)

    monkeypatch.setattr(TrainingDisplay, "step", signalled)
    answer = command(f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}", *FLAGS)
    stopped = workdir.newest_step(tmp_path / "run", LAST)
    assert answer.code == 0 and f"stopped at step {stopped} and saved" in answer.out, answer
    assert PER_EPOCH + 17 <= stopped <= PER_EPOCH + 20 and len(steps) == stopped  # every loss was looked at
    assert [line["epoch"] for line in log(tmp_path / "run")] == [1]
    answer = command(f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}", *FLAGS)
    assert answer.code == 0 and f"restored last checkpoint of step {stopped}" in answer.out, answer
    assert_same_run(tmp_path / "run", finished)


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_training_goes_on_to_more_epochs(command, tiny_config, partial_run, finished, tmp_path):
    folder = Path(shutil.copytree(partial_run, tmp_path / "run"))
    answer = command(f"--config={tiny_config}", f"--workdir={folder}", *FLAGS)
    assert answer.code == 0 and f"restored last checkpoint of step {4 * PER_EPOCH}" in answer.out, answer
    assert_same_run(folder, finished)


@pytest.mark.parametrize("left", ["half", "nothing"])
def test_a_truncated_checkpoint_is_kept_aside_and_the_one_before_is_used(
    command, tiny_config, partial_run, finished, tmp_path, left
):
    folder = Path(shutil.copytree(partial_run, tmp_path / "run"))
    newest = folder / "checkpoints" / LAST / str(4 * PER_EPOCH)
    broken = largest_file(newest)
    os.truncate(broken, broken.stat().st_size // 2 if left == "half" else 0)
    size = broken.stat().st_size
    answer = command(f"--config={tiny_config}", f"--workdir={folder}", *FLAGS)
    assert answer.code == 0, answer
    aside = folder / "checkpoints" / "broken" / f"{LAST}-{newest.name}"
    said = re.search(rf"checkpoint {re.escape(str(newest))} cannot be read \(.+\); it is kept as (\S+),", answer.out)
    assert said and said[1] == str(aside), answer.out
    assert f"restored last checkpoint of step {3 * PER_EPOCH}" in answer.out
    assert largest_file(aside).exists() and (aside / broken.relative_to(newest)).stat().st_size == size
    assert_same_run(folder, finished)


def test_all_checkpoints_broken_starts_anew(command, tiny_config, partial_run, finished, tmp_path):
    folder = Path(shutil.copytree(partial_run, tmp_path / "run"))
    for step in (folder / "checkpoints" / LAST).iterdir():
        if step.name.isdigit():
            os.truncate(largest_file(step), 0)
    answer = command(f"--config={tiny_config}", f"--workdir={folder}", *FLAGS)
    assert answer.code == 0 and answer.out.count("cannot be read") == 2, answer
    assert_same_run(folder, finished)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_last_good_checkpoint(command, tiny_config, tmp_path):
    explode = ("schedule=piecewise", "boundaries=(2,)", "values=(1e30,)")
    answer = command(
        f"--config={tiny_config}", f"--workdir={tmp_path}", *FLAGS, *(f"--config.optimizer.{e}" for e in explode)
    )
    assert answer.code == 1, answer
    assert answer.err.startswith("error: the loss became ") and answer.err.count("\n") == 1
    good = tmp_path / "checkpoints" / LAST / str(2 * PER_EPOCH)
    assert "in epoch 3" in answer.err and f"the last good checkpoint is {good}" in answer.err
    assert good.is_dir() and len(log(tmp_path)) == 2


def test_a_checkpoint_whose_first_loss_is_not_finite_is_not_called_good(command, tiny_config, tmp_path):
    """One step an epoch: the step that ruins the weights has a finite loss, and its checkpoint is written."""
    explode = ("schedule=piecewise", "boundaries=(2,)", "values=(1e30,)")
    answer = command(
        f"--config={tiny_config}",
        f"--workdir={tmp_path}",
        *FLAGS,
        "--config.batch_size=1264",
        *(f"--config.optimizer.{e}" for e in explode),
    )
    assert answer.code == 1, answer
    assert len(log(tmp_path)) == 3
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / LAST / '2'}" in answer.err
    for name, values in arrays_of(tmp_path / "checkpoints" / LAST / "2").items():
        assert np.isfinite(values).all(), name


def test_the_best_checkpoint_is_whole_before_the_last_one_is_begun(command, tiny_config, tmp_path, monkeypatch):
    """Else a kill between the two would leave an epoch that the log calls the best, and no checkpoint of it."""
    begun = []
    save = checkpoints.Checkpoints.save

    def watched(self, which, state, saved):
        if which == LAST:
            lines = [
                (line["validation"]["robust_accuracy"], line["validation"]["clean_accuracy"]) for line in log(tmp_path)
            ]
            begun.append((workdir.newest_step(tmp_path, BEST), (lines.index(max(lines)) + 1) * PER_EPOCH))
        save(self, which, state, saved)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", watched)
    assert command(f"--config={tiny_config}", f"--workdir={tmp_path}", *FLAGS).code == 0
    assert len(begun) == EPOCHS
    for newest, best in begun:
        assert newest == best


def test_a_signal_in_the_last_epoch_ends_the_process_too(command, tiny_config, finished, tmp_path, monkeypatch):
    monitored = loop._monitored

    def terminated(experiment, config, state):
        if int(state.step) == EPOCHS * PER_EPOCH:
            signal.raise_signal(signal.SIGTERM)
        return monitored(experiment, config, state)

    monkeypatch.setattr(loop, "_monitored", terminated)
    before = signal.getsignal(signal.SIGTERM)
    answer = command(f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}", *FLAGS)
    assert answer.code == 0 and f"stopped after epoch {EPOCHS} and saved" in answer.out, answer
    assert signal.getsignal(signal.SIGTERM) == before
    assert_same_run(tmp_path / "run", finished)
