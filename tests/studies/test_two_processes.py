"""The whole command in two processes of two devices each: one log, one set of results, the same numbers as alone."""

import json
import os
import socket
import subprocess
import sys

import pytest

from jax_advtrain.evaluation import results


@pytest.mark.slow
def test_two_processes_are_one_run(tiny_config, finished_run, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "jax_advtrain.main", "--multihost"),
                *(f"--config={tiny_config}", f"--workdir={tmp_path}/run"),
            ],
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
    assert "compiling the training step for 4 device(s)" in said[0][0]
    assert "epoch" not in said[1][0]  # the first process speaks for all
    logs = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run", finished_run)
    ]
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
