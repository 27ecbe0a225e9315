"""The active set over two processes of two devices each gives every sample the answer that one process gives it.

Run as a script, this file is one of the processes (see `main`).
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_active_set import COUNT, attacked, samples

from jax_advtrain import attacks

SIZES = {"autoattack": 8, "pgd": 16}  # slots of all devices


def attack_of(name: str) -> attacks.Attack:
    if name == "pgd":
        return attacks.until_success(attacks.restarts(attacks.pgd(epsilon=0.0, num_steps=10), 2))
    return attacks.autoattack(norm="linf", epsilon=0.0, num_steps=8, num_queries=40)


def main(folder: str, port: str, number: str) -> None:
    """Both evaluations; each process keeps what it found, and all of it is everybody's."""
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number))
    assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (2, 4, 2)
    for name, size in SIZES.items():
        told = []
        found = attacked(attack_of(name), samples(), batch_size=size, progress=told.append)
        assert found.work is not None and told[-1] == COUNT
        values = {field: array for field, array in found._asdict().items() if field != "work"}
        np.savez(f"{folder}/{name}.{jax.process_index()}.npz", work=np.array(found.work), **values)


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(port), str(number)],
            env=os.environ
            | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    for name in SIZES:
        alone = attacked(attack_of(name), samples())
        assert alone.work is not None and 0 < alone.is_right.sum() < COUNT
        one, other = (np.load(tmp_path / f"{name}.{number}.npz") for number in range(2))
        for field in one.files:
            np.testing.assert_array_equal(one[field], other[field], err_msg=field)
        for field in ("is_right", "winner", "prediction", "zero_gradients", "nonfinite_gradients"):
            np.testing.assert_array_equal(one[field], getattr(alone, field), err_msg=field)
        np.testing.assert_allclose(one["images"], alone.images, atol=1e-4)
        np.testing.assert_allclose(one["distance"], alone.distance, atol=1e-4)
        np.testing.assert_allclose(one["score"], alone.score, atol=1e-3)
        # What each sample needed is the same, but for roundings; what ran hangs on the slots.
        run, needed = one["work"]
        assert needed == pytest.approx(alone.work.needed, rel=0.05) and run >= needed


if __name__ == "__main__":
    main(*sys.argv[1:])
