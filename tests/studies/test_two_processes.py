"""The whole command in two processes of two devices each: one log, one set of results, the same numbers as alone."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jax_advtrain.evaluation import results


def run_in_two_processes(*arguments: str) -> list[tuple[str, str]]:
    """What each said on stdout and stderr; both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "jax_advtrain.main", "--multihost", *arguments],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_are_one_run(tiny_config, finished_run, tmp_path):
    said = run_in_two_processes(f"--config={tiny_config}", f"--workdir={tmp_path}/run")
    assert "compiling the training step for 4 device(s)" in said[0][0]
    assert "epoch" not in said[1][0]  # the first process speaks for all
    logs = [log(folder) for folder in (tmp_path / "run", finished_run)]
    assert [line["epoch"] for line in logs[0]] == [1, 2]
    for one, other in zip(*logs, strict=True):
        assert one["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-3)
        assert one["margins"]["mean"] == pytest.approx(other["margins"]["mean"], rel=1e-3)
    found, alone = (
        results.read_results(folder / "eval/last")["records"] for folder in (tmp_path / "run", finished_run)
    )
    assert [record["attack"] for record in found] == [record["attack"] for record in alone]
    assert all(abs(one["correct"] - other["correct"]) <= 4 for one, other in zip(found, alone, strict=True))
    assert len(list((tmp_path / "run/events").iterdir())) == 1


@pytest.mark.slow
def test_streamed_by_two_processes_is_held_in_memory_by_one(tiny_config, command, tmp_path):
    """Each process reads the rows of its own devices, with a worker of its own."""
    digits = load_digits()
    for number in range(200):
        path = tmp_path / "images" / str(digits.target[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype("uint8")).save(path)
    flags = (
        *(f"--config={tiny_config}", "--config.data.name=mine", "--config.data.source=image_folder"),
        *(f"--config.data.data_dir={tmp_path / 'images'}", "--config.data.image_size=8", "--config.data.test_size=40"),
        *("--config.data.num_workers=1", "--config.eval.after_training="),
    )
    run_in_two_processes(*flags, f"--workdir={tmp_path}/streamed", "--config.data.streaming=True")
    assert command(*flags, f"--workdir={tmp_path}/held", "--config.data.streaming=False").code == 0
    streamed, held = log(tmp_path / "streamed"), log(tmp_path / "held")
    assert [line["epoch"] for line in streamed] == [1, 2]
    for one, other in zip(streamed, held, strict=True):
        assert one["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-3)
        assert one["margins"]["mean"] == pytest.approx(other["margins"]["mean"], rel=1e-3)
    prints = [json.loads((tmp_path / run / "data.json").read_text()) for run in ("streamed", "held")]
    assert prints[0] == prints[1]
